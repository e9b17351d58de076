"""From hook points and the axes to go over to one target for each place, and the axes of the result.

``over`` names axes by their letters. Each is gone over entry by entry, but recurrent channels ("c"), which are taken in
`CHANNEL_BLOCKS` blocks unless a size is given: ``{"c": 8}`` takes eight at a time, ``{"p": [4, 9, slice(20, 30)]}``
only these positions, the last ten together.

How it fails: an axis that a hook point lacks, and hook points of different sizes, raise one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, NamedTuple, TypeAlias

from analyses.patching.results import Axis
from analyses.patching.targets import Index, Patch, Target, index_words, locate
from hybridlens.boundary_words import Unchecked
from hybridlens.errors import InputError
from hybridlens.hooks import NameFilter, resolve
from hybridlens.model import HybridLens
from hybridlens.shapes import AXES

Over: TypeAlias = Annotated[str | Sequence[str] | Mapping[str, int | Sequence[Index] | None], Unchecked("axes")]
"""Axis letters; or, by letter, how many entries at a time, or which ones; None for the usual."""

CHANNEL_BLOCKS = 8


class Grid(NamedTuple):
    """Patches in the order of a result's values, the last axis fastest."""

    patches: Sequence[Patch]
    axes: tuple[Axis, ...]
    hooks: tuple[str, ...]

    @property
    def shape(self) -> list[int]:
        """Of the result's values."""
        return [len(axis.labels) for axis in self.axes]


def expand(lens: HybridLens, hooks: NameFilter, over: Over, tokens: Sequence[str]) -> Grid:
    """A target for each hook point and each entry of the axes gone over; `tokens` are for the positions' labels.

    Raises:
        UnknownNameError: the model lacks a hook point, or none was given.
        InputError: a hook point that is read-only, an axis that it lacks, or entries out of range.
    """
    names = resolve(hooks, lens.hook_dict)
    asked: Mapping[str, int | Sequence[Index] | None] = over if isinstance(over, Mapping) else dict.fromkeys(over)
    steps: dict[str, list[Index]] = {}
    for letter, wanted in asked.items():
        sizes: dict[int, str] = {}
        for name in names:
            locate(lens, Target(name, {letter: slice(0)}), len(tokens))  # refuses an axis that the point lacks
            spec = lens.hook_points[name]
            size = spec.sizes[spec.axes.index(letter)]
            sizes[len(tokens) if size is None else size] = name
        if len(sizes) > 1:
            found = ", ".join(f"{size} at {name}" for size, name in sizes.items())
            raise InputError(f"axis {letter} ({AXES[letter]}) has different sizes: {found}; go over them one by one")
        steps[letter] = _steps(letter, wanted, next(iter(sizes)))
    targets = [
        Target(name, dict(zip(steps, place, strict=True))) for name in names for place in product(*steps.values())
    ]
    for target in targets:
        locate(lens, target, len(tokens))
    axes = [Axis(AXES[letter], tuple(_label(letter, index, tokens) for index in steps[letter])) for letter in steps]
    return Grid(targets, (_hook_axis(names), *axes), tuple(names))


def _steps(letter: str, wanted: int | Sequence[Index] | None, size: int) -> list[Index]:
    """The entries of an axis, in the portions in which they are gone over."""
    if wanted is None:
        wanted = -(-size // CHANNEL_BLOCKS) if letter == "c" else 1
    if isinstance(wanted, int):
        if wanted < 1:
            raise InputError(f"axis {letter} ({AXES[letter]}) in blocks of {wanted}, expected at least 1")
        starts = range(0, size, wanted)
        return [start if wanted == 1 else tuple(range(start, min(start + wanted, size))) for start in starts]
    if not wanted:
        raise InputError(f"axis {letter} ({AXES[letter]}): no entries were given, expected at least one")
    return list(wanted)


def _hook_axis(names: Sequence[str]) -> Axis:
    """Layers where the points are the same in each, else the points' names."""
    split = [name.split(".", 2) for name in names]
    if all(len(part) == 3 for part in split) and len({part[2] for part in split}) == 1:
        return Axis("layer", tuple(part[1] for part in split))
    return Axis("hook", tuple(names))


def _label(letter: str, index: Index, tokens: Sequence[str]) -> str:
    """An entry's label; a position's has its token."""
    if letter in ("p", "k") and isinstance(index, int):
        return f"{index % len(tokens)} {tokens[index]}"
    return index_words(index)
