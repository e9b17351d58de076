"""Keys and values rewritten: zero, mean, noise, quantise; `swapping` takes them from another state.

Each function takes a `HybridState` and returns another; the given one is never written to, and what was not rewritten
is shared. Where is said by layer, head, absolute position, channel and row (`places.Where`), and what by "keys",
"values" or "both". Keys are held after rotary embedding: one that is moved to another position, or averaged over
positions, keeps the rotations of where it came from.

What each row gets depends on that row alone, so that a row gives in any batch what it gives by itself.

How it fails: see `places`; numbers out of range, or not whole where they count, raise `InputError` with one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple, TypeAlias, Unpack

import numpy as np
import torch
from annotated_types import Ge, Le
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.kv_cache.places import PARTS, KeyParts, Where, key_place, keys_of, layers_of, placed, rewritten
from hybridlens.boundary import Seed, public
from hybridlens.display import Displayed
from hybridlens.errors import InputError
from hybridlens.memory import KeyValues
from hybridlens.shapes import HeldKeys
from hybridlens.state import HybridState

Group: TypeAlias = Literal["position", "channel"]


class _Means(NamedTuple):
    """Fields of `Means`."""

    keys: Float[Tensor, "kv_head d_head"]
    values: Float[Tensor, "kv_head d_head"]


class Means(Displayed, _Means):
    """What stands for one layer's keys and values on average."""

    __slots__ = ()


@placed
@public
def zero(state: HybridState, parts: KeyParts = "both", **where: Unpack[Where]) -> HybridState:
    """Keys, values or both set to 0.

    A key of 0 has score 0 and still takes its share of attention; see `dropping` for keys that take none.

    Args:
        state: not changed.
        parts: keys, values or both.
        where: ``layers=``, ``heads=``, ``rows=``, ``positions=``, ``channels=``; see `places.Where`.

    Raises:
        InputError: see `places`.
    """
    return rewritten(state, key_place(state, **where), parts, lambda x, *_: torch.zeros_like(x))


@placed
@public
def mean(
    state: HybridState, parts: KeyParts = "both", *, values: Mapping[int, Means] | None = None, **where: Unpack[Where]
) -> HybridState:
    """Keys, values or both replaced by a mean.

    Args:
        state: not changed.
        parts: keys, values or both.
        values: the mean of each layer, such as `means` of other texts gives; None for each row's and head's own,
            over all positions that it holds.
        where: ``layers=``, ``heads=``, ``rows=``, ``positions=``, ``channels=``; see `places.Where`.

    Raises:
        InputError: no mean, or one of another shape, for a layer; see `places`.
    """

    def averaged(x: HeldKeys, held: KeyValues, layer: int, part: str) -> Tensor:
        if values is None:
            return _mean(x, _all_keys(state, layer), (2,)).to(x.dtype).expand_as(x)
        if layer not in values:
            raise InputError(f"no mean for layer {layer} given, only for {', '.join(map(str, values)) or 'none'}")
        for given, own in zip(values[layer], (held.k, held.v), strict=True):
            shape, size = list(given.shape), (own.shape[1], own.shape[3])
            if tuple(shape) != size:
                raise InputError(f"a mean of shape {shape} given for layer {layer}, expected [kv_head, d_head] {size}")
        given = values[layer].keys if part == "keys" else values[layer].values
        return given.to(x)[:, None].expand_as(x)

    return rewritten(state, key_place(state, **where), parts, averaged)


def means(state: HybridState) -> dict[int, Means]:
    """The mean key and value of every attention layer and head, over all positions that all rows hold."""
    found: dict[int, Means] = {}
    for layer in layers_of(state, None, "attention"):
        held = keys_of(state, layer)
        keys, values = (_mean(x, _all_keys(state, layer), (0, 2))[0, :, 0] for x in (held.k, held.v))
        found[layer] = Means(keys, values)
    return found


