"""Convolution and recurrent state rewritten: zero, reset, decay, swap, project out.

A recurrent layer remembers two things: the inputs of its convolution's last (width - 1) tokens, each at an absolute
position, and one state, which has no positions. "conv" is the first, "recurrent" the second, "both" both. As in
`surgery`, the given state is never written to and every row is changed by itself.

How it fails: an attention layer, a channel or row that is not there, positions asked of the recurrent state, or
outside what the convolution holds, heads, which recurrent layers have none of, and states that do not fit each other
raise `InputError` with one line; a name that says no place, such as `layer`, raises `UnknownNameError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, TypeAlias, TypedDict, Unpack, cast

import torch
from torch import Tensor

from analyses.kv_cache.places import Indices, check_name, check_where, indices, layers_of, rows_of_batch, shown
from analyses.kv_cache.swapping import check_same
from hybridlens.errors import InputError
from hybridlens.memory import Recurrent
from hybridlens.state import HybridState

RecurrentParts: TypeAlias = Literal["conv", "recurrent", "both"]
PARTS = ("conv", "recurrent", "both")


class WhereLayers(TypedDict, total=False):
    """Which recurrent layers and rows are meant; every entry may be left out."""

    layers: Indices
    """Recurrent layers, by their index in the model."""
    rows: Indices
    """Rows of the batch."""


class RecurrentWhere(WhereLayers, total=False):
    """Which recurrent memories are meant; every entry may be left out."""

    channels: Indices
    """Recurrent channels."""
    positions: Indices
    """Absolute positions of convolution inputs, the same for all rows; of part "conv" only."""


def zero_recurrent(
    state: HybridState, parts: RecurrentParts = "both", **where: Unpack[RecurrentWhere]
) -> HybridState:
    """Convolution inputs, recurrent state or both set to 0.

    Raises:
        InputError: see the module.
    """
    return _rewritten(state, parts, where, lambda x, *_: torch.zeros_like(x))


def reset(state: HybridState, **where: Unpack[WhereLayers]) -> HybridState:
    """Whole recurrent layers put back to what a row holds that has read nothing.

    In both families that is 0 everywhere. The row goes on at its own position all the same, where RecurrentGemma's
    first token after it is scaled as any other, not as the first of a document is.

    Raises:
        InputError: see the module.
    """
    _check_where(where, WhereLayers)
    return zero_recurrent(state, **where)


def decay(
    state: HybridState, factor: float | int, parts: RecurrentParts = "recurrent", **where: Unpack[RecurrentWhere]
) -> HybridState:
    """Recurrent state, convolution inputs or both multiplied by a number.

    Raises:
        InputError: a factor that is not finite; see the module.
    """
    if not abs(factor) < float("inf"):
        raise InputError(f"factor {factor} given, expected a finite number")
    return _rewritten(state, parts, where, lambda x, *_: x * factor)


def swap_recurrent(
    state: HybridState, other: HybridState, parts: RecurrentParts = "both", **where: Unpack[RecurrentWhere]
) -> HybridState:
    """Convolution inputs, recurrent state or both taken from another state, row for row.

    Args:
        state: what receives; not changed.
        other: what gives: as many rows, of the same model and lengths.
        parts: which memory.
        where: what receives.

    Raises:
        InputError: states of other models, batches or lengths; see the module.
    """
    check_same(state, other)

    def taken(x: Tensor, layer: int, part: str) -> Tensor:
        return _held(other, layer, part).to(x)

    return _rewritten(state, parts, where, taken)


def project_out(
    state: HybridState,
    direction: Tensor,
    parts: RecurrentParts = "recurrent",
    **where: Unpack[RecurrentWhere],
) -> HybridState:
    """The component along a direction removed: x - (x · d) d for the unit vector d.

    Args:
        state: not changed.
        direction: [channel], of any length but 0, taken out of every convolution input and, in Mamba, of every one
            of the n columns of the state; or [channel, state], taken out of Mamba's state as one long vector.
        parts: which memory.
        where: what is changed; with `channels`, the result is put back on these only.

    Raises:
        InputError: a direction of another shape, of length 0, or with entries that are not finite; see the module.
    """
    wide = direction.float()
    if not bool(wide.isfinite().all()) or not bool(wide.any()):
        raise InputError("a direction of length 0, or with entries that are not finite, given; expected a vector")
    unit = wide / wide.norm()

    def removed(x: Tensor, layer: int, part: str) -> Tensor:
        flat = x.float()
        shape = [tuple(flat.shape[1:]), (flat.shape[1],)] if part == "recurrent" else [(flat.shape[2],)]
        if tuple(unit.shape) not in shape:
            raise InputError(
                f"a direction of shape {list(unit.shape)} given for the {part} state of layer {layer}, expected "
                + " or ".join(str(list(s)) for s in dict.fromkeys(shape))
            )
        d = unit.to(flat.device)
        if part == "conv":
            return flat - (flat @ d)[..., None] * d
        if d.ndim == flat.ndim - 1:
            along = (flat * d).flatten(1).sum(dim=1).reshape(-1, *[1] * d.ndim)
            return flat - along * d
        return flat - torch.einsum("bcn,c->bn", flat, d)[:, None] * d[:, None]

    return _rewritten(state, parts, where, removed)


def _rewritten(
    state: HybridState, parts: str, where: RecurrentWhere, fn: Callable[[Tensor, int, str], Tensor]
) -> HybridState:
    """The state with what `fn` makes of some memories; all else is shared with the given one."""
    check_name(parts, PARTS)
    _check_where(where, RecurrentWhere)
    chosen = layers_of(state, where.get("layers"), "recurrent")
    rows = torch.zeros(state.batch, dtype=torch.bool)
    rows[rows_of_batch(state, where.get("rows"))] = True
    if where.get("positions") is not None and parts != "conv":
        raise InputError(
            "positions given, but a recurrent state has none; give part 'conv' for the convolution's inputs"
        )
    for layer in chosen:
        held = cast(Recurrent, state.layers[layer]["ssm"])
        if parts != "recurrent":
            conv = _held(state, layer, "conv")
            meant = _taps(state, where.get("positions"), rows, conv.shape[1])[..., None] & _among(where, conv.shape[2])
            new = torch.where(meant.to(conv.device), fn(conv, layer, "conv").to(conv.dtype), conv)
            held = replace(held, conv=new)
        if parts != "conv":
            recurrent = _held(state, layer, "recurrent")
            meant = (rows[:, None] & _among(where, recurrent.shape[1])).reshape(
                *recurrent.shape[:2], *[1] * (recurrent.ndim - 2)
            )
            new = fn(recurrent, layer, "recurrent").to(recurrent.dtype)
            held = replace(held, recurrent=torch.where(meant.to(recurrent.device), new, recurrent))
        state = state.put(layer, "ssm", held)
    return state


def _held(state: HybridState, layer: int, part: str) -> Tensor:
    """What a recurrent layer's convolution, or its state, holds."""
    found = state.layers[layer]["ssm"].tensors().get(part)
    if found is None:
        raise InputError(f"layer {layer} holds no {part}, only {', '.join(state.layers[layer]['ssm'].tensors())}")
    return found


