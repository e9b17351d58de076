"""Mamba-2 (Dao & Gu 2024): a matrix state a head that decays by one number and takes in Δ x Bᵀ.

All channels that enter the convolution are x, B and C; heads share B and C in groups. The state S_t = exp(A Δ_t)
S_{t-1} + Δ_t x_t B_tᵀ is read out as S_t C_t + D x_t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hybridlens.config import RecurrentConfig
from hybridlens.hooks import EditedActivation, HookPoint
from hybridlens.mixers.gated_norm import GatedNorm
from hybridlens.mixers.matrix_state import MatrixState, Projected, ValueWeights
from hybridlens.mixers.recurring import Dynamics, Trajectory, scalar_trajectory
from hybridlens.projections import Projection, Read
from hybridlens.recurrences.scalar import Apart, Scalar, ScalarTerms, Sharing
from hybridlens.shapes import Resid


@dataclass(frozen=True, eq=False)
class Mamba2Parts:
    """A family's Mamba-2 mixer, taken apart.

    Attributes:
        mixer: the module, with `conv1d`, `A_log`, `D` and `dt_bias`.
        project: to the gate's logits, x, B, C and the step's, one behind the other.
        groups: of heads that share B and C.
        limit: the step size is kept within it.
        norm: between readout and output projection.
        out: the output projection.
        by_channel: (mixer) → what the projection's channels are multiplied by; None for nothing.
    """

    mixer: Any
    project: Projection
    groups: int
    limit: tuple[float, float]
    norm: GatedNorm
    out: Projection
    by_channel: Callable[[Any], Tensor] | None = None


class Mamba2(MatrixState[Scalar]):
    """A Mamba-2 mixer.

    Args:
        cfg: its sizes.
        parts: the family's module, taken apart.
        d_model: width of the residual stream.
    """

    strength = "hook_dt"
    hook_dt: HookPoint
    hook_decay: HookPoint

    def __init__(self, cfg: RecurrentConfig, parts: Mamba2Parts, d_model: int) -> None:
        s = cfg.state_shape[0]
        own = {"hook_dt": HookPoint("b p s", s=s), "hook_decay": HookPoint("b p s", s=s)}
        super().__init__(cfg, Scalar(cfg.state_shape), parts.mixer, own, parts.norm, parts.out, d_model)
        self.parts = parts
        self.values = slice(cfg.d_channels)

    def projected(self, x: Resid) -> Projected:
        """The gate's logits, the channels of the convolution, and the step's logits."""
        parts = self.parts
        projected = parts.project(x)
        if parts.by_channel is not None:
            projected = projected * parts.by_channel(parts.mixer).to(projected.device)
        sizes = [self.cfg.d_channels, self.cfg.d_conv_channels, self.cfg.state_shape[0]]
        gate, inner, step = projected.split(sizes, dim=-1)
        return Projected(inner, gate, (step,))

    def terms(self, inner: Float[Tensor, "batch pos channel"], rates: tuple[Tensor, ...]) -> ScalarTerms:
        """Values, addresses of each head, step sizes and decays."""
        parts, mixer, (s, u, m) = self.parts, self.parts.mixer, self.cfg.state_shape
        v, B, C = inner.split([s * u, parts.groups * m, parts.groups * m], dim=-1)
        v = self.hook_v(v.unflatten(-1, (s, u)))
        shared = self._by_head(B), self._by_head(C)
        k, q = self._seen(self.hook_k, shared[0]), self._seen(self.hook_q, shared[1])
        (step,) = rates
        dt = self.hook_dt(F.softplus(step + mixer.dt_bias.to(step.dtype)).clamp(*parts.limit))
        decay = self.hook_decay(torch.exp(-torch.exp(mixer.A_log.float()) * dt.float()))
        sharing = None if s == parts.groups else Sharing(s // parts.groups, self._apart(*shared, k, q))
        return ScalarTerms(decay, v, k.value, q.value, dt, sharing=sharing)

    def _seen(self, point: HookPoint, by_head: Tensor) -> EditedActivation:
        """Addresses past their hook; each head's in memory of its own if anybody looks."""
        return point.edited(by_head.contiguous() if point.asked() else by_head)

    def _apart(self, B: Tensor, C: Tensor, k: EditedActivation, q: EditedActivation) -> Apart | None:
        """What heads of a group share, if addresses are edited or somebody hears their gradients."""
        masks = [seen.mask.any(dim=-1) for seen in (k, q) if seen.mask is not None]
        if masks:
            return Apart(B, C, masks[0] | masks[-1])
        if torch.is_grad_enabled() and (self.hook_k.asked() or self.hook_q.asked()):
            return Apart(B, C, torch.zeros(B.shape[:3], dtype=torch.bool, device=B.device))
        return None

    def skip(self, terms: ScalarTerms) -> Float[Tensor, "batch pos rec_head value"]:
        """D x."""
        return self.parts.mixer.D[:, None] * terms.v.float()

    def _by_head(self, shared: Float[Tensor, "batch pos grouped"]) -> Float[Tensor, "batch pos rec_head address"]:
        """B or C of each head."""
        heads, groups = self.cfg.state_shape[0], self.parts.groups
        grouped = shared.unflatten(-1, (groups, 1, -1))
        return grouped.expand(*grouped.shape[:3], heads // groups, -1).flatten(2, 3)

    @property
    def trajectories(self) -> dict[str, Trajectory]:
        """Its states go on from token to token."""
        return scalar_trajectory(self.recurrence)

    @property
    def dynamics(self) -> Dynamics:
        """Its recurrence, from activations."""
        points = ("hook_decay", "hook_v", "hook_k", "hook_q", "hook_dt")
        return Dynamics(self.recurrence, points, lambda seen: ScalarTerms(*(seen[point] for point in points)))

    def value_weights(self, read: Read) -> ValueWeights:
        """The rows that make x and gates. At rest B and C come from the convolution's bias."""
        parts, mixer, m = self.parts, self.parts.mixer, self.cfg.state_shape[-1]
        c = self.cfg.d_channels
        rows, bias = parts.project.stored(read)
        if parts.by_channel is not None:
            by_channel = parts.by_channel(mixer).flatten().to(rows)
            rows, bias = rows * by_channel[:, None], None if bias is None else bias * by_channel
        has_bias = mixer.conv1d.bias is not None
        b_conv = read(mixer, "conv1d.bias") if has_bias else rows.new_zeros(self.cfg.d_conv_channels)
        D, A = read(mixer, "D"), read(mixer, "dt_bias")
        B, C = (self._by_head(t[None, None])[0, 0] for t in F.silu(b_conv[c:]).split(parts.groups * m))
        return ValueWeights(
            W_in=rows[c : 2 * c].T,
            b_in=None if bias is None else bias[c : 2 * c],
            W_gate=rows[:c].T,
            b_gate=None if bias is None else bias[:c],
            b_conv=b_conv[:c],
            at_rest=D + F.softplus(A).clamp(*parts.limit) * (B * C).sum(-1),
            skip=D,
        )
