"""Targets: what one patch replaces, as values.

A `Target` is a hook point and, on its axes (letters of `hybridlens.shapes.AXES`: "p" position, "k" key, "h" head,
"g" key/value head, "c" recurrent channel, "x" expert, …), an index; axes left out are taken whole. A patch is one
target or several that are replaced together.

`locate` checks a target against a model and a prompt's length, and says where in the forward pass it acts: its first
layer, and its first position, before which nothing changes.

How it fails: a hook point, axis or index that does not exist, and a point that is read-only, raise one line that says
what there is. An expert can be named on `mlp.hook_router_logits` only: `hook_expert_weights` and
`hook_expert_indices` are ordered by rank, so that one entry stands for different experts in two runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from hybridlens.errors import InputError
from hybridlens.hooks import HookSpec, check_name
from hybridlens.model import HybridLens
from hybridlens.shapes import AXES

Index: TypeAlias = int | Sequence[int] | slice
"""Which entries of an axis; negative ones count from its end."""

EMBEDDING = -1
"""The layer of points that come before layer 0."""


@dataclass(frozen=True)
class Target:
    """What a patch replaces at one hook point.

    Args:
        hook: the hook point's name.
        where: by axis letter, an int, several ints or a slice; an axis left out is taken whole.

    Raises:
        InputError: an axis that is no letter of `hybridlens.shapes.AXES`, or an index of another kind.
    """

    hook: str
    where: Mapping[str, Index] = field(default_factory=dict[str, Index])

    def __post_init__(self) -> None:
        """Refuse what cannot be an index; keep sequences as tuples."""
        where: dict[str, Index] = {}
        given: Mapping[str, object] = self.where
        for axis, index in given.items():
            if axis not in AXES or axis in ("b", "1"):
                letters = ", ".join(f"{letter} ({name})" for letter, name in AXES.items() if letter not in "b1")
                raise InputError(f"target '{self.hook}': {axis!r} is no axis; expected letters of {letters}")
            where[axis] = self._index(axis, index)
        object.__setattr__(self, "where", where)

    def _index(self, axis: str, index: object) -> Index:
        if isinstance(index, int | slice) and not isinstance(index, bool):
            return index
        if isinstance(index, Sequence) and not isinstance(index, str) and all(type(entry) is int for entry in index):
            return tuple(index)
        raise InputError(
            f"target '{self.hook}': index {index!r} of axis {axis} given, expected whole numbers or a slice"
        )

    @property
    def words(self) -> str:
        """The target as reports name it: ``blocks.2.attn.hook_z[head 3, pos 4-9]``."""
        parts = [f"{AXES[axis]} {index_words(index)}" for axis, index in self.where.items()]
        return self.hook + (f"[{', '.join(parts)}]" if parts else "")


Patch: TypeAlias = Target | Sequence[Target]
"""One target, or several that are replaced together; none at all leaves the run as it is."""


def index_words(index: Index) -> str:
    """An index as people write it: ``3``, ``4-9``, ``1,5,7``."""
    if isinstance(index, int):
        return str(index)
    if isinstance(index, slice):
        ends = ["" if end is None else str(end) for end in (index.start, index.stop)]
        return ":".join(ends) + ("" if index.step is None else f":{index.step}")
    entries = list(index)
    if len(entries) > 2 and entries == list(range(entries[0], entries[0] + len(entries))):
        return f"{entries[0]}-{entries[-1]}"
    return ",".join(map(str, entries))


def as_patch(patch: Patch) -> tuple[Target, ...]:
    """The targets of a patch."""
    return (patch,) if isinstance(patch, Target) else tuple(patch)


def patch_words(patch: Patch) -> str:
    """A patch in words."""
    return " + ".join(target.words for target in as_patch(patch)) or "nothing"


Chosen: TypeAlias = tuple[int, ...] | None
"""Entries of an axis in rising order; None for all."""


@dataclass(frozen=True)
class Located:
    """A target, checked against a model and a prompt's length."""

    name: str
    order: int
    """Its place in the order in which points fire."""
    layer: int
    """The first layer that has to be computed again: `EMBEDDING`, a layer, or the number of layers."""
    axes: tuple[str, ...]
    """The point's axes without the batch."""
    chosen: tuple[Chosen, ...]
    """For each axis, the entries taken."""
    first: int
    """The first position that it touches; the prompt's length if it touches nothing."""
    last: int
    """The last position that it touches; -1 if it touches nothing."""

    def selectors(self, offsets: Mapping[str, int]) -> tuple[tuple[Selector, ...], tuple[Selector, ...]]:
        """Indices of the entries in a run that begins behind the first positions, and in a whole run.

        Args:
            offsets: by axis letter, how many leading entries the run lacks; what is taken of these is left out.
        """
        here: list[Selector] = []
        there: list[Selector] = []
        for axis, chosen in zip(self.axes, self.chosen, strict=True):
            offset = offsets.get(axis, 0)
            kept = None if chosen is None else [entry for entry in chosen if entry >= offset]
            here.append(slice(None) if kept is None else _selector([entry - offset for entry in kept]))
            there.append(slice(offset, None) if kept is None else _selector(kept))
        return _mesh(here), _mesh(there)


