"""Cells picked by their keys and put together by condition, and what a mean over them is worth.

A `Group` holds the scores of one condition by their place in the grid. Means and differences are shares of the
highest score, with the intervals of `hybridlens.results.statistics`; a difference is taken place by place.

How it fails: cells of several models raise `ResultsError`. Nothing here refuses an empty group: `measure` and
`compare` give None for one, which the caller states.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from hybridlens import niah
from hybridlens.errors import ResultsError
from hybridlens.results import Cell, CellKey, bootstrap_interval, paired_difference

Place: TypeAlias = tuple[int, float]
"""Length in tokens and depth in percent."""


class Base(NamedTuple):
    """What a study holds fixed, where an experiment does not vary it.

    Attributes:
        n_heads: attention heads of a layer; k = n_heads is the untouched model.
        semantics: as configured.
        boundary: as configured.
        needle: name of the needle of the paper's own experiments.
        jrt_lengths: (length read once, length read twice) with equal contexts; empty for none.
    """

    n_heads: int
    semantics: str = "clean"
    boundary: str = "last_prompt_token"
    needle: str = "paper"
    jrt_lengths: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Group:
    """The scores of one condition, 0 … `hybridlens.niah.MAX_SCORE`.

    Attributes:
        scores: of prompts with a needle, by place.
        controls: of prompts without, by length.
    """

    scores: dict[Place, float] = field(default_factory=dict[Place, float])
    controls: dict[int, float] = field(default_factory=dict[int, float])

    def within(self, places: Collection[Place]) -> Group:
        """The part at these places, with the controls of their lengths."""
        lengths = {length for length, _ in places}
        return Group(
            {place: score for place, score in self.scores.items() if place in places},
            {length: score for length, score in self.controls.items() if length in lengths},
        )


class Estimate(NamedTuple):
    """A mean, its 95 % interval, and over how many prompts."""

    mean: float
    low: float
    high: float
    n: int


def grouped(
    cells: Iterable[Cell], base: Base, by: Callable[[Cell], Hashable], *free: str, **fixed: object
) -> dict[Any, Group]:
    """Cells of a study's own settings, put together by condition.

    Args:
        cells: of any experiments.
        base: the study's own settings.
        by: cell -> its condition.
        free: names of the fields of `CellKey` that may have any value.
        fixed: fields of other than the study's own values, by name.

    Returns:
        condition -> its scores, in the order of the cells; phase and k are always free unless fixed.

    Raises:
        ResultsError: cells of two models were given.
    """
    own: dict[str, object] = {name: CellKey._field_defaults[name] for name in ("jrt", "reading", "answering", "scope")}
    own |= {"ranking": "", "needle": base.needle, "semantics": base.semantics, "boundary": base.boundary, **fixed}
    wanted = [(name, value) for name, value in own.items() if name not in free]
    found: dict[Any, Group] = {}
    model: str | None = None
    for cell in cells:
        if model is not None and cell.model != model:
            raise ResultsError(f"cells of {model} and of {cell.model} given together; give those of one model")
        model = cell.model
        if any(getattr(cell, name) != value for name, value in wanted):
            continue
        group = found.setdefault(by(cell), Group())
        if cell.depth is None:
            group.controls[cell.length] = float(cell.score)
        else:
            group.scores[cell.length, float(cell.depth)] = float(cell.score)
    return found


def common(groups: Iterable[Group]) -> set[Place]:
    """Places at which every group has a score."""
    sets = [set(group.scores) for group in groups]
    return set.intersection(*sets) if sets else set()


def measure(scores: Iterable[float]) -> Estimate | None:
    """Mean of scores as a share of the highest, with its interval over prompts; None without a score."""
    values = list(scores)
    if not values:
        return None
    low, high = bootstrap_interval(values, highest=niah.MAX_SCORE)
    return Estimate(_share(values), low / niah.MAX_SCORE, high / niah.MAX_SCORE, len(values))


def compare(a: Group, b: Group, factor: float = 1.0, shift: Callable[[Place], Place] | None = None) -> Estimate | None:
    """Mean of `a` minus `factor` times `b` at the same places, with its interval over places; None without one.

    Args:
        a: scores.
        b: scores.
        factor: 0 … 1; with a half, at least 0 means at least half as good.
        shift: from a place of `a` to that of `b` which it is compared with; itself when left out.
    """
    pairs: list[tuple[float, float]] = []
    for place, score in sorted(a.scores.items()):
        other = b.scores.get(place if shift is None else shift(place))
        if other is not None:
            pairs.append((score, factor * other))
    if not pairs:
        return None
    low, high = paired_difference([x for x, _ in pairs], [y for _, y in pairs], highest=niah.MAX_SCORE)
    mean = _share([x - y for x, y in pairs])
    return Estimate(mean, low / niah.MAX_SCORE, high / niah.MAX_SCORE, len(pairs))


def accuracy(group: Group | None) -> Estimate | None:
    """`measure` of the prompts with a needle, in the order of their places."""
    return None if group is None else measure(score for _, score in sorted(group.scores.items()))


def chance(group: Group | None) -> float | None:
    """Mean of the controls as a share of the highest score; None without one."""
    return _share(list(group.controls.values())) if group is not None and group.controls else None


def _share(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores) / niah.MAX_SCORE
