"""Attention with every intermediate at a hook point, and the fused kernel where nobody looks.

The explicit formula (scores, softmax, weighted sum) runs only when somebody asked for scores or
pattern. Even then the fused kernel's value is used unless a hook changed something, so that reading
a pattern changes no bit of the output; gradients always flow through what was hooked.

What families differ in is data (`AttentionParts`): norms of queries and keys, rotary embedding, an output gate packed
with the query or projected by itself, windows, scales, a soft cap on scores. No fused kernel of PyTorch knows a soft
cap: where there is one, the formula is gone through block by block of queries, and nothing else is written down.

How it fails: a hook that masks every key of a query before the softmax gives NaN there, as it
would in any model; the same edit after the softmax, at `hook_pattern`, gives zero.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from hybridlens.at_once import rows_at_once
from hybridlens.config import AttentionConfig
from hybridlens.hooks import HookPoint, unchanged, wanted
from hybridlens.memory import KeyValues, Memory
from hybridlens.mixers.any_length import any_length
from hybridlens.mixers.named import AttentionByName
from hybridlens.mixers.rotary import Rotary
from hybridlens.mixers.writing import value_of, written
from hybridlens.norms import HookedNorm, Norm
from hybridlens.passes import Pass
from hybridlens.projections import Projection
from hybridlens.shapes import HeldKeys, HeldValues, Mixed, Pattern, Queries, Resid
from hybridlens.slots import KeySlots
from hybridlens.stream import HeadReads, HeadWrites

QUERY_BLOCK = 1 << 22
"""Scores (batch × heads × queries × keys) held at once on a CPU where all hook functions take blocks of queries."""

SCORE_BYTES = 16
"""What a score takes at once: itself, its weight in float32, an edited weight, and what hook functions make of it."""

FUSED_BLOCK = 512
"""Queries that the fused kernel takes at once where a window, or held keys, need a mask; a larger window takes more."""


@dataclass(frozen=True, eq=False)
class AttentionParts:
    """A family's attention module, taken apart.

    Attributes:
        q: queries; with a packed gate, of each head its query and then its gate.
        k: keys.
        v: values.
        o: what is written of what heads read.
        scale: scores are q · k times this.
        rotary: turns queries and keys by their positions; None for none.
        q_norm: of each head's query, before rotary embedding; None for none.
        k_norm: likewise of keys.
        joint_norm: these norms are of all heads' queries, or keys, at once.
        packed_gate: what heads read is multiplied by the sigmoid of the second half of `q`'s output.
        soft_cap: c where scores are c · tanh(scores / c), before masking; None for no cap.
    """

    q: Projection
    k: Projection
    v: Projection
    o: Projection
    scale: float
    rotary: Rotary | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    joint_norm: bool = False
    packed_gate: bool = False
    soft_cap: float | None = None


class HookedAttention(AttentionByName):
    """Grouped-query attention over a family's own projections."""

    def __init__(self, cfg: AttentionConfig, parts: AttentionParts, d_model: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.parts = parts  # a plain value: the weights stay the Hugging Face model's
        h, g, e = cfg.n_heads, cfg.n_kv_heads, cfg.d_head
        self.hook_q = HookPoint("b p h e", h=h, e=e)
        if parts.packed_gate:
            self.hook_gate = HookPoint("b p h e", h=h, e=e)
        self.hook_k = HookPoint("b p g e", g=g, e=e)
        self.hook_v = HookPoint("b p g e", g=g, e=e)
        if parts.q_norm is not None:
            self.hook_q_normed = HookPoint("b p h e", h=h, e=e)
            self.hook_k_normed = HookPoint("b p g e", g=g, e=e)
        if parts.rotary is not None:
            self.hook_rot_q = HookPoint("b p h e", h=h, e=e)
            self.hook_rot_k = HookPoint("b p g e", g=g, e=e)
        self.hook_attn_scores = HookPoint("b h p k", lazy=True, h=h)
        self.hook_pattern = HookPoint("b h p k", lazy=True, h=h)
        self.hook_z = HookPoint("b p h e", h=h, e=e)
        if parts.packed_gate:
            self.hook_z_gated = HookPoint("b p h e", h=h, e=e)
        self.hook_result = HookPoint("b p h d", lazy=True, h=h, d=d_model)

    def forward(
        self, x: Float[Tensor, "batch pos d_in"], run: Pass, held: Memory | None, after: HookedNorm | None = None
    ) -> tuple[Resid, Memory]:
        """The write to the residual stream, and the keys and values held afterwards.

        Args:
            x: the normalised residual stream; beside a shared block's, the embedding.
            run: the forward pass.
            held: keys and values of earlier tokens.
            after: the norm that the write goes through; None for none.
        """
        parts, cfg, (batch, new, _) = self.parts, self.cfg, x.shape
        h, g, e = cfg.n_heads, cfg.n_kv_heads, cfg.d_head
        q, gate = parts.q(x), None
        if parts.packed_gate:
            q, gate = q.view(batch, new, h, 2 * e).chunk(2, dim=-1)
            q, gate = self.hook_q(q), self.hook_gate(torch.sigmoid(gate))
        else:
            q = self.hook_q(q.view(batch, new, h, e))
        k, v = self.hook_k(parts.k(x).view(batch, new, g, e)), self.hook_v(parts.v(x).view(batch, new, g, e))
        if parts.q_norm is not None and parts.k_norm is not None:
            q, k = self.hook_q_normed(self._normed(parts.q_norm, q)), self.hook_k_normed(self._normed(parts.k_norm, k))
        if parts.rotary is not None:
            q, k = parts.rotary(q, k, run)
            q, k = self.hook_rot_q(q), self.hook_rot_k(k)
        keys, values = k.transpose(1, 2), v.transpose(1, 2)
        memory = KeyValues(keys, values) if held is None else cast(KeyValues, held).append(keys, values)
        slots = run.slots(self.cfg.window, memory.slots)
        if memory.kept is not None:
            slots = slots.without(memory.kept, self.cfg.n_heads)
        z = self.hook_z(self._mix(q, memory.k, memory.v, slots))
        if gate is not None:
            z = self.hook_z_gated(z * gate)
        return written(self.parts.o, z, self.hook_result, after), memory

    @property
    def head_writes(self) -> HeadWrites:
        """What its heads write."""
        point = "attn.hook_z_gated" if self.parts.packed_gate else "attn.hook_z"
        return HeadWrites("head", self.cfg.n_heads, point, self.parts.o)

    @property
    def head_reads(self) -> dict[str, HeadReads]:
        """What its heads read: queries, keys and values before norms and rotary embedding; a gate if there is one."""
        parts, cfg, e = self.parts, self.cfg, self.cfg.d_head
        packed = 2 * e if parts.packed_gate else e

        def query(x: Tensor) -> Tensor:
            return parts.q(x).unflatten(-1, (-1, packed))

        found = {
            "q": HeadReads(cfg.n_heads, "attn.hook_q", lambda x: query(x)[..., :e], torch.ones_like),
            "k": HeadReads(cfg.n_kv_heads, "attn.hook_k", lambda x: parts.k(x).unflatten(-1, (-1, e)), torch.ones_like),
            "v": HeadReads(cfg.n_kv_heads, "attn.hook_v", lambda x: parts.v(x).unflatten(-1, (-1, e)), torch.ones_like),
        }
        if parts.packed_gate:

            def gate(x: Tensor) -> Tensor:
                return torch.sigmoid(query(x)[..., e:])

            found["gate"] = HeadReads(cfg.n_heads, "attn.hook_gate", gate, lambda value: value * (1 - value))
        return found

    def out_bias(self) -> Tensor | None:
        """What it writes whatever it reads; None for nothing."""
        return self.parts.o.bias()

    def empty(self, batch: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """What `batch` rows hold that have read nothing."""
        nothing = torch.zeros(batch, self.cfg.n_kv_heads, 0, self.cfg.d_head, dtype=dtype, device=device)
        return KeyValues(nothing, nothing)

    def _mix(self, q: Queries, keys: HeldKeys, values: HeldValues, slots: KeySlots) -> Mixed:
        points = (self.hook_attn_scores, self.hook_pattern)
        if not wanted(*points):
            return self._fused(q, keys, values, slots)
        queries = q.shape[1]
        width = q.shape[0] * q.shape[2] * keys.shape[2]
        step = rows_at_once(queries, width, q.device, on_cpu=QUERY_BLOCK, each=SCORE_BYTES)
        if queries <= step or torch.is_grad_enabled() or not all(point.takes_blocks() for point in points):
            z = self._hooked(q, keys, values, slots, self.parts.soft_cap is not None and _at_once(queries, slots))
            return self._fused(q, keys, values, slots) if z is None else z
        blocks: list[Mixed | None] = []
        for start in range(0, queries, step):
            part = slots.block(start, min(start + step, queries))
            held = part.key_positions.shape[1]
            blocks.append(self._hooked(q[:, start : start + step], keys[:, :, :held], values[:, :, :held], part))
        if all(z is None for z in blocks):
            return self._fused(q, keys, values, slots)
        fused = self._fused(q, keys, values, slots).split(step, dim=1)
        return torch.cat([part if z is None else z for z, part in zip(blocks, fused, strict=True)], dim=1)

    def _hooked(
        self, q: Queries, keys: HeldKeys, values: HeldValues, slots: KeySlots, formula: bool = False
    ) -> Mixed | None:
        """z by the explicit formula, or None where the hooks changed nothing and no gradient is asked for.

        With `formula` that is what `_fused` would compute in the same pieces: it is not gone through again then.
        """
        with placed(slots, self.hook_attn_scores, self.hook_pattern):
            before = attention_scores(q, keys, slots, self.parts.scale, self.parts.soft_cap)
            scores = self.hook_attn_scores(before)
            same = unchanged(before, scores)
            looked_at = wanted(self.hook_pattern)
            if same and not scores.requires_grad and not looked_at and not formula:
                return None
            before = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
            pattern = self.hook_pattern(before) if looked_at else before
        if formula or not (same and unchanged(before, pattern)):
            return apply_pattern(pattern, values)
        if not pattern.requires_grad:
            return None
        return value_of(apply_pattern(pattern, values), self._fused(q, keys, values, slots))

    def _normed(self, norm: Norm, x: Tensor) -> Tensor:
        return norm(x.flatten(-2)).unflatten(-1, x.shape[-2:]) if self.parts.joint_norm else norm(x)

    def _fused(self, q: Queries, keys: HeldKeys, values: HeldValues, slots: KeySlots) -> Mixed:
        """z where nobody looks."""
        return fused_attention(q, keys, values, slots, self.parts.scale, self.parts.soft_cap)


def fused_attention(
    q: Queries, keys: HeldKeys, values: HeldValues, slots: KeySlots, scale: float, soft_cap: float | None = None
) -> Mixed:
    """z by PyTorch's fused kernel; query heads share keys and values in consecutive groups.

    Long passes whose queries do not all see all earlier keys go through it in blocks of queries, each with the keys
    that it reaches: time and memory grow with the number of queries times the window, not with their square.
    """
    queries, groups = q.shape[1], q.shape[2] // keys.shape[1]
    if queries == 1 and soft_cap is None:  # heads of a group become queries of their shared key head: no key is copied
        folded = q.view(q.shape[0], -1, groups, q.shape[3])
        mask = slots.mask(q.device)
        if mask is not None and mask.shape[1] > 1:
            mask = mask[:, :, 0].unflatten(1, (-1, groups))
        with any_length(q.device):
            z = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale)
        return z.reshape(q.shape[0], 1, -1, z.shape[3])
    if _at_once(queries, slots) or ((slots.plain or slots.open) and soft_cap is None):
        return _fused(q, keys, values, slots, scale, soft_cap)
    blocks: list[Mixed] = []
    step = _block(slots)
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        near = slots.reached(start, stop)
        part = slots.part(start, stop, near)
        blocks.append(_fused(q[:, start:stop], keys[:, :, near], values[:, :, near], part, scale, soft_cap))
    return torch.cat(blocks, dim=1)


def _block(slots: KeySlots) -> int:
    """Queries of a long pass that are gone through at once."""
    return max(FUSED_BLOCK, slots.window or 0)


def _at_once(queries: int, slots: KeySlots) -> bool:
    """Whether a pass is short enough to be gone through in one piece."""
    return queries <= _block(slots)


def _fused(
    q: Queries, keys: HeldKeys, values: HeldValues, slots: KeySlots, scale: float, soft_cap: float | None
) -> Mixed:
    """The kernel itself, over the queries and keys of `slots`; the formula where scores have a soft cap."""
    if soft_cap is not None:
        scores = attention_scores(q, keys, slots, scale, soft_cap)
        return apply_pattern(torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), values)
    z = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        keys,
        values,
        attn_mask=slots.mask(q.device),
        is_causal=slots.plain,
        enable_gqa=q.shape[2] > keys.shape[1],
        scale=scale,
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


