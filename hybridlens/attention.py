"""Attention with every intermediate at a hook point, and the fused kernel where nobody looks.

The explicit formula (scores, softmax, weighted sum) runs only when somebody asked for scores or
pattern. Even then the fused kernel's value is used unless a hook changed something, so that reading
a pattern changes no bit of the output; gradients always flow through what was hooked.

How it fails: a hook that masks every key of a query before the softmax gives NaN there, as it
would in any model; the same edit after the softmax, at `hook_pattern`, gives zero.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hybridlens.hooks import HookPoint, unchanged, wanted
from hybridlens.layer_state import AttentionState
from hybridlens.shapes import HeldKeys, Keys, Pattern, Positions, Queries, Resid
from hybridlens.slots import KeySlots

Rotary: TypeAlias = Callable[
    [Queries, Keys, Positions], tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "batch pos kv_head d_head"]]
]


QUERY_BLOCK = 1 << 22
"""Scores (batch × heads × queries × keys) held at once where all hook functions take blocks of queries."""


@dataclass(frozen=True)
class AttentionParts:
    """A family's attention module, taken apart: projections, sizes and the rotary embedding."""

    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: nn.Module
    n_heads: int
    n_kv_heads: int
    d_head: int
    rotary: Rotary | None


class HookedAttention(nn.Module):
    """Grouped-query attention over a family's own projections."""

    def __init__(self, parts: AttentionParts) -> None:
        super().__init__()
        self.parts = parts  # a plain value: the weights stay the Hugging Face model's
        self.hook_q = HookPoint("b p h e")
        self.hook_k = HookPoint("b p g e")
        self.hook_v = HookPoint("b p g e")
        if parts.rotary is not None:
            self.hook_rot_q = HookPoint("b p h e")
            self.hook_rot_k = HookPoint("b p g e")
        self.hook_attn_scores = HookPoint("b h p k", lazy=True)
        self.hook_pattern = HookPoint("b h p k", lazy=True)
        self.hook_z = HookPoint("b p h e")
        self.hook_result = HookPoint("b p h d", lazy=True)

    def forward(self, x: Resid, slots: KeySlots, held: AttentionState | None) -> tuple[Resid, AttentionState]:
        """The layer's write to the residual stream, and the keys and values held afterwards.

        Args:
            x: the normalised residual stream.
            slots: which keys each query may look at, the held ones first.
            held: keys and values of earlier tokens.
        """
        parts, e = self.parts, self.parts.d_head
        q = self.hook_q(parts.q(x).unflatten(-1, (-1, e)))  # b p (h e) -> b p h e
        k = self.hook_k(parts.k(x).unflatten(-1, (-1, e)))
        v = self.hook_v(parts.v(x).unflatten(-1, (-1, e)))
        if parts.rotary is not None:
            q, k = parts.rotary(q, k, slots.query_positions)
            q, k = self.hook_rot_q(q), self.hook_rot_k(k)
        keys, values = k.transpose(1, 2), v.transpose(1, 2)
        held = AttentionState(keys, values) if held is None else held.append(keys, values)
        if held.kept is not None:
            slots = slots.without(held.kept, parts.n_heads)
        z = self.hook_z(self._mix(q, held.k, held.v, slots))
        return self._write(z), held

    def _mix(self, q: Queries, keys: HeldKeys, values: HeldKeys, slots: KeySlots) -> Queries:
        points = (self.hook_attn_scores, self.hook_pattern)
        if not wanted(*points):
            return fused_attention(q, keys, values, slots)
        queries = q.shape[1]
        step = max(1, QUERY_BLOCK // (q.shape[0] * q.shape[2] * keys.shape[2]))
        if queries <= step or torch.is_grad_enabled() or not all(point.takes_blocks() for point in points):
            z = self._hooked(q, keys, values, slots)
            return fused_attention(q, keys, values, slots) if z is None else z
        blocks: list[Queries | None] = []
        for start in range(0, queries, step):
            part = slots.block(start, min(start + step, queries))
            held = part.key_positions.shape[1]
            blocks.append(self._hooked(q[:, start : start + step], keys[:, :, :held], values[:, :, :held], part))
        if all(z is None for z in blocks):
            return fused_attention(q, keys, values, slots)
        fused = fused_attention(q, keys, values, slots).split(step, dim=1)
        return torch.cat([part if z is None else z for z, part in zip(blocks, fused, strict=True)], dim=1)

    def _hooked(self, q: Queries, keys: HeldKeys, values: HeldKeys, slots: KeySlots) -> Queries | None:
        """z by the explicit formula, or None where the hooks changed nothing and no gradient is asked for."""
        with placed(slots, self.hook_attn_scores, self.hook_pattern):
            before = attention_scores(q, keys, slots)
            scores = self.hook_attn_scores(before)
            same = unchanged(before, scores)
            if same and not scores.requires_grad and not wanted(self.hook_pattern):
                return None
            before = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
            pattern = self.hook_pattern(before)
        if not (same and unchanged(before, pattern)):
            return apply_pattern(pattern, values)
        if not pattern.requires_grad:
            return None
        return value_of(apply_pattern(pattern, values), fused_attention(q, keys, values, slots))

    def _write(self, z: Queries) -> Resid:
        out = self.parts.o(z.flatten(-2))
        if not wanted(self.hook_result):
            return out
        result = head_results(z, self.parts)
        hooked = self.hook_result(result)
        total = hooked.sum(dim=2)
        bias = getattr(self.parts.o, "bias", None)
        total = total if bias is None else total + bias
        if not unchanged(result, hooked):
            return total
        return value_of(total, out) if total.requires_grad else out


def fused_attention(q: Queries, keys: HeldKeys, values: HeldKeys, slots: KeySlots) -> Queries:
    """z by PyTorch's fused kernel; query heads share keys and values in consecutive groups."""
    queries, groups = q.shape[1], q.shape[2] // keys.shape[1]
    if queries == 1:  # heads of a group become queries of their shared key head: no key is copied
        folded = q[:, 0].unflatten(1, (-1, groups))
        mask = None if slots.mask is None else slots.mask.to(q.device)
        if mask is not None and mask.shape[1] > 1:
            mask = mask[:, :, 0].unflatten(1, (-1, groups))
        z = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask)
        return z.flatten(1, 2)[:, None]
    z = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        keys,
        values,
        attn_mask=None if slots.mask is None else slots.mask.to(q.device),
        is_causal=slots.causal and slots.mask is None,
        enable_gqa=groups > 1,
    )
    return z.transpose(1, 2)


