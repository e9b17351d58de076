"""The claims of the paper that one model cannot decide, from several studies at once.

Two claims order models. Every two studies whose models differ in what orders them make a test: that the model of more
heads tips at a larger k, that the larger model loses less when heads are dropped while reading too. The prompts are
drawn again in both: the same draws where all prompts are the same, independent ones where they are not. The claim
holds where every test does, fails where one does, by the rule of all verdicts (`analyses.study.evidence.judge`).

A tipping point is known as well as the k that were run: between the k at which accuracy has fallen and the next one
lies a gap, and the claim is decided only where it is so wherever in the gaps the two points lie.

How it fails: studies of models that do not differ, that do not retrieve, or that were asked under unlike settings leave
the claim untested, with the reason. Few models of few families are no sample of all models, however narrow the
intervals over prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from analyses.study.claim_rules import no_baseline, over_k
from analyses.study.comparing.paired import apart, shared
from analyses.study.comparing.reading import StoredStudy
from analyses.study.comparing.unlike import unlike
from analyses.study.evidence import Check, Finding, judge, points, untested
from analyses.study.groups import Base, Estimate, Group, compare, once
from analyses.study.verdict import CLAIMS, Claim, Verdict
from hybridlens import niah
from hybridlens.display import listed, many
from hybridlens.results import Cell, bootstrap_interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HALF = 0.5

TIPS = 2_000
"""Draws of the prompts for tipping points."""


def across(studies: Sequence[StoredStudy]) -> list[Verdict]:
    """The verdicts on the claims that need several models."""
    return [_judged(claim, studies) for claim in CLAIMS if claim.id in RULES]


def _judged(claim: Claim, studies: Sequence[StoredStudy]) -> Verdict:
    rule, words = RULES[claim.id]
    other = unlike(studies, claim.id)
    found = untested(f"the studies were asked under unlike settings: {listed(other, 8)}") if other else rule(studies)
    paper = "; ".join(f"{name}: {number}" for name, number in claim.paper.items()) or "–"
    return Verdict(
        claim.id, claim.hypothesis, claim.sentence, paper, found.measured, found.outcome, words, found.reason
    )


def _pairs(
    studies: Sequence[StoredStudy],
    size: Callable[[StoredStudy], int],
    what: str,
    phases: Sequence[str],
    check: Callable[[StoredStudy, StoredStudy], Check],
) -> Finding:
    """A claim that orders models by their size, from every two that differ in it, the smaller given first."""
    able: list[StoredStudy] = []
    reasons: list[str] = []
    for study in studies:
        evidence = study.evidence
        lacking = [phase for phase in phases if len(evidence.curves[phase]) < 2]
        missing = no_baseline(evidence.full(), "the untouched model")
        if lacking:
            reasons.append(f"{study.name}: figure 2 was not run in the {' and '.join(lacking)} version")
        elif missing is not None:
            reasons.append(f"{study.name}: {missing.reason}")
        else:
            able.append(study)
    pairs = [(a, b) for a, b in combinations(sorted(able, key=size), 2) if size(a) < size(b)]
    if not pairs:
        sizes = ", ".join(f"{size(study):,}" for study in able)
        same = f"needs studies of models that differ in {what}; there are {sizes}" if able else ""
        return untested("; ".join([*reasons, *([same] if same else [])]))
    found = judge([check(a, b) for a, b in pairs])
    return found._replace(reason="; ".join([*([found.reason] if found.reason else []), *reasons]))


def _tips_later(studies: Sequence[StoredStudy]) -> Finding:
    """The tipping point of the model of more heads is larger."""
    return _pairs(studies, lambda study: study.base.n_heads, "heads a layer", ("generation",), _tipping_check)


def _tipping_check(fewer: StoredStudy, more: StoredStudy) -> Check:
    import numpy as np

    a, b = (_table(study) for study in (fewer, more))
    same = list(a[1]) == list(b[1]) and len(shared(a[1], b[1])) == len(a[1])
    whole = [_tips(table, ks, np.arange(len(table))[None]) for table, _, ks in (a, b)]
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, len(table), (TIPS, len(table))) for table, _, _ in (a, b)]
    if same:
        rows[1] = rows[0]
    drawn = [_tips(table, ks, row) for (table, _, ks), row in zip((a, b), rows, strict=True)]
    low = np.quantile(drawn[1][0] - drawn[0][1], 0.025, method="inverted_cdf")
    high = np.quantile(drawn[1][1] - drawn[0][0], 0.975, method="inverted_cdf")
    # Ends are whole numbers of heads: a difference of 0 is no higher, and speaks against the claim.
    estimate = Estimate(float(whole[1][0][0] - whole[0][0][0]) - HALF, float(low) - HALF, float(high) - HALF, len(a[0]))
    said = [
        f"{_tip_words(int(tips[0][0]), int(tips[1][0]))} of {many(study.base.n_heads, 'head')}"
        for study, tips in zip((fewer, more), whole, strict=True)
    ]
    which = "on the same prompts" if same else "other prompts in each"
    words = f"{fewer.name} and {more.name}: {' and '.join(said)}, second less first {low:+.0f} to {high:+.0f}, {which}"
    return Check(words, estimate, above=True)


def _tip_words(low: int, high: int) -> str:
    if low < 0:
        return "no tipping point"
    return f"tipping point {low}" if low == high else f"tipping point {low} to {high}"


def _table(study: StoredStudy) -> tuple[NDArray[np.float64], dict[tuple[int, float], str], list[int]]:
    """Scores [prompt, k] of figure 2's generation version at the places that every k has, their prompts, and the k."""
    import numpy as np

    curve = study.evidence.curves["generation"]
    ks = sorted(curve)
    places = once(*curve.values())
    table = np.array([[curve[k].scores[place] for k in ks] for place in places])
    own = {
        (cell.length, float(cell.depth)): cell.prompt_hash
        for cell in study.cells
        if cell.depth is not None and _plain(cell, study.base)
    }
    return table, {place: own[place] for place in places}, ks


