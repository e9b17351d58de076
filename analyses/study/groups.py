"""Cells picked by their keys and put together by condition, and what a mean over them is worth.

A `Group` holds the scores of one condition by their place in the grid. Means and differences are shares of the
highest score, with the intervals of `hybridlens.results.statistics`; a difference is taken place by place. A prompt
that stands at several places, as the published builder makes them of short contexts, counts once: it was answered once,
and an interval over places would take one answer for many.

How it fails: cells of several models raise `ResultsError`. Nothing here refuses an empty group: `accuracy` and
`compare` give None for one, which the caller states.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar

from hybridlens import niah
from hybridlens.display import Displayed
from hybridlens.errors import ResultsError
from hybridlens.results import Cell, CellKey, Interval, bootstrap_interval, paired_difference

Place: TypeAlias = tuple[int, float]
"""Length in tokens and depth in percent."""

K = TypeVar("K")
T = TypeVar("T")


class _Base(NamedTuple):
    """Fields of `Base`."""

    n_heads: int
    semantics: str = "clean"
    boundary: str = "last_prompt_token"
    needle: str = "paper"
    jrt_lengths: tuple[tuple[int, int], ...] = ()
    lengths: tuple[int, ...] = ()


class Base(Displayed, _Base):
    """What a study holds fixed, where an experiment does not vary it.

    Attributes:
        n_heads: attention heads of a layer; k = n_heads is the untouched model.
        semantics: as configured.
        boundary: as configured.
        needle: name of the needle of the paper's own experiments.
        jrt_lengths: (length read once, length read twice) with equal contexts; empty for none.
        lengths: tokens of the main grid's prompts, read once; empty for those of all cells.
    """

    __slots__ = ()


@dataclass(frozen=True)
class Group:
    """The scores of one condition, 0 … `hybridlens.niah.MAX_SCORE`.

    Attributes:
        scores: of prompts with a needle, by place.
        controls: of prompts without, by length.
        prompts: digests of those with a needle, by place; a place without one stands for a prompt of its own.
    """

    scores: dict[Place, float] = field(default_factory=dict[Place, float])
    controls: dict[int, float] = field(default_factory=dict[int, float])
    prompts: dict[Place, str] = field(default_factory=dict[Place, str])

    def within(self, places: Collection[Place]) -> Group:
        """The part at these places, with the controls of their lengths."""
        lengths = {length for length, _ in places}
        return Group(
            {place: score for place, score in self.scores.items() if place in places},
            {length: score for length, score in self.controls.items() if length in lengths},
            self.prompts,
        )

    def at_lengths(self, lengths: Mapping[int, int]) -> Group:
        """The part at these lengths, each under another length."""

        def there(held: Mapping[Place, T]) -> dict[Place, T]:
            return {(lengths[length], depth): one for (length, depth), one in held.items() if length in lengths}

        controls = {lengths[length]: score for length, score in self.controls.items() if length in lengths}
        return Group(there(self.scores), controls, there(self.prompts))


class Groups(dict[K, Group]):
    """Scores by condition; a condition without cells has an empty group."""

    def __missing__(self, condition: K) -> Group:
        return Group()


class _Estimate(NamedTuple):
    """Fields of `Estimate`."""

    mean: float
    low: float
    high: float
    n: int


class Estimate(Displayed, _Estimate):
    """A mean, its 95 % interval, and over how many prompts."""

    __slots__ = ()

    def summary(self) -> str:
        """The mean and its interval."""
        return f"{self.mean:.1%}, 95 %: {self.low:.1%} to {self.high:.1%}, n = {self.n}"


def selected(cells: Iterable[Cell], base: Base, *free: str, **fixed: object) -> list[Cell]:
    """Cells of a study's own settings and lengths, of any phase and k unless fixed.

    Args:
        cells: of any experiments.
        base: the study's own settings.
        free: names of the fields of `CellKey` that may have any value.
        fixed: fields of other than the study's own values, by name.

    Raises:
        ResultsError: cells of two models were given.
    """
    cells = list(cells)
    models = list(dict.fromkeys(cell.model for cell in cells))
    if len(models) > 1:
        raise ResultsError(f"cells of {models[0]} and of {models[1]} given together; give those of one model")
    own: dict[str, object] = {name: CellKey._field_defaults[name] for name in ("jrt", "reading", "answering", "scope")}
    own |= {"ranking": "", "needle": base.needle, "semantics": base.semantics, "boundary": base.boundary, **fixed}
    wanted = [(name, value) for name, value in own.items() if name not in free]
    return [
        cell
        for cell in cells
        if (cell.jrt or not base.lengths or cell.length in base.lengths)
        and all(getattr(cell, name) == value for name, value in wanted)
    ]


def grouped(
    cells: Iterable[Cell], base: Base, by: Callable[[Cell], Hashable], *free: str, **fixed: object
) -> Groups[Any]:
    """`selected` cells put together by condition, `by` of the cell, in the order of the cells."""
    found: Groups[Any] = Groups()
    for cell in selected(cells, base, *free, **fixed):
        group = found.setdefault(by(cell), Group())
        if cell.depth is None:
            group.controls[cell.length] = float(cell.score)
        else:
            place = cell.length, float(cell.depth)
            group.scores[place], group.prompts[place] = float(cell.score), cell.prompt_hash
    return found


def once(*groups: Group) -> list[Place]:
    """The places that all groups have, in order, of which each stands for a prompt of its own in every group."""
    places: list[Place] = []
    seen: list[set[str]] = [set() for _ in groups]
    for place in sorted(common(groups)):
        prompts = [group.prompts.get(place, str(place)) for group in groups]
        if not any(prompt in known for prompt, known in zip(prompts, seen, strict=True)):
            places.append(place)
            for prompt, known in zip(prompts, seen, strict=True):
                known.add(prompt)
    return places


def distinct(cells: Iterable[Cell]) -> list[Cell]:
    """Cells with a needle of which each k has every prompt once, at its first place."""
    found: dict[tuple[int, str], Cell] = {}
    for cell in sorted(cells, key=lambda one: (one.length, one.depth or 0)):
        found.setdefault((cell.k, cell.prompt_hash), cell)
    return list(found.values())


def common(groups: Iterable[Group]) -> set[Place]:
    """Places at which every group has a score."""
    sets = [set(group.scores) for group in groups]
    return set.intersection(*sets) if sets else set()


def compare(a: Group, b: Group, factor: float = 1.0) -> Estimate | None:
    """Mean of `a` minus `factor` times `b` at the same places, with its interval over prompts; None without one.

    Args:
        a: scores.
        b: scores.
        factor: 0 … 1; with a half, at least 0 means at least half as good.
    """
    pairs = [(a.scores[place], factor * b.scores[place]) for place in once(a, b)]
    if not pairs:
        return None
    interval = paired_difference([x for x, _ in pairs], [y for _, y in pairs], highest=niah.MAX_SCORE)
    return _estimate([x - y for x, y in pairs], interval)


def accuracy(group: Group) -> Estimate | None:
    """Mean score of the prompts with a needle, with its interval over prompts; None without one."""
    scores = [group.scores[place] for place in once(group)]
    return _estimate(scores, bootstrap_interval(scores, highest=niah.MAX_SCORE)) if scores else None


def chance(group: Group) -> float | None:
    """Mean of the controls as a share of the highest score; None without one."""
    return _share(list(group.controls.values())) if group.controls else None


def _estimate(scores: Sequence[float], interval: Interval) -> Estimate:
    """Of scores and the interval of their mean, as shares of the highest score."""
    return Estimate(_share(scores), interval.low / niah.MAX_SCORE, interval.high / niah.MAX_SCORE, len(scores))


def _share(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores) / niah.MAX_SCORE