@contextmanager
def placed(slots: KeySlots, *points: HookPoint) -> Generator[None]:
    """Have the hook functions of `points` find `slots` while they run."""
    for point in points:
        point.slots = slots
    try:
        yield
    finally:
        for point in points:
            point.slots = None


def attention_scores(q: Queries, keys: HeldKeys, slots: KeySlots) -> Pattern:
    """q·k / √d_head, -inf where the mask forbids."""
    groups, queries = keys.shape[1], q.shape[1]
    folded = rearrange(q, "b p (g r) e -> b g (r p) e", g=groups)  # a group's heads are queries of its one key head
    scores = torch.matmul(folded, keys.transpose(2, 3)).mul_(q.shape[-1] ** -0.5)
    scores = scores.view(q.shape[0], q.shape[2], queries, keys.shape[2])
    if slots.mask is None and not slots.causal:
        return scores
    return scores.masked_fill_(~slots.dense(q.device), float("-inf"))


def apply_pattern(pattern: Pattern, values: HeldKeys) -> Queries:
    """z = pattern @ v, per query head."""
    grouped = rearrange(pattern, "b (g r) p k -> b g r p k", g=values.shape[1])
    return rearrange(einsum(grouped, values, "b g r p k, b g k e -> b g r p e"), "b g r p e -> b p (g r) e")


def head_results(z: Queries, parts: AttentionParts) -> Float[Tensor, "batch pos head d_model"]:
    """What each head writes to the residual stream, the output bias left out."""
    w_o = rearrange(cast(Tensor, parts.o.weight), "d (h e) -> h e d", e=parts.d_head)
    return einsum(z, w_o, "b p h e, h e d -> b p h d")


def value_of(explicit: Tensor, fused: Tensor) -> Tensor:
    """The value of `fused` with the gradients of `explicit`; both compute the same quantity."""
    return cast(Tensor, _ValueOf.apply(explicit, fused.detach()))


class _ValueOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, explicit: Tensor, fused: Tensor) -> Tensor:
        return fused.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
