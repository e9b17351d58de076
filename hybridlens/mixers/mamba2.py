"""Mamba-2 (Dao & Gu 2024): a matrix state a head that decays by one number and takes in Δ x Bᵀ.

All channels that enter the convolution are x, B and C; heads share B and C in groups. The state S_t = exp(A Δ_t)
S_{t-1} + Δ_t x_t B_tᵀ is read out as S_t C_t + D x_t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
from hybridlens.recurrences.scalar import Scalar, ScalarTerms
from hybridlens.shapes import Resid
from hybridlens.stream import HeadWrites


@dataclass(frozen=True, eq=False)
class Mamba2Parts:
    """A family's Mamba-2 mixer, taken apart.

    Attributes:
        mixer: the module, with `conv1d`, `A_log`, `D`, `dt_bias` and the activation `act`.
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


class Mamba2(nn.Module):
    """A Mamba-2 mixer.

    Args:
        cfg: its sizes.
        parts: the family's module, taken apart.
        d_model: width of the residual stream.
    """

    def __init__(self, cfg: RecurrentConfig, parts: Mamba2Parts, d_model: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.parts = parts
        self.recurrence = Scalar(cfg.state_shape)
        s, u, m = cfg.state_shape
        c, wide = cfg.d_channels, cfg.d_conv_channels
        self.hook_in = HookPoint("b p c", c=wide)
        self.hook_conv = HookPoint("b p c", c=wide)
        self.hook_v = HookPoint("b p s u", s=s, u=u)
        self.hook_k = HookPoint("b p s m", s=s, m=m)
        self.hook_q = HookPoint("b p s m", s=s, m=m)
        self.hook_dt = HookPoint("b p s", s=s)
        self.hook_decay = HookPoint("b p s", s=s)
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
        with resident(mixer, mixer.conv1d):
            z, inner, dt = self._projected(x)
            inner, conv = convolved(self.hook_in(inner), mixer.conv1d, run, held)
            inner = self.hook_conv(mixer.act(inner))
            v, B, C = inner.split([s * u, parts.groups * m, parts.groups * m], dim=-1)
            v = self.hook_v(v.unflatten(-1, (s, u)))
            k, q = self.hook_k(self._by_head(B)), self.hook_q(self._by_head(C))
            dt = F.softplus(dt + mixer.dt_bias.to(dt.dtype)).clamp(*parts.limit)
            dt = self.hook_dt(dt)
            decay = self.hook_decay(torch.exp(-torch.exp(mixer.A_log.float()) * dt.float()))
            skip = mixer.D[:, None] * v.float()
        terms = op.hold(ScalarTerms(decay, v, k, q, dt), run.valid)
        if wanted(self.hook_write):  # an edit at padding is none
            terms = op.hold(op.with_edits(terms, self.hook_write.edited), run.valid)
        read, final = through(op, terms, held_state(op, held, x), self.hook_state, run.valid)
        y = self.hook_y(read + skip)
        normed = parts.norm(y.flatten(-2), self.hook_gate(parts.norm.gate(z)), x.dtype)
        out = written(parts.out, self.hook_normed(normed).unflatten(-1, (s, u)), self.hook_result)
        self.hook_pattern.lazily(lambda: op.hidden_attention(terms))
        return out, remember(conv, final)

    def _projected(self, x: Resid) -> tuple[Tensor, Tensor, Tensor]:
        """The gate's logits, the channels of the convolution, and the step's logits."""
        parts = self.parts
        projected = parts.project(x)
        if parts.by_channel is not None:
            projected = projected * parts.by_channel(parts.mixer)
        sizes = [self.cfg.d_channels, self.cfg.d_conv_channels, self.cfg.state_shape[0]]
        gate, inner, step = projected.split(sizes, dim=-1)
        return gate, inner, step

    def _by_head(self, shared: Float[Tensor, "batch pos grouped"]) -> Float[Tensor, "batch pos rec_head address"]:
        """B or C of each head."""
        heads, groups = self.cfg.state_shape[0], self.parts.groups
        return shared.unflatten(-1, (groups, -1)).repeat_interleave(heads // groups, dim=2)

    @property
    def head_writes(self) -> HeadWrites:
        """What its heads write, the norm's scale as it was in the run."""
        return HeadWrites("ssm_head", self.cfg.state_shape[0], "ssm.hook_normed", self.parts.out)

    @property
    def trajectories(self) -> dict[str, Trajectory]:
        """Its states go on from token to token."""

        def terms(seen: Mapping[str, Tensor]) -> ScalarTerms:
            decay = seen["hook_decay"]
            return ScalarTerms(decay, decay[..., None], decay[..., None], decay[..., None])

        return state_trajectory(self.recurrence, ("hook_decay",), terms)

    def out_bias(self) -> Tensor | None:
        """What it writes whatever it reads; None for nothing."""
        return self.parts.out.bias()

    def empty(self, batch: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """What `batch` rows hold that have read nothing."""
        return empty(self.cfg, self.recurrence, batch, dtype, device)

    def linear_parts(self, read: Read) -> RecurrentParts:
        """The linear maps of x, the channels that are written. At rest B and C come from the convolution's bias."""
        parts, mixer, (_, u, m) = self.parts, self.parts.mixer, self.cfg.state_shape
        c = self.cfg.d_channels
        rows, bias = parts.project.stored(read)
        if parts.by_channel is not None:
            by_channel = parts.by_channel(mixer).flatten().to(rows)
            rows, bias = rows * by_channel[:, None], None if bias is None else bias * by_channel
        has_bias = mixer.conv1d.bias is not None
        b_conv = read(mixer, "conv1d.bias") if has_bias else rows.new_zeros(self.cfg.d_conv_channels)
        D, A = read(mixer, "D"), read(mixer, "dt_bias")
        B, C = (self._by_head(t[None, None])[0, 0] for t in F.silu(b_conv[c:]).split(parts.groups * m))
        rest = D + F.softplus(A).clamp(*parts.limit) * (B * C).sum(-1)

        def gain(seen: Mapping[str, Tensor]) -> Tensor:
            """D + Δ_t B_t · C_t: what y_t holds of x_t."""
            dt, k, q = (seen[point].float() for point in ("hook_dt", "hook_k", "hook_q"))
            return (D.to(dt.device) + dt * (k * q).sum(dim=-1)).repeat_interleave(u, dim=-1)

        out, b_out = parts.out.stored(read)
        return RecurrentParts(
            W_in=rows[c : 2 * c].T,
            b_in=None if bias is None else bias[c : 2 * c],
            W_gate=rows[:c].T,
            b_gate=None if bias is None else bias[:c],
            taps=taps_of(read(mixer, "conv1d.weight")[:c]),
            b_conv=b_conv[:c],
            W_out=parts.norm.folded(out.T, read),
            b_out=b_out,
            activation=F.silu,
            slope=0.5,
            gain_at_rest=rest.repeat_interleave(u),
            gain_points=("hook_dt", "hook_k", "hook_q"),
            gain=gain,
            written=slice(c),
            norm_points=("hook_y", "hook_gate"),
            norm=parts.norm.factor,
        )
