"""Where in a `HybridState` something is done: layers, heads, absolute positions, channels, rows; checked once.

What is left out is taken whole. Positions are absolute, counted from the text's first token, and looked up among the
key slots that each row's next token can see, so that sliding windows, rows of other lengths and slots in any order
need no care. Every row may have positions of its own: a list of lists, one for each row that is named.

How it fails: a layer of the other kind, a head, channel or row that is not there, and a position that the cache does
not hold (it never was, has left the window, or was dropped) raise `InputError`, naming those that there are; a name
that says no place, such as `layer` for `layers`, raises `UnknownNameError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, TypedDict, Unpack, cast

import torch
from jaxtyping import Bool
from torch import Tensor

from hybridlens.errors import InputError, UnknownNameError, closest
from hybridlens.memory import KeyValues
from hybridlens.shapes import HeldKeys
from hybridlens.state import HybridState

Indices: TypeAlias = int | Sequence[int] | None
"""One, several, or all of them."""

Positions: TypeAlias = int | Sequence[int] | Sequence[Sequence[int]] | None
"""Absolute positions: the same for all rows, or a list for each row; None for all that are held."""

KeyParts: TypeAlias = Literal["keys", "values", "both"]
PARTS = ("keys", "values", "both")

MIXERS = {"attention": "attn", "recurrent": "ssm"}
"""Names of mixers by the word for their layers."""


class WhereKeys(TypedDict, total=False):
    """Which layers, heads and rows are meant; every entry may be left out."""

    layers: Indices
    """Attention layers, by their index in the model."""
    heads: Indices
    """Key/value heads."""
    rows: Indices
    """Rows of the batch."""


class Where(WhereKeys, total=False):
    """Which keys and values are meant; every entry may be left out."""

    positions: Positions
    channels: Indices
    """Channels of each head."""


class KeyPlace(NamedTuple):
    """Some of the keys and values of a state."""

    layers: tuple[int, ...]
    heads: Indices
    """Of each layer."""
    slots: Bool[Tensor, "batch key"]
    channels: Indices
    """Of each layer's heads."""

    def asked(self, held: KeyValues) -> Bool[Tensor, "batch kv_head key"]:
        """True at the keys of one layer that are meant, whether they are there or were dropped.

        Raises:
            InputError: the layer has no such head.
        """
        device = held.k.device
        return self.slots.to(device)[:, None] & _mask(self.heads, held.k.shape[1], "key/value head").to(device)[:, None]

    def keys(self, held: KeyValues) -> Bool[Tensor, "batch kv_head key"]:
        """The same, of those that are there."""
        return self.asked(held) if held.kept is None else self.asked(held) & held.kept

    def entries(self, held: KeyValues) -> Bool[Tensor, "batch kv_head key d_head"]:
        """The same by channel.

        Raises:
            InputError: the layer's heads have no such channel.
        """
        return self.keys(held)[..., None] & _mask(self.channels, held.k.shape[3], "channel").to(held.k.device)


def key_place(state: HybridState, **where: Unpack[Where]) -> KeyPlace:
    """What `Where` names in one state.

    Raises:
        InputError: see the module.
        UnknownNameError: see the module.
    """
    check_where(where, Where)
    heads, positions = where.get("heads"), where.get("positions")
    chosen = layers_of(state, where.get("layers"), "attention", heads)
    channels = where.get("channels")
    for layer in chosen:  # layers need not be alike
        held = keys_of(state, layer)
        indices(heads, held.k.shape[1], "key/value head")
        indices(channels, held.k.shape[3], "channel")
    place = KeyPlace(chosen, heads, slots_of(state, positions, where.get("rows")), channels)
    if positions is not None:
        for layer in chosen:
            _check_kept(state, place, layer)
    return place


def layers_of(
    state: HybridState, layers: Indices, kind: Literal["attention", "recurrent"], heads: Indices = None
) -> tuple[int, ...]:
    """The layers of one kind that are meant.

    Raises:
        InputError: a layer that is not there, is of the other kind, or none of that kind.
    """
    mixer = MIXERS[kind]
    there = tuple(i for i, memories in enumerate(state.layers) if mixer in memories)
    if not there:
        raise InputError(f"the state has no {kind} layer, so there is nothing to change")
    if layers is None:
        return there
    chosen = tuple(indices(layers, len(state.layers), "layer"))
    if not chosen:
        raise InputError(f"no layer given; the {kind} layers are {_listed(there)}")
    wrong = [layer for layer in chosen if layer not in there]
    if wrong and kind == "attention" and heads is not None and "ssm" in state.layers[wrong[0]]:
        raise InputError(
            f"head {_listed(indices(heads, None, 'head'))} of layer {wrong[0]} given, but that layer is recurrent and "
            f"has no heads; the attention layers are {_listed(there)}"
        )
    if wrong and not state.layers[wrong[0]]:
        raise InputError(f"layer {wrong[0]} has no mixer and remembers nothing; the {kind} layers are {_listed(there)}")
    if wrong:
        lacks = "recurrent and holds no keys" if kind == "attention" else "attention and holds no recurrent state"
        raise InputError(f"layer {wrong[0]} is {lacks}; the {kind} layers are {_listed(there)}")
    return chosen


def rows_of_batch(state: HybridState, rows: Indices) -> list[int]:
    """The rows that are meant.

    Raises:
        InputError: a row that is not there.
    """
    return indices(rows, state.batch, "row")


