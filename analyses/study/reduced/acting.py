"""The hook functions by which reductions act, and where: on keys and values as they are held, and on scores.

Each treats a token, or a query, by itself, so that prompts may be read in pieces and share their beginnings.
"""

from __future__ import annotations

import torch
from einops import einsum

from analyses.heads.selection import AtHand
from analyses.study.reduced.factors import Bottleneck
from analyses.study.reduced.rounding import few_bits
from analyses.study.reduced.shapes import mixer_of
from hybridlens.hooks import Edit, HookFunction, HookPoint, by_query, reads_only
from hybridlens.model import HybridLens
from hybridlens.shapes import Keys, Pattern


def point(layer: int, name: str) -> str:
    """A hook point of a layer's attention."""
    return f"blocks.{layer}.attn.hook_{name}"


def before_turning(lens: HybridLens, layer: int) -> str:
    """Where keys are behind their norm, if they have one, and before rotary embedding, if there is one."""
    return point(layer, "k" if mixer_of(lens, layer).parts.k_norm is None else "k_normed")


def rounding(lens: HybridLens, layer: int, bits: int) -> list[Edit]:
    """Keys as they are held, and values, in few bits."""
    turned = mixer_of(lens, layer).parts.rotary is not None
    held = point(layer, "rot_k") if turned else before_turning(lens, layer)

    @reads_only
    def rounded(x: Keys, hook: HookPoint) -> Keys:
        return few_bits(x, bits)

    return [Edit(name, rounded) for name in (held, point(layer, "v"))]


def through(maps: Bottleneck, bits: int | None) -> HookFunction:
    """Keys or values as they are read behind a bottleneck, of which the numbers held may be rounded."""
    down, up = AtHand(maps.down), AtHand(maps.up)

    @reads_only
    def narrowed(x: Keys, hook: HookPoint) -> Keys:
        held = einsum(x.float(), down.on(x.device), "b p g e, g e r -> b p g r")
        held = held if bits is None else few_bits(held, bits)
        return einsum(held, up.on(x.device), "b p g r, g r e -> b p g e").to(x.dtype)

    return narrowed


def seeing_last(window: int) -> HookFunction:
    """Scores of keys that stand too far back are -inf; slots that a row does not use are left to the mask."""

    @by_query
    @reads_only
    def near(scores: Pattern, hook: HookPoint) -> Pattern:
        slots = hook.slots
        assert slots is not None  # as at every attention score
        queries, keys = slots.query_positions[:, :, None], slots.key_positions[:, None, :]
        far = (keys >= 0) & (keys <= queries - window)
        return scores.masked_fill(far[:, None].to(scores.device), float("-inf"))

    return near


def keeping_top(n: int) -> HookFunction:
    """Scores of all but the n highest keys of a query are -inf."""

    @by_query
    @reads_only
    def best(scores: Pattern, hook: HookPoint) -> Pattern | None:
        if scores.shape[-1] <= n:
            return None
        best_of = scores.detach().topk(n, dim=-1).indices
        dropped = torch.ones_like(scores, dtype=torch.bool).scatter(-1, best_of, False)
        return scores.masked_fill(dropped, float("-inf"))

    return best