def _among(where: RecurrentWhere, size: int) -> Tensor:
    """True at the channels that are meant."""
    channels = torch.zeros(size, dtype=torch.bool)
    channels[indices(where.get("channels"), size, "channel")] = True
    return channels


def _check_where(where: Mapping[str, object], kind: type) -> None:
    """Refuse heads, and names that say no place."""
    for name in ("heads", "head"):
        if name in where:
            raise InputError(f"{name} {where[name]!r} given, but recurrent layers have no heads; leave {name} out")
    check_where(where, kind)


def _taps(state: HybridState, positions: Indices, rows: Tensor, taps: int) -> Tensor:
    """[batch taps], True at the convolution inputs that are meant."""
    if positions is None:
        return rows[:, None].expand(-1, taps)
    at = state.lengths.cpu()[:, None] - taps + torch.arange(taps)
    wanted = indices(positions, None, "position")
    meant = torch.zeros_like(at, dtype=torch.bool)
    for position in wanted:
        here = at == position
        if not bool((here.any(dim=1) | ~rows).all()):
            row = int((~here.any(dim=1) & rows).nonzero()[0])
            held = [p for p in at[row].tolist() if p >= 0]
            raise InputError(
                f"position {position} given, but the convolution of row {row} holds positions {shown(held)}; "
                "give positions among these"
            )
        meant |= here
    return meant & rows[:, None]