@placed
@public
def noise(
    state: HybridState,
    scale: Annotated[float | int, Ge(0)],
    seed: Seed,
    parts: KeyParts = "both",
    **where: Unpack[Where],
) -> HybridState:
    """Normal noise added to keys, values or both.

    The draw belongs to (seed, layer, keys or values, position, head, channel): every row gets the same one at the
    same position, in any batch. Give rows other seeds, one after the other, for other draws.

    Args:
        state: not changed.
        scale: standard deviation of the noise, in units of the root mean square of each row's and head's held keys
            (or values).
        seed: of the draws, 0 or more.
        parts: keys, values or both.
        where: ``layers=``, ``heads=``, ``rows=``, ``positions=``, ``channels=``; see `places.Where`.

    Raises:
        InputError: a scale below 0, or a seed that is no whole number from 0 on; see `places`.
    """
    longest = int(state.lengths.max())

    def noisy(x: HeldKeys, held: KeyValues, layer: int, part: str) -> Tensor:
        rng = np.random.default_rng([seed, layer, PARTS.index(part)])
        draws = torch.from_numpy(rng.standard_normal((longest, x.shape[1], x.shape[3]), dtype=np.float32)).to(x.device)
        drawn = draws[state.positions_in(layer).clamp(min=0).to(x.device)].transpose(1, 2)
        size = _mean(x.float().square(), _all_keys(state, layer), (2,)).mean(dim=3, keepdim=True).sqrt()
        return x.float() + scale * size * drawn

    return rewritten(state, key_place(state, **where), parts, noisy)


@placed
@public
def quantise(
    state: HybridState,
    bits: Annotated[int, Ge(1), Le(16)],
    parts: KeyParts = "both",
    *,
    per: Group = "position",
    **where: Unpack[Where],
) -> HybridState:
    """Keys, values or both rounded to 2^bits levels, and back: what a quantised cache would give.

    Asymmetric min-max rounding to nearest, in float32: with m and M the group's least and greatest entry,
    s = (M - m) / (2^bits - 1), x becomes m + s · round((x - m) / s); a group of one value stays as it is. A group is
    one head's vector at one position (per "position"), or one channel of one head over all positions that are meant
    (per "channel"). Liu et al. 2024, "KIVI", has keys per channel and values per position.

    Args:
        state: not changed.
        bits: 1 to 16.
        parts: keys, values or both.
        per: what shares a scale.
        where: what is rounded, by the same keywords as in `zero`; a group is made of entries meant only.

    Raises:
        InputError: bits that are no whole number, or out of range; see `places`.
        UnknownNameError: a grouping that does not exist.
    """
    place, axis = key_place(state, **where), 3 if per == "position" else 2

    def rounded(x: HeldKeys, held: KeyValues, layer: int, part: str) -> Tensor:
        wide, meant = x.float(), place.entries(state, layer, x)
        low = wide.masked_fill(~meant, torch.inf).amin(dim=axis, keepdim=True)
        high = wide.masked_fill(~meant, -torch.inf).amax(dim=axis, keepdim=True)
        step = (high - low) / (2**bits - 1)
        return torch.where(step > 0, low + step * ((wide - low) / step).round(), wide)

    return rewritten(state, place, parts, rounded)


def _all_keys(state: HybridState, layer: int) -> Bool[Tensor, "batch kv_head key"]:
    """True at every key that a layer holds and sees."""
    lost = keys_of(state, layer).lost()
    return state.visible_in(layer).to(lost.device)[:, None] & ~lost


def _mean(x: HeldKeys, there: Bool[Tensor, "batch kv_head key"], axes: tuple[int, ...]) -> Tensor:
    """Over the keys held, along some of their axes, which are kept."""
    n = there.sum(dim=axes, keepdim=True)[..., None].clamp(min=1)
    return (x.float() * there[..., None]).sum(dim=axes, keepdim=True) / n
