"""What a study found, in sentences that a reader of the paper knows: the report's first lines.

The model's retrieval with all heads and without, where it is lost; where clean and published semantics part; what the
needle's omission costs, reading and answering; what benchmarks lose; and how many of the paper's claims hold. Each
where it was run.

How it fails: pure; what was not run is not spoken of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from analyses.study.benchmarks.results import BenchmarkRow
from analyses.study.groups import Base, Estimate, accuracy, chance
from analyses.study.under_both import UnderBoth, splits
from analyses.study.verdict import HYPOTHESES, UNTESTED, Verdict
from analyses.study.views import curves, jrt, modes, tipping
from hybridlens.display import many
from hybridlens.results import Cell
from hybridlens.viz.words import heads, percent

_NAMED = 6
"""Tasks named in the finding."""

_WHILE = {"generation": "while answering", "prefill": "while reading and answering"}

_CLOSE = 0.1
"""An accuracy nearer to chance than this has little retrieval in it."""


def finding(
    cells: Sequence[Cell],
    rows: Sequence[BenchmarkRow],
    verdicts: Sequence[Verdict],
    base: Base,
    model: str,
    both: Sequence[UnderBoth] = (),
) -> tuple[str, ...]:
    """The sentences, the answer to the paper's question first.

    Args:
        cells: of any experiments of one model.
        rows: scores of benchmarks.
        verdicts: on the paper's claims.
        base: what the cells have in common.
        model: its name.
        both: the claims under both semantics; empty where one alone was run.
    """
    found = as_it_is(cells, base, model) if not base.n_heads else _retrieval(cells, base, model)
    claims = _claims(verdicts) if base.n_heads else "No claim of the paper can be asked of a model without attention."
    parted = _semantics(cells, base, both)
    return (*found, *parted, *_omitted(cells, base), *_benchmarks(rows, model), claims)


def as_it_is(cells: Sequence[Cell], base: Base, model: str) -> list[str]:
    """Accuracy of a model without attention, read once and twice."""
    groups = [curve[0] for curve in curves(cells, base).values() if curve]
    found = accuracy(groups[0]) if groups else None
    if found is None:
        return []
    floor = chance(groups[0])
    by = "" if floor is None else f", chance being {percent(floor)}"
    said = [f"Without any attention layer, {model} retrieves the needle with {_share(found)} accuracy{by}."]
    if floor is not None and found.mean - floor < _CLOSE:
        said.append("That is close to chance.")
    if base.jrt_lengths and any(cell.jrt for cell in cells):
        once, twice = jrt(cells, base).accuracy.mean[:, 0].tolist()
        said.append(f"At equal contexts, reading once gives {percent(once)} and reading twice {percent(twice)}.")
    return said


def _retrieval(cells: Sequence[Cell], base: Base, model: str) -> list[str]:
    """Accuracy with all heads and with the fewest, and where it falls; the first sentence says the most."""
    said: list[str] = []
    for phase, curve in curves(cells, base).items():
        most, least = (accuracy(curve[end(curve)]) if curve else None for end in (max, min))
        if most is None or least is None or len(curve) < 2:
            continue
        k, n, floor, tip = min(curve), max(curve), chance(curve[max(curve)]), tipping(curve)
        fall = "accuracy never falls under half" if tip is None else f"accuracy falls under half at {_few(tip)}"
        left = f"{_share(least)} {'without attention' if k == 0 else f'with {heads(k)} of each layer'}"
        if said:
            said.append(f"With heads dropped {_WHILE[phase]}, {fall}; {left}.")
            continue
        every = f"with {'all ' if n == base.n_heads else ''}{heads(n)} of each layer"
        by = "" if floor is None else f", chance being {percent(floor)}"
        change = "takes" if least.mean < most.mean / 2 else "leaves"
        ends = (
            f"from {_share(most)} {every} to {left}" if change == "takes" else f"at {left}, of {_share(most)} {every}"
        )
        said.append(
            f"Dropping attention heads {_WHILE[phase]} {change} {model}'s retrieval of the needle {ends}{by}; {fall}."
        )
        if floor is not None and most.mean - floor < _CLOSE:
            said.append("That is close to chance: there is little retrieval here to lose, whatever the heads.")
    return said


def _few(k: int) -> str:
    """A number of heads kept as the paper has it: "k = 1 head"."""
    return f"k = {k} {'head' if k == 1 else 'heads'}"


def _omitted(cells: Sequence[Cell], base: Base) -> list[str]:
    """What is left with the needle's attention weights set to 0, while answering and while reading."""
    found = modes(cells, base)
    answering, reading, both = (
        accuracy(found[pair]) for pair in (("keep", "omit"), ("omit", "keep"), ("keep", "keep"))
    )
    if answering is None or both is None:
        return []
    read = "" if reading is None else f", hiding it only while reading {_share(reading)}"
    return [
        f"Hiding the needle from attention while answering leaves {_share(answering)} accuracy{read} ({_share(both)} "
        "with all heads and nothing hidden)."
    ]


