"""Keys and values taken from another state, at the same absolute positions or others.

Slots of the two states need not agree: what is at a position is looked up, row for row. Keys are held after rotary
embedding: one that is put at another position keeps the rotation of where it came from.

How it fails: see `places`; and states of other models, weights, batches or lengths, and positions that the giving state
does not hold, raise `InputError` with one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import torch
from jaxtyping import Int
from torch import Tensor

from analyses.kv_cache.places import (
    KeyParts,
    KeyPlace,
    Where,
    indices,
    key_place,
    keys_of,
    rewritten,
    rows_of_batch,
    shown,
)
from hybridlens.boundary import public
from hybridlens.errors import InputError
from hybridlens.memory import KeyValues
from hybridlens.shapes import HeldKeys
from hybridlens.state import HybridState


@public
def swap(
    state: HybridState,
    other: HybridState,
    parts: KeyParts = "both",
    *,
    mapping: Mapping[int, int] | None = None,
    **where: Unpack[Where],
) -> HybridState:
    """Keys, values or both taken from another state, row for row.

    Args:
        state: what receives; not changed.
        other: what gives: as many rows, of the same model.
        parts: keys, values or both.
        mapping: from position in `state` to position in `other`; None for the same positions, for which the rows of
            both states must have read equally many tokens.
        where: where `state` receives; without positions, wherever it holds keys, or those of the mapping.

    Raises:
        InputError: states of other models, weights, batches or lengths; a position that either lacks; a mapping beside
            positions; see `places`.
    """
    check_same(state, other, lengths=mapping is None)
    if mapping is not None:
        if "positions" in where:
            raise InputError("positions and a mapping given; the mapping says which positions receive, leave them out")
        where["positions"] = list(mapping)
    place = key_place(state, **where)
    source = _source_slots(state, other, place, mapping or {}, rows_of_batch(state, where.get("rows")))

    def taken(x: HeldKeys, held: KeyValues, layer: int, part: str) -> Tensor:
        given = keys_of(other, layer)
        at = source.to(x.device)[:, None].expand(-1, x.shape[1], -1)
        if given.kept is not None and bool((place.keys(held) & ~given.kept.gather(2, at)).any()):
            raise InputError(
                f"the giving state has dropped keys of layer {layer} that the receiving one holds; "
                "swap only positions, heads and layers that both hold"
            )
        return (given.k if part == "keys" else given.v).to(x).gather(2, at[..., None].expand(-1, -1, -1, x.shape[3]))

    return rewritten(state, place, parts, taken)


def check_same(state: HybridState, other: HybridState, lengths: bool = True) -> None:
    """Refuse states that do not fit each other.

    Args:
        state: one.
        other: another.
        lengths: whether rows must have read equally many tokens.

    Raises:
        InputError: naming what differs.
    """
    if state.model != other.model:
        raise InputError(f"states of different models given, {state.model} and {other.model}; expected one model")
    if state.weights and other.weights and state.weights != other.weights:
        raise InputError("states made by different weights of one architecture given; expected those of one model")
    if state.batch != other.batch:
        raise InputError(
            f"states of {state.batch} and {other.batch} rows given, expected as many; use select or repeat"
        )
    if lengths and not torch.equal(state.lengths, other.lengths.to(state.lengths.device)):
        row = int((state.lengths != other.lengths.to(state.lengths.device)).nonzero()[0])
        raise InputError(
            f"states of different lengths given: row {row} has read {int(state.lengths[row])} tokens in one and "
            f"{int(other.lengths[row])} in the other; expected prompts of equal length"
        )


def _source_slots(
    state: HybridState, other: HybridState, place: KeyPlace, mapping: Mapping[int, int], rows: list[int]
) -> Int[Tensor, "batch key"]:
    """The slot of `other` that each slot of `state` takes from; 0 where it takes nothing."""
    if not mapping and torch.equal(state.key_positions, other.key_positions):
        return torch.arange(state.key_positions.shape[1], device=state.key_positions.device).expand(state.batch, -1)
    longest = 1 + int(torch.maximum(state.lengths, other.lengths).max())
    indices(list(mapping.values()), None, "position")
    at = torch.arange(longest)
    if mapping:
        beyond = [p for p in mapping.values() if p >= longest]
        if beyond:
            raise InputError(f"position {shown(beyond)} given, but the giving rows have read {longest - 1} tokens")
        at[torch.tensor(list(mapping))] = torch.tensor(list(mapping.values()))
    wanted = at.to(state.key_positions.device)[state.key_positions.clamp(min=0)]
    slots = torch.full((state.batch, longest + 1), -1, dtype=torch.long)
    visible, positions = other.visible.cpu(), other.key_positions.cpu()
    row, slot = visible.nonzero().unbind(dim=1)
    slots[row, positions[row, slot]] = slot
    found = slots.to(wanted.device).gather(1, wanted)
    missing = place.slots & (found < 0)
    for i in rows:
        if bool(missing[i].any()):
            raise InputError(
                f"position {shown(wanted[i][missing[i]].tolist())} given, but row {i} of the giving state holds "
                f"positions {shown(positions[i][visible[i]].tolist())}; swap positions that both hold"
            )
    return found.clamp(min=0)
