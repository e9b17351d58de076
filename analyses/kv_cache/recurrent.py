"""Convolution and recurrent state rewritten: zero, reset, decay, swap, project out.

A recurrent layer remembers two things: the inputs of its convolution's last (width - 1) tokens, each at an absolute
position, and one state, which has no positions. "conv" is the first, "recurrent" the second, "both" what it has of
both: of a short convolution (LFM2) the first alone. As in
`surgery`, the given state is never written to and every row is changed by itself. A matrix state is changed by head,
value row and address column; what else is where, `recurrent_places` says.

How it fails: a layer without a recurrence, a channel, head or row that is not there, positions asked of the recurrent
state, or outside what the convolution holds, heads of layers that have none, channels of a matrix state, and states
that do not fit each other raise `InputError` with one line; a name that says no place, such as `layer`, raises
`KeywordError`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeAlias, Unpack

import torch
from torch import Tensor

from analyses.kv_cache.places import layers_of, placed
from analyses.kv_cache.recurrent_places import MATRIX, RecurrentWhere, WhereLayers, check_recurrent, entries, held_part
from analyses.kv_cache.swapping import check_same
from hybridlens.boundary import public
from hybridlens.errors import InputError
from hybridlens.state import HybridState

RecurrentParts: TypeAlias = Literal["conv", "recurrent", "both"]

Side: TypeAlias = Literal["values", "addresses"]


@placed
@public
def zero_recurrent(state: HybridState, parts: RecurrentParts = "both", **where: Unpack[RecurrentWhere]) -> HybridState:
    """Convolution inputs, recurrent state or both set to 0; where, by the same keywords as in `swap_recurrent`.

    Raises:
        InputError: see the module.
    """
    return _rewritten(state, parts, where, lambda x, *_: torch.zeros_like(x))


@placed
@public
def reset(state: HybridState, **where: Unpack[WhereLayers]) -> HybridState:
    """Whole recurrent layers (``layers=``, ``rows=``) put back to what a row holds that has read nothing.

    In every family that is 0 everywhere. The row goes on at its own position all the same, where RecurrentGemma's
    first token after it is scaled as any other, not as the first of a document is.

    Raises:
        InputError: see the module.
    """
    return zero_recurrent(state, **where)


@placed
@public
def decay(
    state: HybridState, factor: float | int, parts: RecurrentParts = "recurrent", **where: Unpack[RecurrentWhere]
) -> HybridState:
    """Recurrent state, convolution inputs or both multiplied by a number; where, by the keywords of `swap_recurrent`.

    Raises:
        InputError: a factor that is not finite; see the module.
    """
    return _rewritten(state, parts, where, lambda x, *_: x * factor)


@placed
@public
def swap_recurrent(
    state: HybridState, other: HybridState, parts: RecurrentParts = "both", **where: Unpack[RecurrentWhere]
) -> HybridState:
    """Convolution inputs, recurrent state or both taken from another state, row for row.

    Args:
        state: what receives; not changed.
        other: what gives: as many rows, of the same model and lengths.
        parts: which memory.
        where: what receives, by ``layers=``, ``rows=``, ``channels=``, ``positions=`` (of convolution inputs),
            ``heads=``, ``values=``, ``addresses=`` (of matrix states); see `recurrent_places.RecurrentWhere`.

    Raises:
        InputError: states of other models, batches or lengths; see the module.
    """
    check_same(state, other)
    return _rewritten(state, parts, where, lambda x, layer, part: held_part(other, layer, part).to(x))


@placed
@public
def project_out(
    state: HybridState,
    direction: Tensor,
    parts: RecurrentParts = "recurrent",
    *,
    side: Side | None = None,
    **where: Unpack[RecurrentWhere],
) -> HybridState:
    """The component along a direction removed: x - (x · d) d for the unit vector d.

    Args:
        state: not changed.
        direction: [channel], of any length but 0, taken out of every convolution input and, in Mamba, of every one
            of the n columns of the state; or of the state's whole shape, taken out of it as one long vector. Of matrix
            states, with a side: [value] or [address], the same for all heads, or [head, value] or [head, address].
        parts: which memory.
        side: of a matrix state: "values", what is held at every address (S - d dᵀ S), or "addresses", what is held at
            one address by every value row (S - S d dᵀ).
        where: what is changed, by the same keywords as in `swap_recurrent`; with `channels`, `heads`, …, the result
            is put back on these only.

    Raises:
        InputError: a direction of another shape, of length 0 (in any head), or with entries that are not finite; a
            side of a state that has none; see the module.
        UnknownNameError: there is no such side.
    """
    unit = direction.float()
    norm = unit.norm(dim=-1, keepdim=True) if side is not None and unit.ndim == 2 else unit.norm()
    if not bool(unit.isfinite().all()) or not bool((norm > 0).all()):
        raise InputError("a direction of length 0, or with entries that are not finite, given; expected a vector")
    unit = unit / norm

    def removed(x: Tensor, layer: int, part: str) -> Tensor:
        shapes = {tuple(x.shape[i] for i in axes): axes for axes in _axes(x, part, side, layer)}
        axes = shapes.get(tuple(unit.shape))
        if axes is None:
            raise InputError(
                f"a direction of shape {list(unit.shape)} given for the {part} state of layer {layer}, expected "
                + " or ".join(str(list(shape)) for shape in shapes)
                + (", or a side of it" if x.ndim == MATRIX and side is None else "")
            )
        wide = x.float()
        d = unit.to(x.device).reshape([n if i in axes else 1 for i, n in enumerate(x.shape)])
        return wide - (wide * d).sum(dim=axes if side is None else axes[-1:], keepdim=True) * d

    return _rewritten(state, parts, where, removed)


def _axes(x: Tensor, part: str, side: Side | None, layer: int) -> list[tuple[int, ...]]:
    """The axes of one memory that a direction may have; with a side, it is a vector along the last of them."""
    matrix = part == "recurrent" and x.ndim == MATRIX
    whole = tuple(range(1, x.ndim))
    if side is not None and not matrix:
        raise InputError(f"side {side!r} given, but the {part} state of layer {layer} is no matrix; leave it out")
    if side is not None:
        axis = 2 if side == "values" else 3
        return [(axis,), (1, axis)]
    if part == "conv":
        return [(2,)]
    return [whole] if matrix else [whole, (1,)]


def _rewritten(
    state: HybridState, parts: str, where: RecurrentWhere, fn: Callable[[Tensor, int, str], Tensor]
) -> HybridState:
    """The state with what `fn` makes of some memories; all else is shared with the given one."""
    chosen = layers_of(state, where.get("layers"), "recurrent")
    check_recurrent(state, chosen, parts, where)
    for layer in chosen:
        for part in state.layers[layer]["ssm"].tensors() if parts == "both" else (parts,):
            held = held_part(state, layer, part)
            meant = entries(state, where, part, held).to(held.device)
            changed = torch.where(meant, fn(held, layer, part).to(held.dtype), held)
            state = state.put(layer, "ssm", replace(state.layers[layer]["ssm"], **{part: changed}))
    return state
