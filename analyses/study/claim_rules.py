"""The rules of the verdicts: from evidence to findings, one function for each kind of claim.

The thresholds are ours, since the paper states none: "lost" is under half of the untouched model's accuracy, as in
its tipping points; "near-perfect" at least 90 % of it; "zero" under 10 %; "little" under 10 points. Shares of the
untouched model are taken place by place, on the same prompts. A claim binds the parameters of its rule.

How it fails: a rule about what is lost needs a model that retrieves: where the untouched one does not stand out from
its controls, or a cell that the rule needs was not run, the claim is not tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product

from analyses.study.evidence import Check, Evidence, Finding, Rule, judge, less, percent, points, untested
from analyses.study.groups import Estimate, Group, Place, accuracy, chance, common, compare
from analyses.study.views import tipping, tipping_spread
from hybridlens.display import many

NEAR_ZERO = 0.10
NEAR_PERFECT = 0.90
LITTLE = 0.10
CEILING = 0.90
FEW = 0.15
"""Share of heads that the paper finds enough: 5 of 32."""

GENERAL = ("glue", "tiny_grammar", "tiny_facts")
"""Tasks that need no retrieval from the prompt: the paper's, and the project's own for its tiny models."""

RETRIEVAL = ("tiny_retrieval", "tiny_recite")

READ_TWICE = "all heads, read twice"


def few(n_heads: int) -> int:
    """Heads of a layer that make up the paper's 15 %: 5 of 32, 2 of 8, 2 of 10, 3 of 16."""
    return math.ceil(FEW * n_heads)


def no_baseline(group: Group, what: str = "the untouched model") -> Finding | None:
    """Why nothing can be lost: the untouched model was not run, or retrieves no better than chance."""
    found, floor = accuracy(group), chance(group)
    if found is None:
        return untested(f"not run: {what}")
    if found.low <= max(NEAR_ZERO, floor or 0.0):
        return untested(f"{what} itself does not retrieve", percent(what, group))
    return None


def _kept(name: str, group: Group, full: Group, share: float = 0.5, above: bool = False) -> Check:
    """That a condition keeps under, or at least, a share of the untouched model's accuracy, place by place."""
    return Check(percent(name, group), compare(group, full, share), above)


def _against(what: str, full: Group, groups: Mapping[str, Group], share: float = 0.5, above: bool = False) -> Finding:
    """That each of the conditions, by their names, keeps under, or at least, a share of what the baseline reaches."""
    tests = [_kept(name, group, full, share, above) for name, group in groups.items()]
    return no_baseline(full, what) or _after(percent(what, full), judge(tests))


def _zero(name: str, group: Group) -> Check:
    return Check(percent(name, group), less(accuracy(group), NEAR_ZERO), above=False)


def _after(words: str, finding: Finding) -> Finding:
    """A finding with more words before what was measured."""
    return finding._replace(measured=words if finding.measured == "–" else f"{words}; {finding.measured}")


def ablated(evidence: Evidence) -> Finding:
    """Accuracy with no head kept is zero, in every version that was run."""
    groups = {phase: curve[0] for phase, curve in evidence.curves.items()}
    run = [phase for phase, group in groups.items() if group.scores] or ["generation"]
    return no_baseline(evidence.full()) or judge([_zero(f"k = 0, {phase}", groups[phase]) for phase in run])


def twice_ablated(evidence: Evidence) -> Finding:
    """Read twice, retrieval with no head kept is lost."""
    return _against(READ_TWICE, evidence.twice[evidence.n_heads], {"k = 0, read twice": evidence.twice[0]})


def twice_few(evidence: Evidence) -> Finding:
    """Where retrieval with one or two heads is lost read once, it is lost read twice."""
    full, full_once, curve = evidence.twice[evidence.n_heads], evidence.full(), evidence.curves["generation"]
    if (missing := no_baseline(full, READ_TWICE)) is not None:
        return missing
    once = {k: _kept(f"k = {k}, read once", curve[k], full_once) for k in range(1, min(3, evidence.n_heads))}
    if all(test.estimate is None for test in once.values()):
        return untested(f"not run: {'; '.join(test.words for test in once.values())}")
    words = "; ".join(test.words for test in once.values() if test.estimate is not None)
    lost = [k for k, test in once.items() if judge([test]).outcome == "holds"]
    if not lost:
        return untested("nothing to bring back: with 1 and 2 heads read once, retrieval is not shown to be lost", words)
    return _after(words, judge([_kept(f"k = {k}, read twice", evidence.twice[k], full) for k in lost]))


