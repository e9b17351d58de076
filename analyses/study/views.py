"""The paper's figures as views: selections of a study's cells, and what is stated of each, with intervals.

Every function here takes the cells of a study, of any experiments, and picks those it needs by their keys
(`analyses.study.groups`); results are of the types of `analyses.study.view_types`. Pure: no model, no file.

How it fails: every view raises `ResultsError` where its cells are all missing, which names the experiment that makes
them; single conditions without cells are NaN, with n = 0, so that an unfinished study can be looked at. The
intervals say how other prompts might come out, not other models (`hybridlens.results.statistics`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from analyses.heads.ranking import SCOPES
from analyses.study.groups import (
    Base,
    Estimate,
    Group,
    Groups,
    accuracy,
    chance,
    common,
    compare,
    distinct,
    grouped,
    selected,
)
from analyses.study.view_types import (
    ANSWERINGS,
    NEAR,
    READINGS,
    Accuracies,
    Condition,
    Contrast,
    Differences,
    Differing,
    Fig2,
    JrtResult,
    Maps,
    NeedlesResult,
    SemanticsDifference,
    Table1,
)
from hybridlens import niah
from hybridlens.decoding import BOUNDARIES
from hybridlens.errors import ResultsError
from hybridlens.results import Cell, TippingInterval, tipping_interval
from hybridlens.results.cells import PHASES


def fig2(cells: Sequence[Cell], base: Base) -> Fig2:
    """Accuracy against heads kept, for the versions that were run: `curves`."""
    found = {phase: curve for phase, curve in curves(cells, base).items() if curve}
    _require(found, "fig2")
    ks = tuple(sorted({k for curve in found.values() for k in curve}))
    return Fig2(
        phases=tuple(found),
        ks=ks,
        accuracy=_accuracies([curve[k] for curve in found.values() for k in ks], len(found), len(ks)),
        tipping=tuple(tipping(curve) for curve in found.values()),
        intervals=tuple(tipping_spread(cells, base, phase) for phase in found),
    )


def curves(cells: Iterable[Cell], base: Base) -> dict[str, Groups[int]]:
    """Version -> k -> scores of figure 2, k ascending; empty for a version that was not run.

    Of each version those k are taken that were run at every place that any k was run at, since other experiments
    add some k on a coarser grid; all k where none is so.
    """
    found = grouped(cells, base, lambda cell: (cell.phase, cell.k))
    return {phase: _complete(_by_second(found, phase)) for phase in PHASES}


def _complete(curve: Mapping[int, Group]) -> Groups[int]:
    """Of groups by k those that have a score wherever any has one, k ascending; all where none has."""
    scored = {k: group for k, group in sorted(curve.items()) if group.scores}
    places = {place for group in scored.values() for place in group.scores}
    return Groups({k: group for k, group in scored.items() if len(group.scores) == len(places)} or scored)


def tipping(curve: Mapping[int, Group]) -> int | None:
    """The largest k at which accuracy falls under half of that at the largest k; None where it never does.

    Args:
        curve: k -> its scores. Each is compared with the largest k at the places that both were run at.
    """
    if not curve:
        return None
    ks = sorted(curve)
    differences = {k: compare(curve[k], curve[ks[-1]], 0.5) for k in ks[:-1]}
    fallen = [k for k, found in differences.items() if found is not None and found.mean < 0]
    return max(fallen, default=None)


def tipping_spread(cells: Sequence[Cell], base: Base, phase: str) -> TippingInterval | None:
    """Where the tipping point of figure 2 lies when prompts are drawn again; None where prompts lack some k."""
    curve = curves(cells, base)[phase]
    if len({frozenset(group.scores) for group in curve.values()}) != 1:
        return None
    mine = distinct(selected(cells, base, phase=phase, control=False))
    return tipping_interval([cell for cell in mine if cell.k in curve], phase)


def jrt(cells: Sequence[Cell], base: Base) -> JrtResult:
    """Just read twice against once, generation version, at equal contexts.

    Raises:
        ResultsError: `base` does not say which lengths to compare.
    """
    pairs = base.jrt_lengths
    once = grouped(cells, base, lambda cell: cell.k, phase="generation")
    twice = grouped(cells, base, lambda cell: cell.k, phase="generation", jrt=True)
    _require(twice, "fig3-jrt")
    if not pairs:
        raise ResultsError("no lengths to compare given; expected pairs of lengths as base.jrt_lengths")
    ks = tuple(sorted(k for k, group in twice.items() if group.scores))
    own, back = {first: first for first, _ in pairs}, {second: first for first, second in pairs}
    short = [once[k].at_lengths(own) for k in ks]
    long = [twice[k].at_lengths(back) for k in ks]
    full = twice[base.n_heads].at_lengths(back)
    return JrtResult(
        ks=ks,
        lengths=pairs,
        accuracy=_accuracies([*short, *long], 2, len(ks)),
        gain=_differences(list(map(compare, long, short)), len(ks)),
        above_half=_differences([compare(group, full, 0.5) for group in long], len(ks)),
    )


def table1(cells: Sequence[Cell], base: Base) -> Table1:
    """Accuracy under every combination of manipulations, all heads kept."""
    found = modes(cells, base)
    _require({names: group for names, group in found.items() if names != ("keep", "keep")}, "table1")
    groups = [found[reading, answering] for reading in READINGS for answering in ANSWERINGS]
    against = [compare(group, found["keep", "keep"]) for group in groups]
    shape = len(READINGS), len(ANSWERINGS)
    return Table1(READINGS, ANSWERINGS, _accuracies(groups, *shape), _differences(against, *shape))


def modes(cells: Iterable[Cell], base: Base) -> Groups[tuple[str, str]]:
    """(reading, answering) -> scores with all heads kept."""
    return grouped(
        cells, base, lambda c: (c.reading, c.answering), "reading", "answering", phase="generation", k=base.n_heads
    )


def maps(cells: Sequence[Cell], base: Base, read_twice: bool = False) -> Maps:
    """Retrieval maps of every condition of figure 2 and table 1, or of figure 3 read twice."""
    found = grouped(cells, base, Condition.of, "reading", "answering", jrt=read_twice)
    _require(found, "fig3-jrt" if read_twice else "maps")
    conditions = tuple(sorted(found, key=lambda condition: condition.place))
    places = [place for group in found.values() for place in group.scores]
    lengths = tuple(sorted({length for length, _ in places}))
    depths = tuple(sorted({depth for _, depth in places}))
    score = [[[found[c].scores.get((n, d), math.nan) for d in depths] for n in lengths] for c in conditions]
    control = [[found[c].controls.get(n, math.nan) for n in lengths] for c in conditions]
    shape = len(conditions), len(lengths), len(depths)
    return Maps(
        conditions,
        lengths,
        depths,
        torch.tensor(score).reshape(shape) / niah.MAX_SCORE,
        torch.tensor(control) / niah.MAX_SCORE,
    )


def needles(cells: Sequence[Cell], base: Base) -> NeedlesResult:
    """Accuracy for several needles, at the places that all of them were run at.

    Raises:
        ResultsError: no place common to all needles.
    """
    found = grouped(cells, base, lambda cell: (cell.needle, cell.k), "needle", phase="generation")
    names = tuple(sorted(dict.fromkeys(name for name, _ in found), key=lambda name: name != base.needle))
    _require(set(names) - {base.needle}, "needles")
    by_k = {name: _by_second(found, name) for name in names}
    ks = tuple(sorted(set.intersection(*map(set, by_k.values()))))
    places = common(by_k[name][k] for name in names for k in ks)
    if not places:
        raise ResultsError(f"no place and k at which all of {', '.join(names)} were run; run the study to its end")
    groups = {(name, k): by_k[name][k].within(places) for name in names for k in ks}
    return NeedlesResult(
        needles=names,
        ks=ks,
        accuracy=_accuracies(list(groups.values()), len(names), len(ks)),
        across=_accuracies([_means([groups[name, k] for name in names]) for k in ks], len(ks)),
    )


def scopes(cells: Sequence[Cell], base: Base) -> Contrast:
    """Heads that compete inside their layer against heads that compete in the whole model."""
    return _contrast(cells, base, "scope", (SCOPES[0], SCOPES[1]))


def boundaries(cells: Sequence[Cell], base: Base) -> Contrast:
    """The study's own phase boundary against the other."""
    other = next(name for name in BOUNDARIES if name != base.boundary)
    return _contrast(cells, base, "boundary", (base.boundary, other))