def slots_of(state: HybridState, positions: Positions, rows: Indices) -> Bool[Tensor, "batch key"]:
    """True at the key slots that hold the positions in the rows that are meant.

    Raises:
        InputError: a position that a row does not hold, or not one list of positions for each row.
    """
    visible, chosen = state.visible, rows_of_batch(state, rows)
    if positions is None:
        in_rows = torch.zeros_like(state.lengths, dtype=torch.bool)
        in_rows[chosen] = True
        return visible & in_rows[:, None]
    wanted = _by_row(positions, len(chosen))
    table = torch.zeros(state.batch, 2 + int(state.lengths.max()), dtype=torch.bool)
    for row, row_positions in zip(chosen, wanted, strict=True):
        inside = [position for position in row_positions if 0 <= position <= table.shape[1] - 2]
        table[row, torch.tensor(inside, dtype=torch.long) + 1] = True
    found = table.to(visible.device).gather(1, state.key_positions + 1) & visible
    counts = found.sum(dim=1).tolist()
    for row, row_positions in zip(chosen, wanted, strict=True):
        if counts[row] != len(set(row_positions)):
            _refuse(row_positions, state.key_positions[row][visible[row]].tolist(), row, state.window)
    return found


def rewritten(
    state: HybridState, place: KeyPlace, parts: KeyParts, fn: Callable[[HeldKeys, KeyValues, int, str], Tensor]
) -> HybridState:
    """The state with what `fn` makes of keys and values in their place; all else is shared with the given one.

    Args:
        state: not changed.
        place: what is replaced.
        parts: keys, values or both.
        fn: (keys or values of a layer, the layer's memory, its index, "keys" or "values") → replacement of that
            shape, used where `place` is; it must not write to what it is given.
    """
    for layer in place.layers:
        held = keys_of(state, layer)
        entries = place.entries(held)
        k, v = held.k, held.v
        if parts != "values":
            k = torch.where(entries, fn(k, held, layer, "keys").to(k.dtype), k)
        if parts != "keys":
            v = torch.where(entries, fn(v, held, layer, "values").to(v.dtype), v)
        state = state.put(layer, "attn", KeyValues(k, v, held.kept))
    return state


def keys_of(state: HybridState, layer: int) -> KeyValues:
    """What the attention of a layer that has one remembers."""
    return cast(KeyValues, state.layers[layer]["attn"])


def indices(given: Indices, size: int | None, what: str) -> list[int]:
    """The numbers given, in order; all of `size` for None.

    Raises:
        InputError: one that is none of 0 … size - 1.
    """
    if given is None:
        return list(range(size or 0))
    found = [given] if isinstance(given, int) else list(given)
    for index in found:
        if type(index) is not int or index < 0 or (size is not None and index >= size):
            upto = "a number from 0 on" if size is None else f"one of 0..{size - 1}"
            raise InputError(f"{what} {index!r} given, expected {upto}")
    return found


def check_name(given: str, known: tuple[str, ...], what: str = "part") -> None:
    """Refuse a name that does not exist.

    Raises:
        UnknownNameError: naming those that do.
    """
    if given not in known:
        raise UnknownNameError(f"{what} {given!r} does not exist; expected one of {', '.join(known)}")


def check_where(where: Mapping[str, object], kind: type) -> None:
    """Refuse a name that says no place, which would otherwise change everything.

    Args:
        where: what was given by name.
        kind: the `TypedDict` whose names there are.

    Raises:
        UnknownNameError: naming those that there are.
    """
    known = tuple(kind.__annotations__)
    for name in where:
        if name not in known:
            near = closest(name, known, 1)
            raise UnknownNameError(f"{name!r} given, but a place is named by {', '.join(known)} here{near}")


def shown(positions: Sequence[int]) -> str:
    """Positions as people write them: "0..3, 7"; "none" for none."""
    runs: list[list[int]] = []
    for position in sorted(positions):
        if runs and position == runs[-1][1] + 1:
            runs[-1][1] = position
        else:
            runs.append([position, position])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in runs) or "none"


def _by_row(positions: int | Sequence[int] | Sequence[Sequence[int]], rows: int) -> list[list[int]]:
    """One list of positions for each of `rows` rows."""
    if isinstance(positions, int):
        return [indices(positions, None, "position")] * rows
    if not any(isinstance(item, Sequence) for item in positions):
        return [indices(cast(Sequence[int], positions), None, "position")] * rows
    if len(positions) != rows:
        raise InputError(
            f"positions of {len(positions)} rows given for {rows} rows; give one list for each row, or one for all"
        )
    return [indices(cast(Sequence[int], item), None, "position") for item in positions]


def _mask(given: Indices, size: int, what: str) -> Bool[Tensor, "size"]:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[indices(given, size, what)] = True
    return mask


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _refuse(wanted: Sequence[int], held: Sequence[int], row: int, window: int | None) -> None:
    missing = sorted(set(wanted) - set(held))
    sliding = "" if window is None else f" of its window of {window}"
    raise InputError(
        f"position {shown(missing)} given, but the cache of row {row} holds positions {shown(held)}{sliding}; "
        "give positions among these"
    )


def _check_kept(state: HybridState, place: KeyPlace, layer: int) -> None:
    """Refuse positions that were dropped from a layer or head before."""
    held = keys_of(state, layer)
    if held.kept is None:
        return
    gone = (place.asked(held) & ~held.kept).nonzero()
    if len(gone):
        row, head, slot = gone[0].tolist()
        there = held.kept[row, head].to(state.visible.device) & state.visible[row]
        position, left = int(state.key_positions[row, slot]), state.key_positions[row][there].tolist()
        raise InputError(
            f"position {position} given, but head {head} of layer {layer} in row {row} holds positions {shown(left)}; "
            "what was dropped is not there any more"
        )