def tipping_range(evidence: Evidence) -> Finding:
    """The tipping point and its interval lie in 1 … 4."""
    if (missing := no_baseline(evidence.full())) is not None:
        return missing
    spread = tipping_spread(evidence.cells, evidence.base, "generation")
    curve = evidence.curves["generation"]
    if spread is None or len(curve) < 2 or evidence.n_heads not in curve:
        return untested("not run: k = 0 … n_heads, generation")
    ends = ["none" if end is None else str(end) for end in (tipping(curve), spread.low, spread.high)]
    words = f"tipping point {ends[0]} of {many(evidence.n_heads, 'head')} ({ends[1]} to {ends[2]})"
    low, high = spread.low or 0, spread.high or 0
    if low >= 1 and high <= 4:
        return Finding(words, "holds", "")
    if high < 1 or low > 4:
        return Finding(words, "fails", f"against it: the tipping point is {ends[0]}")
    return untested("undecided: the interval reaches beyond 1 … 4", words)


def abrupt(evidence: Evidence) -> Finding:
    """Accuracy at the tipping point is zero."""
    if (missing := no_baseline(evidence.full())) is not None:
        return missing
    curve = evidence.curves["generation"]
    at = tipping(curve) if evidence.n_heads in curve else None
    if at is None:
        return untested("no tipping point was found, or k = 0 … n_heads was not run")
    return judge([_zero(f"k = {at}", curve[at])])


def few_kept(evidence: Evidence, phase: str, dropped: bool = False) -> Finding:
    """15 % of heads, or all but 15 %, keep at least 90 % of the untouched model's accuracy."""
    some, full = few(evidence.n_heads), evidence.full(phase)
    k = evidence.n_heads - some if dropped else some
    words, group = f"k = {k} of {evidence.n_heads}, {phase}", evidence.curves[phase][k]
    test = _kept(words, group, full, NEAR_PERFECT, above=True)
    return no_baseline(full) or _after(percent("all heads", full), judge([test]))


def prefill_drop(evidence: Evidence) -> Finding:
    """One head dropped while reading too, and retrieval is lost."""
    full, k = evidence.full("prefill"), evidence.n_heads - 1
    test = _kept(f"k = {k} of {k + 1}, prefill", evidence.curves["prefill"][k], full)
    return no_baseline(full) or judge([test])


def prefill_alike(evidence: Evidence) -> Finding:
    """The two versions lie within 10 points, in the mean over every k but n_heads."""
    if (missing := no_baseline(evidence.full("prefill"))) is not None:
        return missing
    prefill, generation = evidence.curves["prefill"], evidence.curves["generation"]
    ks = [k for k in prefill if k in generation and k < evidence.n_heads]
    found = compare(over_k([prefill[k] for k in ks]), over_k([generation[k] for k in ks]))
    words = points("prefill less generation version, mean over k", found)
    finding = judge([Check(words, less(found, -LITTLE), above=True), Check(words, less(found, LITTLE), above=False)])
    return finding if found is None else finding._replace(measured=words)


def over_k(groups: Sequence[Group]) -> Group:
    """Mean score of every place over several k."""
    means = {place: sum(group.scores[place] for group in groups) / len(groups) for place in common(groups)}
    return Group(means, prompts=groups[0].prompts if groups else {})


def loses(evidence: Evidence, tasks: Sequence[str], much: bool = False, sparse: bool = False) -> Finding:
    """Each task loses more than 10 points, or none does, without attention or with the sparse k."""
    present, k = evidence.present(tasks), evidence.sparse_k(tasks) if sparse else 0
    if not present or k is None:
        return untested(f"not run: {' or '.join(tasks)} with {'no head' if much else 'fewer heads'} and with all")
    changes = {task: evidence.change(task, k) for task in present}
    heads = f"k = {k}" if much else f"k = {k} of {evidence.n_heads}"
    return judge(
        [Check(points(f"{task}, {heads}", c), less(c, -LITTLE), above=not much) for task, c in changes.items()]
    )