def _contrast(cells: Sequence[Cell], base: Base, setting: str, values: tuple[str, str]) -> Contrast:
    """Two values of one field of the key, generation version, at the places that both were run at."""
    found = grouped(cells, base, lambda cell: (getattr(cell, setting), cell.k), setting, phase="generation")
    first, second = (_by_second(found, value) for value in values)
    ks = tuple(sorted(k for k in second if k in first and common([first[k], second[k]])))
    _require(ks, setting)
    places = {k: common([first[k], second[k]]) for k in ks}
    first, second = ({k: curve[k].within(places[k]) for k in ks} for curve in (first, second))
    return Contrast(
        setting=setting,
        values=values,
        ks=ks,
        accuracy=_accuracies([*first.values(), *second.values()], 2, len(ks)),
        difference=_differences([compare(second[k], first[k]) for k in ks], len(ks)),
        tipping=(tipping(first), tipping(second)),
    )


def semantics_difference(cells: Sequence[Cell], base: Base) -> SemanticsDifference:
    """What changes between clean and published semantics: every cell that was run under both."""
    clean = {cell.key: cell for cell in cells if cell.semantics == "clean"}
    published = {cell.key._replace(semantics="clean"): cell for cell in cells if cell.semantics == "published"}
    pairs = [Differing(cell, published[key]) for key, cell in clean.items() if key in published]
    _require(pairs, "semantics")
    everywhere = base._replace(lengths=())  # the two may meet beyond the main grid
    found = [
        grouped(side, everywhere, Condition.of, "reading", "answering", semantics=name)
        for name, side in (("clean", [p.clean for p in pairs]), ("published", [p.published for p in pairs]))
    ]
    conditions = tuple(sorted(found[0], key=lambda condition: condition.place))
    return SemanticsDifference(
        conditions=conditions,
        accuracy=_accuracies([side[c] for side in found for c in conditions], 2, len(conditions)),
        difference=_differences([compare(found[1][c], found[0][c]) for c in conditions], len(conditions)),
        n_cells=len(pairs),
        n_text=sum(p.clean.text != p.published.text for p in pairs),
        n_score=sum(p.clean.score != p.published.score for p in pairs),
        differing=tuple(p for p in pairs if (p.clean.text, p.clean.score) != (p.published.text, p.published.score)),
    )