def _semantics(cells: Sequence[Cell], base: Base, both: Sequence[UnderBoth]) -> list[str]:
    """Where clean and published semantics part: conditions first, then claims; one sentence where they do not."""
    if not both:
        return []
    found, turned = splits(cells, base), [one for one in both if one.turns]
    said: list[str] = []
    if found:
        more = f" The same goes for {many(len(found) - 1, 'more condition')}." if len(found) > 1 else ""
        said.append(
            "The method as described (clean semantics) and as the authors' code has it (published semantics) part. "
            f"{found[0].summary()}.{more}"
        )
    said += [
        f"The paper's claim “{one.own.claim.rstrip('.')}” {one.clean.outcome} under clean semantics and "
        f"{one.published.outcome} under published semantics."
        for one in turned
    ]
    same = (
        "Retrieval is lost in the same conditions whether heads and weights are changed as described (clean semantics) "
        "or as the authors' code has it (published semantics), and no claim of the paper turns."
    )
    return said or [same]


def _benchmarks(rows: Sequence[BenchmarkRow], model: str) -> list[str]:
    """Each task's main score with the fewest heads and with all."""
    parts: list[str] = []
    ks = sorted({row.k for row in rows})
    for task in dict.fromkeys(row.task for row in rows):
        mine = [row for row in rows if row.task == task]
        main = {row.k: row for row in mine if row.metric == mine[0].metric}
        if len(ks) > 1 and {ks[0], ks[-1]} <= set(main) and main[ks[0]].in_percent:
            whole = f" ({percent(main[ks[-1]].value)}{'' if parts else f' with {heads(ks[-1])}'})"
            parts.append(f"{percent(main[ks[0]].value)} on {task}{whole}")
        elif ks == [0] and 0 in main and main[0].in_percent:  # no attention: nothing to compare with
            parts.append(f"{percent(main[0].value)} on {task}")
    if not parts:
        return []
    more = f"; {len(parts) - _NAMED} more tasks below" if len(parts) > _NAMED else ""
    kept = "Without attention" if ks[0] == 0 else f"With {heads(ks[0])} of each layer"
    return [f"{kept}, {model} scores {', '.join(parts[:_NAMED])}{more}."]


def _claims(verdicts: Sequence[Verdict]) -> str:
    """How many of the paper's claims hold."""
    counts = Counter(found.outcome for found in verdicts)
    tested = len(verdicts) - counts[UNTESTED]
    if not tested:
        return "No claim of the paper was tested."
    failed = Counter(found.hypothesis for found in verdicts if found.outcome == "fails")
    fails = ", ".join(
        f"{f'{n} of ' if sum(failed.values()) > 1 else ''}{name} ({HYPOTHESES[name]})" for name, n in failed.items()
    )
    against = f", {counts['fails']} {'fails' if counts['fails'] == 1 else 'fail'}: {fails}" if fails else ""
    hold = f"{counts['holds']} {'holds' if counts['holds'] == 1 else 'hold'}"
    rest = f"{counts[UNTESTED]} {'was' if counts[UNTESTED] == 1 else 'were'} not tested here"
    if tested == 1:
        became = "holds" if counts["holds"] else f"fails: {fails}"
        return f"The one claim of the paper that was tested {became}; {rest}."
    return f"Of the {tested} claims of the paper that were tested, {hold}{against}; {rest}."


def _share(found: Estimate) -> str:
    return percent(found.mean)
