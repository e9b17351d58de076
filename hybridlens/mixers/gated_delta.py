"""Gated DeltaNet (Yang et al. 2024): a matrix state a head from which each token erases what stood at its address.

Kimi delta attention (2025) is the same with a decay for each channel of the address.

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
from torch import Tensor

from hybridlens.config import RecurrentConfig
from hybridlens.devices import resident
from hybridlens.hooks import HookPoint, wanted
from hybridlens.mixers.gated_norm import GatedNorm
from hybridlens.mixers.matrix_state import MatrixState, Projected, ValueWeights
from hybridlens.mixers.recurring import Dynamics, Trajectory, state_trajectory
from hybridlens.projections import Projection, Read
from hybridlens.recurrences.delta import Delta, DeltaTerms, Inner
from hybridlens.recurrences.terms import wide
from hybridlens.shapes import Resid

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
    a: Float[Tensor, "batch pos rate"]
    """The decay's: one a head, or one a head and address channel."""


class DeltaWeights(NamedTuple):
    """The rows of a family's input projections that make values and gates."""

    W_v: Float[Tensor, "value_channel d_model"]
    W_z: Float[Tensor, "value_channel d_model"]


@dataclass(frozen=True, eq=False)
class DeltaParts:
    """A family's gated delta rule, taken apart.

    Attributes:
        mixer: the module, with `conv1d`.
        inputs: (mixer, x) → what the input projections give.
        weights: (mixer, read) → the rows of them that make values and gates.
        key_heads: heads of queries and keys; value heads share them in consecutive groups.
        norm: between readout and output projection.
        out: the output projection.
        strength: what the sigmoid of the write strength's logits is multiplied by.
        rates: the module with `A_log` and `dt_bias`; None for `mixer`.
        by_channel: an address channel has a decay of its own (Kimi delta attention, arXiv 2510.26692).
    """

    mixer: Any
    inputs: Callable[[Any, Resid], DeltaInputs]
    weights: Callable[[Any, Read], DeltaWeights]
    key_heads: int
    norm: GatedNorm
    out: Projection
    strength: float = 1.0
    rates: Any = None
    by_channel: bool = False


class GatedDelta(MatrixState[Delta]):
    """A gated delta-rule mixer.

    Args:
        cfg: its sizes.
        parts: the family's module, taken apart.
        d_model: width of the residual stream.
    """

    strength = "hook_beta"
    hook_beta: HookPoint
    hook_decay: HookPoint
    hook_recall: HookPoint

    def __init__(self, cfg: RecurrentConfig, parts: DeltaParts, d_model: int) -> None:
        s, u, m = cfg.state_shape
        own = {
            "hook_beta": HookPoint("b p s", s=s),
            "hook_decay": HookPoint("b p s m", s=s, m=m) if parts.by_channel else HookPoint("b p s", s=s),
            "hook_recall": HookPoint("b p s u", lazy=True, s=s, u=u),
        }
        super().__init__(cfg, Delta(cfg.state_shape), parts.mixer, own, parts.norm, parts.out, d_model)
        self.parts = parts
        self.values = slice(-cfg.d_channels, None)

    def projected(self, x: Resid) -> Projected:
        """Queries, keys and values, the gate's logits, and those of write strength and decay."""
        qkv, z, b, a = self.parts.inputs(self.parts.mixer, x)
        return Projected(qkv, z, (b, a))

    def terms(self, inner: Float[Tensor, "batch pos channel"], rates: tuple[Tensor, ...]) -> DeltaTerms:
        """Values, addresses of each head, write strengths and decays."""
        parts, (s, u, m) = self.parts, self.cfg.state_shape
        b, a = rates
        keys = parts.key_heads * m
        q, k, v = inner.split([keys, keys, s * u], dim=-1)
        v = self.hook_v(v.unflatten(-1, (s, u)))
        k, q = self.hook_k(self._by_head(self._unit(k))), self.hook_q(self._by_head(self._unit(q) * m**-0.5))
        beta = self.hook_beta(torch.sigmoid(b) * parts.strength)
        return DeltaTerms(self.hook_decay(self._decay(a)), v, k, q, beta)

    def _decay(self, a: Float[Tensor, "batch pos rate"]) -> Float[Tensor, "batch pos rec_head *address"]:
        """exp(-A softplus(a + b)), float32 at least."""
        parts = self.parts
        rates = parts.mixer if parts.rates is None else parts.rates
        with resident(rates):
            step, speed = F.softplus(wide(a) + rates.dt_bias), wide(rates.A_log).exp().flatten()
        if not parts.by_channel:
            return torch.exp(-speed * step)
        return torch.exp(-speed[:, None] * step.unflatten(-1, (len(speed), -1)))

    def with_recalls(self, terms: DeltaTerms, initial: Tensor) -> DeltaTerms:
        """The terms with what hooks make of recalls."""
        if not wanted(self.hook_recall):
            return terms
        return self.recurrence.with_recalls(terms, initial, self.hook_recall.edited)

    def _unit(self, x: Float[Tensor, "batch pos key_channel"]) -> Float[Tensor, "batch pos key_head address"]:
        """Unit vectors, float32 at least."""
        split = wide(x).unflatten(-1, (self.parts.key_heads, -1))
        return split * torch.rsqrt(split.pow(2).sum(dim=-1, keepdim=True) + UNIT)

    def _by_head(self, x: Float[Tensor, "batch pos key_head address"]) -> Float[Tensor, "batch pos rec_head address"]:
        """Of each value head its key head's."""
        shared = self.cfg.state_shape[0] // self.parts.key_heads
        return x if shared == 1 else x.repeat_interleave(shared, dim=2)

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

    @property
    def dynamics(self) -> Dynamics:
        """Its recurrence, from activations."""
        points = ("hook_decay", "hook_v", "hook_k", "hook_q", "hook_beta")
        return Dynamics(self.recurrence, points, lambda seen: DeltaTerms(*(seen[point] for point in points)))

    def value_weights(self, read: Read) -> ValueWeights:
        """The rows that make values and gates. At rest keys and queries are 0, and nothing passes."""
        rows = self.parts.weights(self.parts.mixer, read)
        return ValueWeights(
            W_in=rows.W_v.T,
            b_in=None,
            W_gate=rows.W_z.T,
            b_gate=None,
            b_conv=None,
            at_rest=rows.W_v.new_zeros(self.cfg.state_shape[0]),
            skip=None,
        )
