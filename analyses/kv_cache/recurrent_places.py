"""Where in the recurrent memories of a `HybridState` something is done: layers, rows, positions, channels, heads.

A state that has a number or a row of numbers for each channel, [b c] or [b c n], shares its channels with the
convolution. A matrix state [b s u m] has heads, each of them value rows by address columns; its convolution carries
addresses beside values, so that the convolution's channels are none of the state's.

How it fails: what the layer at hand does not have raises `InputError`; see `recurrent`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, cast

import torch
from jaxtyping import Bool
from torch import Tensor

from analyses.kv_cache.places import Indices, check_where, indices, rows_of_batch, shown
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


def check_recurrent(
    state: HybridState, layers: Sequence[int], parts: str, where: Mapping[str, object], kind: type
) -> None:
    """Refuse names that say no place, and places that the layers or the parts of their memory do not have.

    Raises:
        InputError: naming what there is.
        UnknownNameError: a name that says no place.
    """
    for name in ("heads", "head"):
        if name in where and not any(is_matrix(state, layer) for layer in layers):
            raise InputError(f"{name} {where[name]!r} given, but recurrent layers have no heads; leave {name} out")
    check_where(where, kind)
    if where.get("positions") is not None and parts != "conv":
        raise InputError(
            "positions given, but a recurrent state has none; give part 'conv' for the convolution's inputs"
        )
    named = [name for name in OF_MATRICES if where.get(name) is not None]
    for layer in layers:
        if named and not is_matrix(state, layer):
            raise InputError(f"{named[0]} given, but the state of layer {layer} is no matrix; give its channels")
        if where.get("channels") is not None and parts != "conv" and is_matrix(state, layer):
            raise InputError(
                f"channels given, but those of layer {layer}'s convolution are none of its state's; give part 'conv', "
                "or heads, values and addresses of part 'recurrent'"
            )
    if named and parts != "recurrent":
        raise InputError(f"{named[0]} given, but a convolution has none; give part 'recurrent' for the matrix state")


def is_matrix(state: HybridState, layer: int) -> bool:
    """Whether a recurrent layer's state is a matrix for each of its heads."""
    found = cast(Recurrent, state.layers[layer]["ssm"]).recurrent
    return found is not None and found.ndim == MATRIX


def held_part(state: HybridState, layer: int, part: str) -> Tensor:
    """What a recurrent layer's convolution, or its state, holds.

    Raises:
        InputError: it holds no such part.
    """
    found = state.layers[layer]["ssm"].tensors().get(part)
    if found is None:
        raise InputError(f"layer {layer} holds no {part}, only {', '.join(state.layers[layer]['ssm'].tensors())}")
    return found


def conv_entries(state: HybridState, where: RecurrentWhere, conv: Tensor) -> Bool[Tensor, "batch taps channel"]:
    """True at the convolution inputs that are meant.

    Raises:
        InputError: a row, channel or position that is not there.
    """
    taps = _taps(state, where.get("positions"), rows_meant(state, where), conv.shape[1])
    return taps[..., None] & _among(where.get("channels"), conv.shape[2], "channel")


def state_entries(state: HybridState, where: RecurrentWhere, recurrent: Tensor) -> Bool[Tensor, "batch *state"]:
    """True at the entries of a state that are meant, to be broadcast over its last axes.

    Raises:
        InputError: a row, channel, head, value row or address column that is not there.
    """
    rows = rows_meant(state, where)
    if recurrent.ndim == MATRIX:
        heads = _among(where.get("heads"), recurrent.shape[1], "head")
        values = _among(where.get("values"), recurrent.shape[2], "value row")
        addresses = _among(where.get("addresses"), recurrent.shape[3], "address column")
        return rows[:, None, None, None] & heads[:, None, None] & values[:, None] & addresses
    channels = rows[:, None] & _among(where.get("channels"), recurrent.shape[1], "channel")
    return channels.reshape(*channels.shape, *[1] * (recurrent.ndim - 2))


def rows_meant(state: HybridState, where: RecurrentWhere) -> Bool[Tensor, "batch"]:
    """True at the rows that are meant.

    Raises:
        InputError: a row that is not there.
    """
    rows = torch.zeros(state.batch, dtype=torch.bool)
    rows[rows_of_batch(state, where.get("rows"))] = True
    return rows


def _among(given: Indices, size: int, what: str) -> Bool[Tensor, "size"]:
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[indices(given, size, what)] = True
    return chosen


def _taps(state: HybridState, positions: Indices, rows: Bool[Tensor, "batch"], taps: int) -> Bool[Tensor, "batch taps"]:
    """True at the taps whose inputs are meant."""
    if positions is None:
        return rows[:, None].expand(-1, taps)
    at = state.lengths.cpu()[:, None] - taps + torch.arange(taps)
    meant = torch.zeros_like(at, dtype=torch.bool)
    for position in indices(positions, None, "position"):
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
