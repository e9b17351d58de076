"""Where in a `HybridState` something is done: layers, heads, absolute positions, channels, rows; checked once.

What is left out is taken whole. Positions are absolute, counted from the text's first token, and looked up among the
key slots that each row's next token can see, so that sliding windows, rows of other lengths and slots in any order
need no care. Every row may have positions of its own: a list of lists, one for each row that is named.

How it fails: a layer of the other kind, a head, channel or row that is not there, a head or channel of latents, and a
position that the cache does not hold (it never was, has left the window, or was dropped) raise `InputError`, naming
those that there are; a name that says no place, such as `layer` for `layers`, raises `KeywordError`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict, TypeVar, Unpack, cast, get_args, get_type_hints

import torch
from jaxtyping import Bool
from torch import Tensor

from hybridlens.errors import InputError, KeywordError, closest
from hybridlens.memory import KeyValues, Latents
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


Placed = TypeVar("Placed", bound=Callable[..., Any])


def placed(fn: Placed) -> Placed:
    """Have a function name every keyword that its ``**where`` takes, for help and completion, and refuse any other.

    Raises:
        KeywordError: by the function, when it is called with one.
    """
    (keywords,) = get_args(get_type_hints(fn)["where"])
    written = inspect.signature(fn)
    there = [p for p in written.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    named = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint.__forward_arg__)
        for name, hint in keywords.__annotations__.items()
    ]
    known = [p.name for p in (*there, *named)]

    @functools.wraps(fn)
    def at(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in known:
                names, near = ", ".join(p.name for p in named), closest(name, known, 1)
                raise KeywordError(f"{name!r} given, but a place is named by {names} here{near}")
        return fn(*args, **kwargs)

    cast(Any, at).__signature__ = written.replace(parameters=[*there, *named])
    return cast(Placed, at)


class KeyPlace(NamedTuple):
    """Some of the keys and values of a state."""

    layers: tuple[int, ...]
    heads: Indices
    """Of each layer."""
    slots: Bool[Tensor, "batch key"]
    """Of the state; a layer holds the newest of them, and what its own window has passed is none of its."""
    channels: Indices
    """Of each layer's heads."""

    def asked(self, state: HybridState, layer: int) -> Bool[Tensor, "batch kv_head key"]:
        """True at the keys of one layer that are meant, whether they are there or were dropped."""
        held = keys_of(state, layer)
        heads = mask(self.heads, held.k.shape[1], "key/value head")
        own = self.slots[:, self.slots.shape[1] - held.slots :] & state.visible_in(layer)
        return own.to(held.k.device)[:, None] & heads.to(held.k.device)[:, None]

    def keys(self, state: HybridState, layer: int) -> Bool[Tensor, "batch kv_head key"]:
        """The same, of those that are there."""
        return self.asked(state, layer) & ~keys_of(state, layer).lost()

    def entries(self, state: HybridState, layer: int, x: HeldKeys) -> Bool[Tensor, "batch kv_head key d_head"]:
        """The same by channel of that layer's keys or values `x`."""
        return self.keys(state, layer)[..., None] & mask(self.channels, x.shape[3], "channel").to(x.device)


def key_place(state: HybridState, **where: Unpack[Where]) -> KeyPlace:
    """What `Where` names in one state; of latents no heads or channels, since each is of all heads' keys and values."""
    heads, positions = where.get("heads"), where.get("positions")
    chosen = layers_of(state, where.get("layers"), "attention", heads)
    for layer in chosen:
        part = next((name for name in ("heads", "channels") if where.get(name) is not None), None)
        if part is not None and isinstance(keys_of(state, layer), Latents):
            raise InputError(
                f"{part} given, but layer {layer} holds latents, which are of all its heads together; leave {part} out"
            )
    place = KeyPlace(chosen, heads, slots_of(state, positions, where.get("rows"), chosen), where.get("channels"))
    if positions is not None:
        for layer in chosen:
            _check_kept(state, place, layer)
    return place


def layers_of(
    state: HybridState, layers: Indices, kind: Literal["attention", "recurrent"], heads: Indices = None
) -> tuple[int, ...]:
    """The layers of one kind that are meant."""
    mixer = MIXERS[kind]
    there = tuple(i for i, memories in enumerate(state.layers) if mixer in memories)
    if not there:
        raise InputError(f"the state has no {kind} layer, so there is nothing to change")
    if layers is None:
        return there
    chosen = tuple(indices(layers, len(state.layers), "layer"))
    if not chosen:
        raise InputError(f"no layer given; the {kind} layers are {_listed(there)}")
    for layer in chosen:
        if layer in there:
            continue
        lacks = f"layer {layer} is recurrent and holds no keys"
        if not state.layers[layer]:
            lacks = f"layer {layer} has no mixer and remembers nothing"
        elif kind == "recurrent":
            lacks = f"layer {layer} is attention and holds no recurrent state"
        elif heads is not None:
            numbers = _listed(indices(heads, None, "head"))
            lacks = f"head {numbers} of layer {layer} given, but that layer is recurrent and has no heads"
        raise InputError(f"{lacks}; the {kind} layers are {_listed(there)}")
    return chosen


