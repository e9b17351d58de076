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

from analyses.kv_cache.places import KeyParts, KeyPlace, Where, key_place, keys_of, not_held, placed, rewritten
from hybridlens.boundary import public
from hybridlens.errors import InputError
from hybridlens.memory import KeyValues
from hybridlens.shapes import HeldKeys
from hybridlens.state import HybridState


@placed
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
        where: where `state` receives, by ``layers=``, ``heads=``, ``rows=``, ``positions=``, ``channels=``; without
            positions, wherever it holds keys, or those of the mapping.

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
    source = _source_slots(state, other, place, mapping or {})

    def taken(x: HeldKeys, held: KeyValues, layer: int, part: str) -> Tensor:
        given, meant = keys_of(other, layer), place.keys(state, layer)
        own = source[:, source.shape[1] - held.slots :] - (other.key_positions.shape[1] - given.slots)
        at = own.to(x.device)[:, None].expand(-1, x.shape[1], -1)
        if bool((meant & (at < 0)).any()):
            raise InputError(
                f"layer {layer} of the giving state has let go of keys that the receiving one holds there; swap only "
                "positions that both hold, or read both texts in batches of the same lengths"
            )
        at = at.clamp(min=0)
        if given.kept is not None and bool((meant & ~given.kept.to(x.device).gather(2, at)).any()):
            raise InputError(
                f"the giving state has dropped keys of layer {layer} that the receiving one holds; "
                "swap only positions, heads and layers that both hold"
            )
        return (given.k if part == "keys" else given.v).to(x).gather(2, at[..., None].expand(-1, -1, -1, x.shape[3]))

    return rewritten(state, place, parts, taken)


def check_same(state: HybridState, other: HybridState, lengths: bool = True) -> None:
    """Refuse states that do not fit each other; with `lengths`, rows that have not read equally many tokens too."""
    if state.model != other.model:
        raise InputError(f"states of different models given, {state.model} and {other.model}; expected one model")
    if state.weights and other.weights and state.weights != other.weights:
        raise InputError("states made by different weights of one architecture given; expected those of one model")
    if state.batch != other.batch:
        raise InputError(
            f"states of {state.batch} and {other.batch} rows given, expected as many; use select or repeat"
        )
    unequal = (state.lengths != other.lengths.to(state.lengths.device)).nonzero()
    if lengths and len(unequal):
        row = int(unequal[0])
        raise InputError(
            f"states of different lengths given: row {row} has read {int(state.lengths[row])} tokens in one and "
            f"{int(other.lengths[row])} in the other; expected prompts of equal length"
        )


def _source_slots(
    state: HybridState, other: HybridState, place: KeyPlace, mapping: Mapping[int, int]
) -> Int[Tensor, "batch key"]:
    """The slot of `other` that each slot of `state` takes from; 0 where it takes nothing."""
    at = state.key_positions
    if not mapping and torch.equal(at, other.key_positions.to(at.device)):
        return torch.arange(at.shape[1], device=at.device).expand(state.batch, -1)
    ours, theirs, visible, meant = (
        part.cpu() for part in (state.key_positions, other.key_positions, other.visible, place.slots)
    )
    source = torch.zeros_like(ours)
    for row in range(state.batch):
        slots, given = meant[row].nonzero()[:, 0], visible[row].nonzero()[:, 0].tolist()
        slot_of = dict(zip(theirs[row, given].tolist(), given, strict=True))
        wanted = [mapping.get(position, position) for position in ours[row, slots].tolist()]
        if not slot_of.keys() >= set(wanted):
            advice = "; swap positions that both hold"
            raise not_held(wanted, list(slot_of), f"row {row} of the giving state", advice)
        source[row, slots] = source.new_tensor([slot_of[position] for position in wanted])
    return source
