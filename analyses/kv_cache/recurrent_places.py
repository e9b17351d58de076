"""Where in the recurrent memories of a `HybridState` something is done: layers, rows, positions, channels, heads.

A state that has a number or a row of numbers for each channel, [b c] or [b c n], shares its channels with the
convolution. A matrix state [b s u m] has heads, each of them value rows by address columns; its convolution carries
addresses beside values, so that the convolution's channels are none of the state's.

How it fails: what the layer at hand does not have raises `InputError`; see `recurrent`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, cast

import torch
from jaxtyping import Bool
from torch import Tensor

from analyses.kv_cache.places import Indices, indices, mask, not_held
from hybridlens.errors import InputError
from hybridlens.memory import Recurrent
from hybridlens.state import HybridState

MATRIX = 4
"""Axes of a matrix state: rows of the batch, heads, values, addresses."""


class WhereLayers(TypedDict, total=False):
    """Which recurrent layers and rows are meant; every entry may be left out."""

    layers: Indices
    """Recurrent layers, by their index in the model."""
    rows: Indices
    """Rows of the batch."""


class RecurrentWhere(WhereLayers, total=False):
    """Which recurrent memories are meant; every entry may be left out."""

    channels: Indices
    """Channels of the convolution; of a state that has channels, the same ones."""
    positions: Indices
    """Absolute positions of convolution inputs, the same for all rows; of part "conv" only."""
    heads: Indices
    """Heads of a matrix state; of part "recurrent" only, as the next two."""
    values: Indices
    """Its value rows, in every head."""
    addresses: Indices
    """Its address columns, in every head."""


OF_MATRICES = ("heads", "values", "addresses")
"""Names of places that matrix states alone have."""


def check_recurrent(state: HybridState, layers: Sequence[int], parts: str, where: RecurrentWhere) -> None:
    """Refuse places that the layers or the parts of their memory do not have."""
    heads = where.get("heads")
    if heads is not None and not any(is_matrix(state, layer) for layer in layers):
        raise InputError(f"heads {heads!r} given, but recurrent layers have no heads; leave heads out")
    if where.get("positions") is not None and parts != "conv":
        raise InputError(
            "positions given, but a recurrent state has none; give part 'conv' for the convolution's inputs"
        )
    named = next((name for name in OF_MATRICES if where.get(name) is not None), None)
    for layer in layers:
        if named and not is_matrix(state, layer):
            raise InputError(f"{named} given, but the state of layer {layer} is no matrix; give its channels")
        if where.get("channels") is not None and parts != "conv" and is_matrix(state, layer):
            raise InputError(
                f"channels given, but those of layer {layer}'s convolution are none of its state's; give part 'conv', "
                "or heads, values and addresses of part 'recurrent'"
                if _convolved(state, layer)
                else f"channels given, but layer {layer} has none: no convolution, and a matrix for its state; give "
                "heads, values and addresses"
            )
    if named and (parts == "conv" or (parts == "both" and any(_convolved(state, layer) for layer in layers))):
        raise InputError(f"{named} given, but a convolution has none; give part 'recurrent' for the matrix state")


def is_matrix(state: HybridState, layer: int) -> bool:
    """Whether a recurrent layer's state is a matrix for each of its heads."""
    found = cast(Recurrent, state.layers[layer]["ssm"]).recurrent
    return found is not None and found.ndim == MATRIX


def _convolved(state: HybridState, layer: int) -> bool:
    """Whether a recurrent layer holds inputs of a convolution."""
    return "conv" in state.layers[layer]["ssm"].tensors()


def held_part(state: HybridState, layer: int, part: str) -> Tensor:
    """What a recurrent layer's convolution, or its state, holds."""
    found = state.layers[layer]["ssm"].tensors()
    if part not in found:
        holds = {"conv": "its convolution's inputs", "recurrent": "a recurrent state"}
        (only,) = found
        what = "no convolution's inputs" if part == "conv" else f"no {part} state"
        raise InputError(f"layer {layer} holds {what}, only {holds[only]}; give part {only!r}")
    return found[part]


def entries(state: HybridState, where: RecurrentWhere, part: str, held: Tensor) -> Bool[Tensor, "batch *held"]:
    """True at what is meant of a layer's convolution inputs, or of its state; to be broadcast over the last axes.

    Args:
        state: whose rows they are.
        where: what is meant.
        part: "conv" or "recurrent".
        held: that memory.
    """
    rows = mask(where.get("rows"), state.batch, "row")
    if part == "conv":
        taps = _taps(state, where.get("positions"), rows, held.shape[1])
        return taps[..., None] & mask(where.get("channels"), held.shape[2], "channel")
    if held.ndim == MATRIX:
        heads = mask(where.get("heads"), held.shape[1], "head")
        values = mask(where.get("values"), held.shape[2], "value row")
        addresses = mask(where.get("addresses"), held.shape[3], "address column")
        return rows[:, None, None, None] & heads[:, None, None] & values[:, None] & addresses
    channels = rows[:, None] & mask(where.get("channels"), held.shape[1], "channel")
    return channels.reshape(*channels.shape, *[1] * (held.ndim - 2))


def _taps(state: HybridState, positions: Indices, rows: Bool[Tensor, "batch"], taps: int) -> Bool[Tensor, "batch taps"]:
    """True at the taps whose inputs are meant."""
    if positions is None:
        return rows[:, None].expand(-1, taps)
    wanted = indices(positions, None, "position")
    at = (state.lengths.cpu()[:, None] - taps + torch.arange(taps)).tolist()
    for row in rows.nonzero()[:, 0].tolist():
        if not set(wanted) <= set(at[row]):
            raise not_held(wanted, [p for p in at[row] if p >= 0], f"the convolution of row {row}")
    return rows[:, None] & torch.tensor([[position in wanted for position in row] for row in at])