def glue_order(evidence: Evidence) -> Finding:
    """GLUE without attention is above GLUE with few heads."""
    k = evidence.sparse_k(["glue"])
    found = None if k is None else evidence.change("glue", 0, k)
    if found is None:
        return untested("not run: glue with no head and with few")
    return judge([Check(points(f"glue, k = 0 less k = {k}", found), found, above=True)])


def contrast(evidence: Evidence) -> Finding:
    """Without attention each retrieval task loses over 10 points more than each general task."""
    general = {task: evidence.change(task, 0) for task in evidence.present(GENERAL)}
    asked = {task: evidence.change(task, 0) for task in evidence.present(RETRIEVAL)}
    full, none = evidence.full("prefill"), evidence.curves["prefill"][0]
    if none.scores and no_baseline(full) is None:
        asked["needle in a haystack"] = compare(none, full)
    tests = [
        Check(f"{points(name, lost)} against {points(task, change)}", less(_gap(lost, change), -LITTLE), above=False)
        for (name, lost), (task, change) in product(asked.items(), general.items())
    ]
    if not tests:
        return untested("not run: a retrieval task and a general task, each with no head and with all")
    return judge(tests)


def _gap(a: Estimate | None, b: Estimate | None) -> Estimate | None:
    """`a` less `b`, which are independent."""
    if a is None or b is None:
        return None
    mean = a.mean - b.mean
    low = mean - math.hypot(a.mean - a.low, b.high - b.mean)
    high = mean + math.hypot(a.high - a.mean, b.mean - b.low)
    return Estimate(mean, low, high, min(a.n, b.n))


def combinations(
    evidence: Evidence, pairs: Sequence[tuple[str, str]], share: float = 0.5, above: bool = False
) -> Finding:
    """All of these combinations (reading, answering) keep under, or at least, a share of Keep-Keep.

    One that is to be above all of Keep-Keep needs room there.
    """
    groups = {f"{a.capitalize()}-{r.capitalize()}": evidence.modes[r, a] for r, a in pairs}  # generation first
    keep = evidence.modes["keep", "keep"]
    full = accuracy(keep)
    if share == 1 and full is not None and full.high > CEILING and no_baseline(keep) is None:
        return untested("Keep-Keep leaves no room above it", percent("Keep-Keep", keep))
    return _against("Keep-Keep", keep, groups, share, above)


def across_models(evidence: Evidence) -> Finding:
    """A claim that one model cannot decide."""
    return untested("needs studies of several models side by side")


def windowed(decide: Callable[[Evidence, set[Place], set[Place]], Finding]) -> Rule:
    """A claim about needles that have left attention's window, from the places of those and of those still in it."""

    def check(evidence: Evidence) -> Finding:
        window = evidence.facts.window
        if window is None:
            return untested("attention sees every token: no window")
        if evidence.base.semantics != "clean":
            return untested("cells do not say how many tokens published prompts have")
        gone, held = evidence.beyond_window(window)
        if not gone:
            return untested(f"not run: prompts so long that the needle leaves the window of {window} tokens")
        return decide(evidence, gone, held)

    return check


@windowed
def beyond_needs_reading(evidence: Evidence, gone: set[Place], held: set[Place]) -> Finding:
    """Beyond the window, retrieval is lost when the needle was omitted while reading."""
    keep, omit = (evidence.modes[reading, "keep"].within(gone) for reading in ("keep", "omit"))
    return _against("Keep-Keep beyond the window", keep, {"Keep-Omit beyond the window": omit})


@windowed
def omit_in_window_only(evidence: Evidence, gone: set[Place], held: set[Place]) -> Finding:
    """With the needle omitted while answering, what is left is retrieved inside the window."""
    beyond, inside = (evidence.modes["keep", "omit"].within(places) for places in (gone, held))
    floor = chance(inside) or 0.0
    reached = Check(percent("Omit-Keep in the window", inside), less(accuracy(inside), floor), above=True)
    return judge([reached, _zero("Omit-Keep beyond the window", beyond)])