def seen_by(state: HybridState, layers: Sequence[int]) -> Bool[Tensor, "batch key"]:
    """Which key slots of the state hold a key that each row's next token can see in any of some layers."""
    seen = torch.zeros_like(state.visible)
    for layer in layers:
        own = state.visible_in(layer)
        seen[:, seen.shape[1] - own.shape[1] :] |= own
    return seen


def slots_of(
    state: HybridState, positions: Positions, rows: Indices, layers: Sequence[int]
) -> Bool[Tensor, "batch key"]:
    """True at the key slots that hold the positions, in any of some layers, in the rows that are meant."""
    seen = seen_by(state, layers)
    if positions is None:
        return seen & mask(rows, state.batch, "row").to(seen.device)[:, None]
    chosen, at, visible = indices(rows, state.batch, "row"), state.key_positions.cpu(), seen.cpu()
    found = torch.zeros_like(visible)
    for row, wanted in zip(chosen, _by_row(positions, len(chosen)), strict=True):
        held = at[row][visible[row]].tolist()
        if not set(wanted) <= set(held):
            windows = [state.window_of(layer) for layer in layers]
            widest = None if None in windows else max(window for window in windows if window is not None)
            sliding = "" if widest is None else f" of its window of {widest}"
            raise not_held(wanted, held, f"the cache of row {row}", f"{sliding}; give positions among these")
        found[row] = visible[row] & torch.isin(at[row], at.new_tensor(wanted))
    return found.to(seen.device)


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

    Raises:
        InputError: keys or values alone of a layer that holds latents, or latents whose keys a hook has changed.
    """
    for layer in place.layers:
        held = keys_of(state, layer)
        if isinstance(held, Latents):
            _check_latents(held, layer, parts)
        k, v = held.k, held.v
        if parts != "values":
            k = torch.where(place.entries(state, layer, k), fn(k, held, layer, "keys").to(k.dtype), k)
        if parts != "keys":
            v = torch.where(place.entries(state, layer, v), fn(v, held, layer, "values").to(v.dtype), v)
        state = state.put(layer, "attn", type(held)(k, v, held.kept))
    return state


def _check_latents(held: Latents, layer: int, parts: KeyParts) -> None:
    if parts != "both":
        raise InputError(
            f"layer {layer} holds latents, of which both keys and values are made; {parts} alone given, expected 'both'"
        )
    if held.unfolded_k is not None:
        raise InputError(
            f"layer {layer} holds keys and values that a hook has changed, or has read with gradients on, which what "
            "is done to latents would not reach; read the prompt without hooks on attn.hook_k and attn.hook_v"
        )


def keys_of(state: HybridState, layer: int) -> KeyValues:
    """What the attention of a layer that has one remembers."""
    return cast(KeyValues, state.layers[layer]["attn"])


def indices(given: Indices, size: int | None, what: str) -> list[int]:
    """The numbers given, in order, each one of 0 … size - 1; all of these for None."""
    if given is None:
        return list(range(size or 0))
    found = [given] if isinstance(given, int) else list(given)
    for index in found:
        if type(index) is not int or index < 0 or (size is not None and index >= size):
            upto = "a number from 0 on" if size is None else f"one of 0..{size - 1}"
            raise InputError(f"{what} {index!r} given, expected {upto}")
    return found


def mask(given: Indices, size: int, what: str) -> Bool[Tensor, "size"]:
    """True at the numbers given, of `size`."""
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[indices(given, size, what)] = True
    return chosen


def shown(positions: Sequence[int]) -> str:
    """Positions as people write them: "0..3, 7"; "none" for none."""
    runs: list[list[int]] = []
    for position in sorted(positions):
        if runs and position == runs[-1][1] + 1:
            runs[-1][1] = position
        else:
            runs.append([position, position])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in runs) or "none"


def not_held(
    wanted: Sequence[int], held: Sequence[int], holder: str, advice: str = "; give positions among these"
) -> InputError:
    """The error for positions wanted of what holds others; `holder` says in words whose these are."""
    missing = shown([position for position in set(wanted) if position not in set(held)])
    return InputError(f"position {missing} given, but {holder} holds positions {shown(held)}{advice}")


def _by_row(positions: int | Sequence[int] | Sequence[Sequence[int]], rows: int) -> list[list[int]]:
    """One list of positions for each of `rows` rows."""
    if isinstance(positions, int) or not any(isinstance(item, Sequence) for item in positions):
        return [indices(cast(Indices, positions), None, "position")] * rows
    if len(positions) != rows:
        raise InputError(
            f"positions of {len(positions)} rows given for {rows} rows; give one list for each row, or one for all"
        )
    return [indices(cast(Sequence[int], item), None, "position") for item in positions]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _check_kept(state: HybridState, place: KeyPlace, layer: int) -> None:
    """Refuse positions that were dropped from a layer or head before."""
    held = keys_of(state, layer)
    if held.kept is None:
        return
    gone = (place.asked(state, layer) & ~held.kept).nonzero()
    if len(gone):
        row, head, slot = gone[0].tolist()
        at, visible = state.positions_in(layer)[row], state.visible_in(layer)[row]
        left = at[held.kept[row, head].to(visible.device) & visible]
        raise not_held(
            [int(at[slot])], left.tolist(), f"head {head} of layer {layer} in row {row}",
            "; what was dropped is not there any more",
        )  # fmt: skip
