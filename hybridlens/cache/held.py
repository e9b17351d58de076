"""What a cache holds, read as rows of positions, whatever axes were dropped from it.

A cache may have lost its axis of rows (one prompt) and its axis of positions (one position of each row). `Held` gives
every activation [batch pos …] and takes the axes off again from what is handed out. Positions are counted among each
row's own tokens where rows differ in length: -1 is the last of each.

How it fails: activations that are needed and were not kept are named in one line (`NotCachedError`); a choice of
positions, rows or neurons that there is not raises `InputError`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, cast

import torch
from jaxtyping import Shaped
from torch import Tensor

from hybridlens.blocks import Block
from hybridlens.boundary_words import Unchecked, shown
from hybridlens.errors import InputError, NotCachedError
from hybridlens.network import HookedNetwork
from hybridlens.padding import Layout, TokenBatch, chosen
from hybridlens.peers import Slice

Chosen: TypeAlias = Annotated[Any, Unchecked("a choice")]
"""Entries of an axis, as TransformerLens has them: one, which drops the axis, a slice as a tuple, a list, or all."""

Labelled: TypeAlias = tuple[Tensor, list[str]]
"""A stack, and what each of its entries is."""


def slice_of(given: Any, named: str) -> Slice:
    """A choice of entries of an axis.

    Args:
        given: as `Chosen` has it.
        named: what its user calls it.

    Raises:
        InputError: it is none.
    """
    try:
        if isinstance(given, list) or hasattr(given, "dtype"):
            some = torch.as_tensor(given)
            if some.ndim > 1 or (some.numel() and (some.is_floating_point() or some.is_complex())):
                raise ValueError("which would be cut to whole numbers, or add axes")
        return given if isinstance(given, Slice) else Slice(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{named} = {shown(given)} given, expected one index, a slice as a tuple (start, stop), a list, or None"
        ) from error


def taken(value: Tensor, some: Slice, axis: int, named: str) -> Tensor:
    """A choice of the entries of an axis; one alone drops it.

    Raises:
        InputError: the axis has no such entries.
    """
    try:
        return some.apply(value, dim=axis)
    except (IndexError, TypeError, ValueError) as error:
        raise InputError(f"{named} = {shown(_plain(some))} given, but there are 0..{value.shape[axis] - 1}") from error


def kept_axis(some: Slice) -> Slice:
    """The same choice, of which one entry alone keeps its axis."""
    return Slice([cast(int, some.slice)]) if some.mode == "int" else some


@dataclass(frozen=True, eq=False)
class Held:
    """A cache's activations.

    Attributes:
        tensors: by hook point.
        network: the model's parts.
        has_batch: whether they have an axis of rows.
        layout: where rows of different lengths have their tokens; None where every row holds the same positions.
    """

    tensors: dict[str, Tensor]
    network: HookedNetwork
    has_batch: bool
    layout: Layout | None

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.network.cfg.n_layers

    def block(self, layer: int) -> Block:
        """A layer of the model."""
        return cast(Block, self.network.blocks[layer])

    def need(self, names: Iterable[str], what: str) -> None:
        """Refuse to go on without some activations.

        Args:
            names: of hook points.
            what: what they are for, as in "decompose_resid".

        Raises:
            NotCachedError: some were not kept, saying which.
        """
        lacking = [name for name in dict.fromkeys(names) if name not in self.tensors]
        if lacking:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            asked = any(name in self.network.points and self.network.points[name].read_only for name in lacking)
            raise NotCachedError(
                f"{what} needs {', '.join(lacking[:3])}{more}, which this cache does not hold; run_with_cache keeps "
                f"them if names_filter names them{'' if asked else ', or is left out'}"
            )

    def rows(self, name: str, pos: Slice | None = None, named: str = "pos_slice") -> Shaped[Tensor, "batch pos *rest"]:
        """An activation [batch pos …] at some positions of each row, one alone included.

        Args:
            name: of the hook point.
            pos: which positions.
            named: what their user calls them.

        Raises:
            InputError: there are no such positions.
            NotCachedError: it was not kept.
        """
        self.need([name], "this")
        value = self.tensors[name]
        value = value if self.has_batch else value[None]
        if value.ndim < len(self.network.points[name].axes):
            if pos is not None and pos.mode != "identity":
                raise InputError(
                    f"{named} = {shown(_plain(pos))} given, but this cache holds one position of each row; leave it out"
                )
            return value[:, None]
        if pos is None or pos.mode == "identity":
            return value
        if self.layout is None or self.layout.batch.lengths is None:
            return taken(value, kept_axis(pos), 1, named)
        index = self.layout.positions(pos.slice)
        left = self.layout.left
        shifted = index if left is None else index + torch.tensor(left, device=index.device)[:, None]
        return chosen(value, 1, shifted)

    @property
    def sample(self) -> str:
        """The name of an activation that has axes of rows and positions, as far as the cache has them.

        Raises:
            NotCachedError: there is none.
        """
        for name in self.tensors:
            point = self.network.points.get(name)
            if point is not None and point.axes[:2] == ("b", "p"):
                return name
        raise NotCachedError("this cache holds no activation by position; run it without names_filter")

    def drops_pos(self, name: str, pos: Slice) -> bool:
        """Whether what is made of an activation at some positions has no axis of positions."""
        value = self.tensors[name]
        return pos.mode == "int" or value.ndim + (not self.has_batch) < len(self.network.points[name].axes)

    def handed(self, stack: Tensor, name: str, pos: Slice, axis: int = 1) -> Tensor:
        """A result [… batch pos …] without the axes that the cache, or the choice of positions, has dropped.

        Args:
            stack: the result.
            name: the activation whose axes it takes.
            pos: the positions it was made at.
            axis: where its axis of rows stands.
        """
        stack = stack.squeeze(axis + 1) if self.drops_pos(name, pos) else stack
        return stack if self.has_batch else stack.squeeze(axis)


def rows_of_layout(layout: Layout | None, some: Slice) -> Layout | None:
    """Where some of the rows have their tokens.

    Args:
        layout: of all of them.
        some: which.
    """
    if layout is None or layout.batch.lengths is None:
        return None
    some = kept_axis(some)
    lengths = some.apply(layout.batch.lengths, dim=0)
    left = None if layout.left is None else tuple(some.apply(torch.tensor(layout.left), dim=0).tolist())
    return Layout(TokenBatch(some.apply(layout.batch.tokens, dim=0), lengths), left)


def counted(layer: int | None, n_layers: int, named: str = "layer") -> int:
    """A layer that is read, 0 to the number of layers, which stands for the unembedding.

    Args:
        layer: negative ones count from the unembedding, which is -1, or None.
        n_layers: how many layers there are.
        named: what its user calls it.

    Raises:
        InputError: there is no such layer.
    """
    if layer is None:
        return n_layers
    whole = not isinstance(layer, bool) and hasattr(layer, "__index__")
    if not whole or not -n_layers - 1 <= layer.__index__() <= n_layers:
        raise InputError(
            f"{named} {shown(layer)} given, expected 0..{n_layers}, where {n_layers}, -1 and None stand for the "
            "unembedding"
        )
    return layer.__index__() % (n_layers + 1)


def _plain(some: Slice) -> Any:
    """A choice as it is written."""
    given: Any = some.slice
    if isinstance(given, slice):
        return tuple(part for part in (given.start, given.stop, given.step) if part is not None or given.step is None)
    return given.tolist() if hasattr(given, "tolist") else given