Selector: TypeAlias = slice | Tensor
"""What one axis is indexed by."""


def locate(lens: HybridLens, target: Target, length: int) -> Located:
    """Where a target lies in a forward pass over `length` tokens.

    Raises:
        UnknownNameError: the model has no such hook point.
        InputError: the point is read-only, lacks an axis, or an index is out of range.
    """
    name = check_name(target.hook, lens.hook_dict)
    spec = lens.hook_points[name]
    if spec.read_only:
        states = f"{name.rpartition('.')[0]}.hook_state" in lens.hook_points
        instead = "hook_write or hook_state" if states else "hook_input_gate or hook_v"
        raise InputError(f"target '{name}' is read-only (it is derived from others); patch {instead}")
    for axis in target.where:
        if axis not in spec.axes:
            raise _no_axis(lens, spec, axis)
    axes, sizes = spec.axes[1:], [length if size is None else size for size in spec.sizes[1:]]
    chosen = tuple(
        _chosen(name, axis, target.where[axis], size) if axis in target.where else None
        for axis, size in zip(axes, sizes, strict=True)
    )
    names = list(lens.hook_points)
    order, layer = names.index(name), spec.layer
    if layer is None:
        layer = EMBEDDING if order < names.index("blocks.0.hook_resid_pre") else lens.cfg.n_layers
    positions = chosen[axes.index("p")]
    touched = () if () in chosen else range(length) if positions is None else positions
    return Located(name, order, layer, axes, chosen, min(touched, default=length), max(touched, default=-1))


def _no_axis(lens: HybridLens, spec: HookSpec, axis: str) -> InputError:
    has = ", ".join(f"{letter} ({AXES[letter]})" for letter in spec.axes if letter not in "b1")
    others = [other for other in lens.hook_points.values() if axis in other.axes and not other.read_only]
    near = [other.name for other in others if other.layer == spec.layer][:3]
    layers = sorted({other.layer for other in others if other.layer is not None})
    where = f"; {', '.join(near)} have" if near else ""
    if not near and layers:
        where = f"; layers with {AXES[axis]}s are {', '.join(map(str, layers))}"
    return InputError(f"target '{spec.name}' has no axis {axis} ({AXES[axis]}): it has {has}{where}")


def _chosen(name: str, axis: str, index: Index, size: int) -> tuple[int, ...]:
    word = {"p": "position", "k": "key position"}.get(axis, AXES[axis])
    there = f"but {'the prompt has' if axis in ('p', 'k') else 'there are'} 0..{size - 1}"
    if isinstance(index, slice):
        if any(end is not None and not -size <= end <= size for end in (index.start, index.stop)):
            raise InputError(f"target '{name}': {word} {index_words(index)} given, {there}")
        return tuple(sorted(range(size)[index]))
    entries = (index,) if isinstance(index, int) else tuple(index)
    for entry in entries:
        if not -size <= entry < size:
            raise InputError(f"target '{name}': {word} {entry} given, {there}")
    return tuple(sorted({entry % size for entry in entries}))


def _selector(entries: Sequence[int]) -> Selector:
    """A slice where the entries are neighbours, else a tensor."""
    if not entries:
        return slice(0, 0)
    if entries[-1] - entries[0] + 1 == len(entries):
        return slice(entries[0], entries[-1] + 1)
    return torch.tensor(list(entries), dtype=torch.long)


def _mesh(selectors: Sequence[Selector]) -> tuple[Selector, ...]:
    """Several lists of entries so that every combination is taken, as slices would."""
    listed = [selector for selector in selectors if isinstance(selector, Tensor)]
    grids = iter(torch.meshgrid(*listed, indexing="ij") if listed else ())
    return tuple(next(grids) if isinstance(selector, Tensor) else selector for selector in selectors)
