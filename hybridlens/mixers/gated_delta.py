"""Gated DeltaNet (Yang et al. 2024): a matrix state a head from which each token erases what stood at its address.

Queries, keys and values go through one convolution; queries and keys are made unit vectors, and queries divided by the
square root of their width. The state S_t = a_t S_{t-1} + β_t (v_t - a_t S_{t-1} k_t) k_tᵀ is read out as S_t q_t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hybridlens.config import RecurrentConfig
from hybridlens.devices import resident
from hybridlens.hooks import HookPoint, wanted
from hybridlens.memory import Memory
from hybridlens.mixers.gated_norm import GatedNorm
from hybridlens.mixers.linear import RecurrentParts, taps_of
from hybridlens.mixers.recurring import (
    Trajectory,
    convolved,
    empty,
    held_state,
    remember,
    state_trajectory,
    through,
)
from hybridlens.mixers.writing import written
from hybridlens.passes import Pass
from hybridlens.projections import Projection, Read
from hybridlens.recurrences.delta import Delta, DeltaTerms, Inner
from hybridlens.shapes import Resid
from hybridlens.stream import HeadWrites

UNIT = 1e-6
"""Added to a query's or key's squared length before its root is taken."""


class DeltaInputs(NamedTuple):
    """What a family's input projections give."""

    qkv: Float[Tensor, "batch pos channel"]
    """Queries, keys and values, one behind the other, before the convolution."""
    z: Float[Tensor, "batch pos value_channel"]
    """The gate's logits."""
    b: Float[Tensor, "batch pos rec_head"]
    """The write strength's logits."""
    a: Float[Tensor, "batch pos rec_head"]
    """The decay's."""


class DeltaWeights(NamedTuple):
    """The rows of a family's input projections that make values and gates, and their biases."""

    W_v: Float[Tensor, "value_channel d_model"]
    W_z: Float[Tensor, "value_channel d_model"]


@dataclass(frozen=True, eq=False)
class DeltaParts:
    """A family's gated delta rule, taken apart.

    Attributes:
        mixer: the module, with `conv1d`, `A_log` and `dt_bias`.
        inputs: (mixer, x) → what the input projections give.
        weights: (mixer, read) → the rows of them that make values and gates.
        key_heads: heads of queries and keys; value heads share them in consecutive groups.
        norm: between readout and output projection.
        out: the output projection.
        strength: what the sigmoid of the write strength's logits is multiplied by.
    """

    mixer: Any
    inputs: Callable[[Any, Resid], DeltaInputs]
    weights: Callable[[Any, Read], DeltaWeights]
    key_heads: int
    norm: GatedNorm
    out: Projection
    strength: float = 1.0


