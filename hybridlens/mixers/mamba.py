"""Mamba (Gu & Dao 2023): a diagonal recurrence whose step, write and readout directions come from the input.

From the convolved input x_t come Δ_t, B_t and C_t (in some families each with a norm of its own); the state decays by
exp(Δ_t A), takes in Δ_t B_t x_t and is read out as C_t · h_t + D x_t.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridlens.config import RecurrentConfig
from hybridlens.devices import resident
from hybridlens.hooks import HookPoint, wanted
from hybridlens.memory import Memory
from hybridlens.mixers.linear import RecurrentParts, identity, taps_of
from hybridlens.mixers.recurring import DiagonalMixer, convolved, held_state, remember, through
from hybridlens.passes import Pass
from hybridlens.projections import Projection, Read
from hybridlens.recurrences.base import Run
from hybridlens.recurrences.selective import Selective, SelectiveTerms
from hybridlens.shapes import Channels, Resid
from hybridlens.stream import HeadStates


class MambaNorms(NamedTuple):
    """Norms of Δ, before it is projected, of B and of C."""

    dt: Callable[[Tensor], Tensor]
    B: Callable[[Tensor], Tensor]
    C: Callable[[Tensor], Tensor]


UNNORMED = MambaNorms(identity, identity, identity)
"""None of them."""


class SelectiveMixer(DiagonalMixer[Selective], ABC):
    """What Mamba mixers do alike: convolve, recur, read out and gate; each makes Δ, B and C in its own way.

    Args:
        cfg: its sizes.
        recurrence: its operator.
        mixer: the family's module.
        heads: of channels that share B and C; None where all of them do.
    """

    def __init__(self, cfg: RecurrentConfig, recurrence: Selective, mixer: Any, heads: int | None = None) -> None:
        super().__init__(cfg, recurrence, Projection(mixer, "out_proj"), recurrence.explicit_operator)
        self.wrapped = (mixer,)
        self.heads = heads
        c, n = cfg.state_shape
        self.hook_in = HookPoint("b p c", c=c)
        self.hook_conv = HookPoint("b p c", c=c)
        self.hook_gate = HookPoint("b p c", c=c)
        self.hook_dt = HookPoint("b p c", c=c)
        self.hook_B = HookPoint("b p n", n=n) if heads is None else HookPoint("b p s n", s=heads, n=n)
        self.hook_C = HookPoint("b p n", n=n) if heads is None else HookPoint("b p s n", s=heads, n=n)
        self.hook_decay = HookPoint("b p c n", lazy=True, c=c, n=n)
        self.hook_write = HookPoint("b p c n", lazy=True, c=c, n=n)
        self.hook_state = HookPoint("b p c n", lazy=True, gradient_read_only=True, c=c, n=n)
        self.hook_y = HookPoint("b p c", c=c)
        self.hook_pattern = HookPoint("b h p k", lazy=True, read_only=True, h=heads or 1)

    @property
    def beside(self) -> tuple[nn.Module, ...]:
        """Modules below the mixer's whose weights are read, not called; its own and the convolution's aside."""
        return ()

    @abstractmethod
    def halves(self, packed: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Of what `in_proj` gives, or of its weights, the part that enters the convolution and the gate's."""

    @abstractmethod
    def selected(self, u: Channels) -> tuple[Channels, Tensor, Tensor]:
        """Δ before its softplus, B and C, of the convolved channels."""

    def forward(self, x: Resid, run: Pass, held: Memory | None) -> tuple[Resid, Memory]:
        """The write to the residual stream, and the memory afterwards."""
        mixer = self.wrapped[0]
        with resident(mixer, mixer.conv1d, *self.beside):
            u, z = self.halves(mixer.in_proj(x), -1)
            u, conv = convolved(self.hook_in(u), mixer.conv1d, run, held)
            u = self.hook_conv(mixer.act(u))
            gate = self.hook_gate(F.silu(z))
            dt, B, C = self.selected(u)
            dt, B, C = self.hook_dt(F.softplus(dt)), self.hook_B(B), self.hook_C(C)
            terms = SelectiveTerms(dt, -torch.exp(mixer.A_log.float()).reshape(self.cfg.state_shape), B, C, u)
            skip = u * mixer.D.float().flatten()
        (read, final), pattern = self._recur(terms, held_state(self.recurrence, held, x), run)
        y = self.hook_y(read + skip)
        self.hook_pattern.lazily(pattern)
        return self.out((y * gate).to(x.dtype)), remember(conv, final)

    def _recur(self, terms: SelectiveTerms, initial: Tensor, run: Pass) -> tuple[Run, Callable[[], Tensor]]:
        """Readout [b p c] and last state, and the maker of hidden attention; states only if they are hooked."""
        if not wanted(self.hook_decay, self.hook_write):
            plain, op = self.recurrence.hold(terms, run.valid), self.recurrence
            return through(op, plain, initial, self.hook_state, run.valid), lambda: op.hidden_attention(plain)
        given = self.recurrence.explicit(terms)
        decay, write = self.hook_decay(given.decay), self.hook_write(given.write)
        source = self.recurrence.source(terms)
        explicit = self.diagonal.hold(given._replace(decay=decay, write=write, source=source), run.valid)
        out = through(self.diagonal, explicit, initial, self.hook_state, run.valid)
        return out, lambda: self.diagonal.hidden_attention(explicit)

    @property
    def head_states(self) -> HeadStates:
        """Channels that share B and C. Where B is 0 nothing is written, where C is 0 nothing is read out."""
        return HeadStates(self.heads or 1, "ssm.hook_B", "ssm.hook_C")

    def linear_parts(self, read: Read) -> RecurrentParts:
        """Its linear maps. At rest nothing is written into the state, and D alone passes the input on."""
        mixer, c = self.wrapped[0], self.cfg.d_channels
        W_in, W_gate = self.halves(read(mixer, "in_proj.weight").T, 1)
        b_in, b_gate = (None, None) if mixer.in_proj.bias is None else self.halves(read(mixer, "in_proj.bias"), 0)
        D = read(mixer, "D").flatten()

        def gain(seen: Mapping[str, Tensor]) -> Tensor:
            """D + Δ_t B_t · C_t: what y_t holds of x_t."""
            dt, B, C = (seen[point].float() for point in ("hook_dt", "hook_B", "hook_C"))
            met = (B * C).sum(dim=-1) if self.heads else (B * C).sum(dim=-1, keepdim=True)
            return D.to(dt.device) + dt * met.repeat_interleave(c // met.shape[-1], dim=-1)

        return RecurrentParts(
            W_in=W_in,
            b_in=b_in,
            W_gate=W_gate,
            b_gate=b_gate,
            taps=taps_of(read(mixer, "conv1d.weight")),
            b_conv=read(mixer, "conv1d.bias") if mixer.conv1d.bias is not None else None,
            W_out=read(mixer, "out_proj.weight").T,
            b_out=read(mixer, "out_proj.bias") if mixer.out_proj.bias is not None else None,
            activation=mixer.act,
            slope=_slope(mixer.act),
            gain_at_rest=D,
            gain_points=("hook_dt", "hook_B", "hook_C"),
            gain=gain,
        )


class Mamba(SelectiveMixer):
    """A Mamba mixer.

    Args:
        cfg: its sizes.
        mixer: the family's module.
        norms: of Δ, B and C.
    """

    def __init__(self, cfg: RecurrentConfig, mixer: Any, norms: MambaNorms) -> None:
        super().__init__(cfg, Selective(cfg.state_shape), mixer)
        self.norms = norms

    @property
    def beside(self) -> tuple[nn.Module, ...]:
        """Δ's projection."""
        return (self.wrapped[0].dt_proj,)

    def halves(self, packed: Tensor, dim: int) -> tuple[Tensor, ...]:
        """One behind the other."""
        return packed.chunk(2, dim=dim)

    def selected(self, u: Channels) -> tuple[Channels, Tensor, Tensor]:
        """By `x_proj`, each through its norm."""
        mixer = self.wrapped[0]
        rank, n = mixer.time_step_rank, mixer.ssm_state_size
        dt, B, C = mixer.x_proj(u).split([rank, n, n], dim=-1)
        return _stepped(mixer.dt_proj, self.norms.dt(dt)), self.norms.B(B), self.norms.C(C)


def _slope(activation: Callable[[Tensor], Tensor]) -> float:
    """Of an activation, at 0."""
    with torch.enable_grad(), torch.device("cpu"):
        at = torch.zeros((), requires_grad=True)
        return float(torch.autograd.grad(activation(at), at)[0])


def _stepped(project: Any, dt: Tensor) -> Tensor:
    """What the library makes of Δ's projection: its weight, past any adapter; quantised weights answer to a call."""
    weight: Tensor = project.weight
    return F.linear(dt, weight, project.bias) if weight.is_floating_point() else project(dt)