def attention_scores(
    q: Queries, keys: HeldKeys, slots: KeySlots, scale: float, soft_cap: float | None = None
) -> Pattern:
    """q·k times `scale`, softly capped where there is a cap, -inf where the mask forbids."""
    groups, queries = keys.shape[1], q.shape[1]
    if queries == 1:  # a group's heads are queries of its one key head
        folded = q[:, 0].unflatten(1, (groups, -1))
    else:
        folded = rearrange(q, "b p (g r) e -> b g (r p) e", g=groups)
    scores = torch.matmul(folded, keys.transpose(2, 3)).mul_(scale)
    if soft_cap is not None:
        graph = scores.requires_grad
        scores = torch.tanh(scores / soft_cap) * soft_cap if graph else scores.div_(soft_cap).tanh_().mul_(soft_cap)
    scores = scores.view(q.shape[0], q.shape[2], queries, keys.shape[2])
    if slots.open:
        return scores
    return scores.masked_fill_(~slots.dense(q.device), float("-inf"))


def apply_pattern(pattern: Pattern, values: HeldValues) -> Mixed:
    """z = pattern @ v, per query head."""
    grouped = rearrange(pattern, "b (g r) p k -> b g r p k", g=values.shape[1])
    return rearrange(einsum(grouped, values, "b g r p k, b g k e -> b g r p e"), "b g r p e -> b p (g r) e")
