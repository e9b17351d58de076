"""Hook functions that keep what comes by: activations, and gradients under the name of their point and ``_grad``.

Positions are kept as the tokens were given, and a choice of positions counts among each row's own tokens, in a batch
of rows of different lengths too: -1 is the last token of each.

How it fails: positions that a row does not have, and a batch axis to be dropped that holds several rows, raise
`InputError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from hybridlens.boundary_words import Unchecked, shown
from hybridlens.devices import usable
from hybridlens.errors import InputError
from hybridlens.hooks import HookFunction, HookPoint, NameFilter, reads_only, resolve
from hybridlens.padding import Layout, TokenBatch, chosen
from hybridlens.peers import Slice
from hybridlens.visits import HERE

PosSlice: TypeAlias = Annotated[
    Slice | int | tuple[int | None, ...] | list[int] | Tensor | None, Unchecked("positions")
]
"""Positions as TransformerLens has them: one, a slice as a tuple, or a list."""


class CachingHooks(NamedTuple):
    """Hook functions that fill a cache; unpack as ``cache, fwd_hooks, bwd_hooks``."""

    cache: dict[str, Tensor]
    fwd_hooks: list[tuple[str, HookFunction]]
    bwd_hooks: list[tuple[str, HookFunction]]


def caching_hooks(
    points: Mapping[str, HookPoint],
    names_filter: NameFilter,
    *,
    incl_bwd: bool = False,
    device: torch.device | str | None = None,
    remove_batch_dim: bool = False,
    cache: dict[str, Tensor] | None = None,
    pos_slice: PosSlice = None,
    layouts: list[Layout] | None = None,
) -> CachingHooks:
    """Functions that keep what comes by at some points; nothing is attached yet.

    Args:
        points: those of the model.
        names_filter: a name, names or a predicate; None for every point but the hidden attention of recurrent layers;
            an empty list for none.
        incl_bwd: gradients too.
        device: where to keep them; None where they were computed.
        remove_batch_dim: drop the batch axis of a single prompt.
        cache: filled; None for a new one.
        pos_slice: keep only these query positions; one of them alone drops the axis.
        layouts: given, as its only entry, where the tokens of the last run stood.

    Raises:
        UnknownNameError: for a name that the model lacks.
        InputError: a device that is not there, or positions that are none.
    """
    place = None if device is None else usable(device)
    positions = positions_of(pos_slice)
    kept: dict[str, Tensor] = {} if cache is None else cache

    def kept_of(value: Tensor, hook: HookPoint) -> Tensor:
        at = hook.axes.index("p")
        layout = _layout(value, at)
        if layouts is not None:
            layouts[:] = [layout]
        if "k" in hook.axes:
            value = layout.as_given(value, hook.axes.index("k"))
        if positions is None:
            value = layout.as_given(value, at)
        else:  # a copy, so that the rest is not kept alive
            value = chosen(value, at, layout.positions(positions.slice))
            value = value.squeeze(at) if positions.mode == "int" else value
        if remove_batch_dim:
            check_one(value.shape[0])
            value = value[0]
        return value if place is None else value.to(place)

    def keep(tensor: Tensor, hook: HookPoint) -> None:
        kept[cast(str, hook.name)] = kept_of(tensor.detach(), hook)

    def keep_gradient(grad: Tensor, hook: HookPoint) -> None:
        kept[f"{hook.name}_grad"] = kept_of(grad.detach().clone(), hook)

    nothing = names_filter is not None and not callable(names_filter) and len(names_filter) == 0
    names: list[str] = [] if nothing else resolve(names_filter, points)
    backward = names if incl_bwd else []
    return CachingHooks(
        kept, [(name, reads_only(keep)) for name in names], [(name, keep_gradient) for name in backward]
    )


def positions_of(given: PosSlice) -> Slice | None:
    """What TransformerLens makes of a choice of positions; None for all.

    Raises:
        InputError: it is none.
    """
    if given is None:
        return None
    try:
        return Slice.unwrap(cast(Any, given))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"pos_slice = {shown(given)} given, expected a position, a slice as a tuple (start, stop), or a list"
        ) from error


def check_one(rows: int) -> None:
    """Refuse to drop a batch axis of several rows.

    Raises:
        InputError: saying how many there are.
    """
    if rows != 1:
        raise InputError(f"remove_batch_dim needs one prompt, {rows} were given")


def _layout(value: Tensor, at: int) -> Layout:
    """Where the tokens of the pass stood when they were given, for a hook function that runs.

    Args:
        value: what the function was given.
        at: its axis of positions.
    """
    run = HERE.visits[-1].reading
    if run is None:  # a part of the model is run by itself
        whole = torch.zeros(value.shape[0], value.shape[at], dtype=torch.long, device=value.device)
        return Layout(TokenBatch(whole, None), None)
    return Layout(TokenBatch(run.positions, run.lengths), run.left)