class GatedDelta(nn.Module):
    """A gated delta-rule mixer.

    Args:
        cfg: its sizes.
        parts: the family's module, taken apart.
        d_model: width of the residual stream.
    """

    def __init__(self, cfg: RecurrentConfig, parts: DeltaParts, d_model: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.parts = parts
        self.recurrence = Delta(cfg.state_shape)
        s, u, m = cfg.state_shape
        c, wide = cfg.d_channels, cfg.d_conv_channels
        self.hook_in = HookPoint("b p c", c=wide)
        self.hook_conv = HookPoint("b p c", c=wide)
        self.hook_v = HookPoint("b p s u", s=s, u=u)
        self.hook_k = HookPoint("b p s m", s=s, m=m)
        self.hook_q = HookPoint("b p s m", s=s, m=m)
        self.hook_beta = HookPoint("b p s", s=s)
        self.hook_decay = HookPoint("b p s", s=s)
        self.hook_recall = HookPoint("b p s u", lazy=True, s=s, u=u)
        self.hook_write = HookPoint("b p s u m", lazy=True, s=s, u=u, m=m)
        self.hook_state = HookPoint("b p s u m", lazy=True, gradient_read_only=True, s=s, u=u, m=m)
        self.hook_y = HookPoint("b p s u", s=s, u=u)
        self.hook_gate = HookPoint("b p c", c=c)
        self.hook_normed = HookPoint("b p c", c=c)
        self.hook_result = HookPoint("b p s d", lazy=True, s=s, d=d_model)
        self.hook_pattern = HookPoint("b s p k", lazy=True, read_only=True, s=s)

    def forward(self, x: Resid, run: Pass, held: Memory | None) -> tuple[Resid, Memory]:
        """The write to the residual stream, and the memory afterwards."""
        parts, op, (s, u, m) = self.parts, self.recurrence, self.cfg.state_shape
        mixer = parts.mixer
        qkv, z, b, a = parts.inputs(mixer, x)
        with resident(mixer, mixer.conv1d):
            inner, conv = convolved(self.hook_in(qkv), mixer.conv1d, run, held)
            inner = self.hook_conv(F.silu(inner))
            keys = parts.key_heads * m
            q, k, v = inner.split([keys, keys, s * u], dim=-1)
            v = self.hook_v(v.unflatten(-1, (s, u)))
            k, q = self.hook_k(self._address(k)), self.hook_q(self._address(q) * m**-0.5)
            beta = self.hook_beta(torch.sigmoid(b) * parts.strength)
            step = F.softplus(a.float() + mixer.dt_bias)
            decay = self.hook_decay(torch.exp(-mixer.A_log.float().exp() * step))
        initial = held_state(op, held, x)
        terms = op.hold(DeltaTerms(decay, v, k, q, beta), run.valid)
        if wanted(self.hook_recall):
            terms = op.with_edits(terms, initial, recall=self.hook_recall.edited)
        if wanted(self.hook_write):  # an edit at padding is none
            terms = op.hold(op.with_edits(terms, initial, write=self.hook_write.edited), run.valid)
        read, final = through(op, terms, initial, self.hook_state, run.valid)
        y = self.hook_y(read.to(x.dtype))
        normed = parts.norm(y.flatten(-2), self.hook_gate(parts.norm.gate(z)), x.dtype)
        out = written(parts.out, self.hook_normed(normed).unflatten(-1, (s, u)), self.hook_result)
        self.hook_pattern.lazily(lambda: op.hidden_attention(terms))
        return out, remember(conv, final)

    def _address(self, x: Float[Tensor, "batch pos key_channel"]) -> Float[Tensor, "batch pos rec_head address"]:
        """Unit vectors, of each value head its key head's, float32."""
        heads = self.parts.key_heads
        split = x.float().unflatten(-1, (heads, -1))
        unit = split * torch.rsqrt(split.pow(2).sum(dim=-1, keepdim=True) + UNIT)
        return unit.repeat_interleave(self.cfg.state_shape[0] // heads, dim=2)

    @property
    def head_writes(self) -> HeadWrites:
        """What its heads write, the norm's scale as it was in the run."""
        return HeadWrites("ssm_head", self.cfg.state_shape[0], "ssm.hook_normed", self.parts.out)

    @property
    def trajectories(self) -> dict[str, Trajectory]:
        """Its states go on from token to token; so do recalls and writes, which hear the states before them."""
        op, points = self.recurrence, ("hook_decay", "hook_k", "hook_beta")

        def terms(seen: Mapping[str, Tensor]) -> DeltaTerms:
            decay, k, beta = (seen[point] for point in points)
            nothing = beta.new_zeros(*beta.shape, self.cfg.state_shape[1])
            return DeltaTerms(decay, nothing, k, k, beta)

        def inner(at: Inner) -> Trajectory:
            def first_order(seen: Mapping[str, Tensor], mask: Tensor, change: Tensor, gradient: Tensor) -> Tensor:
                return op.first_order_inside(terms(seen), at, mask, change, gradient)

            return Trajectory(points, first_order)

        return {**state_trajectory(op, points, terms), "hook_recall": inner("recall"), "hook_write": inner("write")}

    def out_bias(self) -> Tensor | None:
        """What it writes whatever it reads; None for nothing."""
        return self.parts.out.bias()

    def empty(self, batch: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """What `batch` rows hold that have read nothing."""
        return empty(self.cfg, self.recurrence, batch, dtype, device)

    def linear_parts(self, read: Read) -> RecurrentParts:
        """The linear maps of v, the channels that are written. At rest keys and queries are 0, and nothing passes."""
        parts, mixer, (_, u, _) = self.parts, self.parts.mixer, self.cfg.state_shape
        c = self.cfg.d_channels
        rows = parts.weights(mixer, read)
        out, b_out = parts.out.stored(read)

        def gain(seen: Mapping[str, Tensor]) -> Tensor:
            """β_t k_t · q_t: what y_t holds of v_t."""
            beta, k, q = (seen[point].float() for point in ("hook_beta", "hook_k", "hook_q"))
            return (beta * (k * q).sum(dim=-1)).repeat_interleave(u, dim=-1)

        return RecurrentParts(
            W_in=rows.W_v.T,
            b_in=None,
            W_gate=rows.W_z.T,
            b_gate=None,
            taps=taps_of(read(mixer, "conv1d.weight")[-c:]),
            b_conv=None,
            W_out=parts.norm.folded(out.T, read),
            b_out=b_out,
            activation=F.silu,
            slope=0.5,
            gain_at_rest=rows.W_v.new_zeros(c),
            gain_points=("hook_beta", "hook_k", "hook_q"),
            gain=gain,
            written=slice(-c, None),
            norm_points=("hook_y", "hook_gate"),
            norm=parts.norm.factor,
        )