def _plain(cell: Cell, base: Base) -> bool:
    """Whether a cell's prompt is one of the study's own, read once."""
    return not cell.jrt and (cell.needle, cell.semantics) == (base.needle, base.semantics)


def _tips(
    table: NDArray[np.float64], ks: Sequence[int], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The least and the most that the tipping point of each draw may be, −1 for none.

    Args:
        table: scores [prompt, k], k ascending, all heads last.
        ks: the k.
        rows: [draw, prompt], places in the table.
    """
    import numpy as np

    means = table[rows].mean(axis=1)
    fallen = means[:, :-1] < means[:, -1:] / 2
    places = (fallen * np.arange(1, len(ks))).max(axis=1, initial=0)
    least = np.array([-1, *ks[:-1]])[places]
    most = np.array([ks[0] - 1, *(k - 1 for k in ks[1:])])[places]
    return least, np.maximum(most, least)


def _costs_less(studies: Sequence[StoredStudy]) -> Finding:
    """The larger model loses less to heads dropped while reading too."""
    return _pairs(studies, lambda study: study.parameters, "parameters", ("generation", "prefill"), _cost_check)


def _cost_check(smaller: StoredStudy, larger: StoredStudy) -> Check:
    a, b = _versions(smaller), _versions(larger)
    costs = [compare(*versions) for versions in (a, b)]
    said = [points("", cost).removeprefix(": ") for cost in costs]
    words = f"{smaller.name} and {larger.name}: {' and '.join(said)}"
    if costs[0] is None or costs[1] is None:
        return Check(words, None, above=True)
    shared_places = shared(_table(smaller)[1], _table(larger)[1])
    same = [place for place in once(*a, *b) if place in shared_places]
    if same:
        found = _paired([_cost(a, place) - _cost(b, place) for place in same])
    else:
        found = apart(costs[0], costs[1])
    which = f"on {many(len(same), 'prompt')} that both have" if same else "other prompts in each"
    return Check(f"{words}, first less second {points('', found).removeprefix(': ')}, {which}", found, above=True)


def _versions(study: StoredStudy) -> tuple[Group, Group]:
    """Mean scores over every k below all heads, generation and prefill version."""
    curves, n_heads = study.evidence.curves, study.base.n_heads
    ks = [k for k in curves["prefill"] if k in curves["generation"] and k < n_heads]
    return over_k([curves["generation"][k] for k in ks]), over_k([curves["prefill"][k] for k in ks])


def _cost(versions: tuple[Group, Group], place: tuple[int, float]) -> float:
    return versions[0].scores[place] - versions[1].scores[place]


def _paired(values: Sequence[float]) -> Estimate:
    """The mean of differences of differences over the same prompts, as a share of the highest score."""
    highest = 2 * niah.MAX_SCORE
    low, high = bootstrap_interval(values, highest=highest, lowest=-highest)
    return Estimate(
        sum(values) / len(values) / niah.MAX_SCORE, low / niah.MAX_SCORE, high / niah.MAX_SCORE, len(values)
    )


RULES: dict[str, tuple[Callable[[Sequence[StoredStudy]], Finding], str]] = {
    "h1-heads": (
        _tips_later,
        "Of every two models with unlike numbers of heads a layer, the one with more tips at a larger k, wherever "
        "between the k that were run the two points lie.",
    ),
    "h1-prefill-size": (
        _costs_less,
        "Of every two models, the one of more parameters loses less in the prefill version than in the generation "
        "version, in the mean over every k below all heads.",
    ),
}
"""Claims that order models -> what decides, and that in words."""