def near_ties(cells: Iterable[Cell], below: float = NEAR) -> list[Cell]:
    """The cells in which two logits came closer than `below`: rounding may decide such a token."""
    return [cell for cell in cells if cell.margin is not None and cell.margin < below]


def _by_second(found: Mapping[tuple[Any, int], Group], first: str) -> Groups[int]:
    """Of groups by two names those of one, by the other."""
    return Groups({second: group for (name, second), group in found.items() if name == first})


def _means(groups: Sequence[Group]) -> Group:
    """The mean scores of several groups as one group, in which each stands for a prompt and its control."""
    return Group(
        {(i, 0.0): fmean(one.scores.values()) for i, one in enumerate(groups)},
        {i: fmean(one.controls.values()) for i, one in enumerate(groups) if one.controls},
    )


def _require(found: object, experiment: str) -> None:
    if not found:
        raise ResultsError(f"no cell of {experiment} to show; run it: hybridlens reproduce {experiment}")


def _accuracies(groups: Sequence[Group], *shape: int) -> Accuracies:
    """Groups in row-major order as tensors of a shape."""
    chances = [math.nan if (found := chance(group)) is None else found for group in groups]
    return Accuracies(
        **_tensors([accuracy(group) for group in groups], shape),
        chance=torch.tensor(chances, dtype=torch.float32).reshape(shape),
        n_control=torch.tensor([len(group.controls) for group in groups], dtype=torch.int64).reshape(shape),
    )


def _differences(estimates: Sequence[Estimate | None], *shape: int) -> Differences:
    """Estimates in row-major order as tensors of a shape."""
    return Differences(**_tensors(estimates, shape))


def _tensors(estimates: Sequence[Estimate | None], shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    unknown = Estimate(math.nan, math.nan, math.nan, 0)
    table = torch.tensor([found or unknown for found in estimates], dtype=torch.float64).reshape(*shape, 4)
    mean, low, high = table[..., :3].float().unbind(-1)
    return {"mean": mean, "low": low, "high": high, "n": table[..., 3].long()}
