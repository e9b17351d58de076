"""Keys and values that are gone: what no later query can look at.

A query shares its attention among the keys that are left, so a dropped key is not one whose value is 0: that would
still take its share. Where a key goes from all attention layers and heads, its row lets go of the slot
(`HybridState.key_positions` is -1 there); where it goes from some only, it is masked there (`KeyValues.kept`).
Slots that no row uses any more are cut out, so that a cache that was reduced for all rows takes less memory.

What the text was read with is not undone: keys, values and states of later tokens saw the dropped ones. In a model
of attention layers without positional encoding, dropping the last tokens equals never having read them; in others
recurrent states remember them, and the next token stands as far from the beginning as before.

How it fails: see `places`. Dropping does not bring back what had left a sliding window.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from analyses.kv_cache.places import KeyPlace, Positions, WhereKeys, key_place, keys_of, layers_of, placed
from hybridlens.boundary import Natural, public
from hybridlens.state import HybridState


@placed
@public
def drop(state: HybridState, positions: Positions, **where: Unpack[WhereKeys]) -> HybridState:
    """The state without the keys and values at some positions.

    Args:
        state: not changed.
        positions: absolute; the same for all rows, or a list for each.
        where: ``layers=``, ``heads=``, ``rows=``; see `places.WhereKeys`.

    Raises:
        InputError: see `places`.
        KeywordError: see `places`.
    """
    return _without(state, key_place(state, positions=positions, **where))


@placed
@public
def keep(state: HybridState, positions: Positions, **where: Unpack[WhereKeys]) -> HybridState:
    """The state with the keys and values at some positions only, such as a needle's; all else is dropped there.

    Takes what `drop` takes and raises the same.
    """
    place, kept = key_place(state, **where), key_place(state, positions=positions, **where)
    return _without(state, place._replace(slots=place.slots & ~kept.slots))


@placed
@public
def keep_last(state: HybridState, n: Natural, **where: Unpack[WhereKeys]) -> HybridState:
    """The state with the newest `n` positions of each row only: a sliding window of n + 1.

    Raises:
        InputError: `n` is no whole number from 0 on; see `places`.
        KeywordError: see `keep_ends`.
    """
    return keep_ends(state, 0, n, **where)


@placed
@public
def keep_ends(state: HybridState, first: Natural, last: Natural, **where: Unpack[WhereKeys]) -> HybridState:
    """The state with the positions 0 … first - 1 and the newest `last` of each row only.

    That is the cache of Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks", whose
    positions are counted anew in the cache; here every key keeps its position. First positions that have left a
    sliding window are not there to be kept.

    Args:
        state: not changed.
        first: how many from the text's beginning, 0 or more.
        last: how many up to the newest, 0 or more.
        where: ``layers=``, ``heads=``, ``rows=``; see `places.WhereKeys`.

    Raises:
        InputError: a number of positions that is no whole number from 0 on; see `places`.
        KeywordError: positions or channels given, since what is kept follows from first and last; see `places`.
    """
    place, at = key_place(state, **where), state.key_positions
    ends = (at < first) | (at >= state.lengths[:, None] - last)
    return _without(state, place._replace(slots=place.slots & ~ends))


def _without(state: HybridState, gone: KeyPlace) -> HybridState:
    """The state without the keys in a place."""
    if gone.heads is None and set(gone.layers) == set(layers_of(state, None, "attention")):
        state = replace(state, key_positions=state.key_positions.masked_fill(gone.slots, -1))
        used = state.visible.any(dim=0)  # by any row
        return state if bool(used.all()) else state.keep_slots(used.nonzero()[:, 0])
    for layer in gone.layers:
        held = keys_of(state, layer)
        state = state.put(layer, "attn", replace(held, kept=~(held.lost() | gone.keys(state, layer))))
    return state
