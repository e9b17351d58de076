"""Narrow heads without training: the best factors of each head's maps, as bottlenecks of keys and values.

Query heads that share a key head share its bottleneck too, or each would hold keys of its own: the maps of such a group
are approximated together. Biases count as an input that is always 1, norms of queries and keys by their weights alone.

**Values.** What a group makes of a token's value is W_V [W_O of its heads, side by side]; the bottleneck of width r is
its truncated singular value decomposition, which by Eckart and Young (Psychometrika 1, 1936) is nearest in the
Frobenius norm. A gate between z and W_O is left out of that map.

**Keys.** Without rotary embedding, likewise: the scores of a group are W_Q [its heads, one below the other] W_K^T.
With it there is no one map, but one for every distance, and a bottleneck must be the same for all: between two
positions every pair of dimensions turns by an angle of its own. Over angles drawn evenly and apart from each other, as
they are over many distances, terms of different pairs do not meet in the mean, and what is lost is a sum over pairs.
So each pair is narrowed by itself, before it turns: the mean of ||A R(angle) (I - u u^T) B^T||^2, with A and B the
maps of queries and keys into the pair, is tr(A^T A) / 2 times what B^T B has apart from u. The candidates are the two
eigenvectors of each pair's B^T B, and the singular vectors of what does not turn; the r of the largest terms are held.
One number and the position are enough to turn it. A pair that turns slowly sees few angles within a context, and is
taken to see all.

How it fails: nearest in weights is not nearest in scores, since activations are no white noise; weights that are no
plain matrices raise `CheckpointError`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.study.reduced.shapes import KeyParts, mixer_of
from hybridlens.model import HybridLens


class Bottleneck(NamedTuple):
    """What is held of each key head's vectors, and what is read of that: x becomes x @ down @ up."""

    down: Float[Tensor, "kv_head width held"]
    up: Float[Tensor, "kv_head held width"]


class KeyBottleneck(NamedTuple):
    """Of keys, before they turn."""

    maps: Bottleneck
    parts: tuple[KeyParts, ...]
    """How what is held lies in each head's key."""


@torch.no_grad()
def key_bottleneck(lens: HybridLens, layer: int, width: int) -> KeyBottleneck:
    """The best `width` numbers to hold of each key; see the module."""
    mixer = mixer_of(lens, layer)
    parts, cfg = mixer.parts, mixer.cfg
    group = cfg.n_heads // cfg.n_kv_heads
    queries = _with_bias(mixer.W_Q, mixer.b_Q) * _weight(parts.q_norm, cfg.n_heads, cfg.d_head, parts.joint_norm)
    keys = _with_bias(mixer.W_K, mixer.b_K)[::group]
    keys = keys * _weight(parts.k_norm, cfg.n_kv_heads, cfg.d_head, parts.joint_norm)
    turning = 0 if parts.rotary is None else parts.rotary.turning.dims
    found = [_narrow_key(queries[g * group :][:group].flatten(0, 1), keys[g], turning, width) for g in range(len(keys))]
    maps = Bottleneck(*(torch.stack(side).float() for side in zip(*((one.down, one.up) for one in found), strict=True)))
    return KeyBottleneck(maps, tuple(one.parts for one in found))


@torch.no_grad()
def value_bottleneck(lens: HybridLens, layer: int, width: int) -> Bottleneck:
    """The best `width` numbers to hold of each value; see the module."""
    mixer = mixer_of(lens, layer)
    cfg = mixer.cfg
    group = cfg.n_heads // cfg.n_kv_heads
    values = _with_bias(mixer.W_V, mixer.b_V)[::group]
    writes = mixer.W_O.detach().double().cpu().unflatten(0, (-1, group)).transpose(1, 2).flatten(2)
    found = [_factors(value, write.T) for value, write in zip(values, writes, strict=True)]
    return Bottleneck(
        torch.stack([one.left[:, :width] for one in found]).float(),
        torch.stack([one.right[:, :width].T for one in found]).float(),
    )


class _Factors(NamedTuple):
    """Of the map A B^T, which A @ left @ right.T @ B.T is; with the first r columns of each, its best of rank r."""

    left: Float[Tensor, "width rank"]
    right: Float[Tensor, "width rank"]
    energy: Float[Tensor, "rank"]
    """Squared singular values, falling."""


def _factors(a: Float[Tensor, "inputs width"], b: Float[Tensor, "outputs width"]) -> _Factors:
    """By the singular values of the small core between the triangular factors of both sides."""
    of_a, of_b = (torch.linalg.qr(side, mode="r").R for side in (a, b))
    u, s, vh = torch.linalg.svd(of_a @ of_b.T)
    root = s.sqrt()
    return _Factors(torch.linalg.pinv(of_a) @ u * root, torch.linalg.pinv(of_b) @ vh.T * root, s.square())


class _Narrowed(NamedTuple):
    down: Float[Tensor, "width held"]
    up: Float[Tensor, "held width"]
    parts: KeyParts


def _narrow_key(
    queries: Float[Tensor, "inputs width"], keys: Float[Tensor, "inputs_of_one width"], turning: int, width: int
) -> _Narrowed:
    """The bottleneck of one key head, whose query heads' maps stand one below the other."""
    half, whole = turning // 2, keys.shape[1]
    energies: list[tuple[float, int, Tensor, Tensor]] = []  # with its pair, -1 for none, and both sides of it
    for pair in range(half):
        at = [pair, pair + half]
        values, directions = torch.linalg.eigh(keys[:, at].T @ keys[:, at])
        for value, direction in zip(values.tolist(), directions.T, strict=True):
            side = torch.zeros(whole, dtype=keys.dtype)
            side[at] = direction
            energies.append((float(queries[:, at].square().sum()) / 2 * value, pair, side, side))
    if turning < whole:
        rest = _factors(queries[:, turning:], keys[:, turning:])
        for place, energy in enumerate(rest.energy.tolist()):
            down, up = torch.zeros(2, whole, dtype=keys.dtype)
            down[turning:], up[turning:] = rest.right[:, place], rest.left[:, place]
            energies.append((energy, -1, down, up))
    chosen = sorted(energies, key=lambda one: -one[0])[:width]
    pairs = [pair for _, pair, _, _ in chosen]
    single = sum(pairs.count(pair) == 1 for pair in range(half))
    double = sum(pairs.count(pair) == 2 for pair in range(half))
    down, up = torch.stack([one[2] for one in chosen], dim=1), torch.stack([one[3] for one in chosen])
    return _Narrowed(down, up, KeyParts(pairs.count(-1), single, double))


def _with_bias(weight: Tensor, bias: Tensor) -> Float[Tensor, "head inputs width"]:
    """A map by head whose last input is always 1."""
    return torch.cat([weight, bias[:, None]], dim=1).detach().double().cpu()


def _weight(norm: object, heads: int, width: int, joint: bool) -> Float[Tensor, "of_heads 1 width"]:
    """What a norm of queries or keys multiplies each dimension by."""
    if norm is None:
        return torch.ones(1, 1, 1, dtype=torch.float64)
    module = norm.module  # pyright: ignore[reportAttributeAccessIssue]
    ones = torch.ones(heads * width if joint else width, device=module.weight.device)
    found: Tensor = norm.weighted(ones, torch.float32)  # pyright: ignore[reportAttributeAccessIssue]
    return found.detach().double().cpu().view(-1, 1, width)
