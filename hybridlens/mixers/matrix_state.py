"""What mixers with a matrix state a head do alike: project, convolve, recur, and write behind a norm and a gate.

Where there is no convolution (`cfg.d_conv` 0) the channels go through the activation alone, without its hook points.
A kind says what it alone knows: what its input projections give, how the convolved channels and the rates become the
terms of its recurrence, what passes the state by, and the weights that make what is written. The hook points and their
order, edits of writes and states, readout, norm, gate, output projection and memory are the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hybridlens.config import RecurrentConfig
from hybridlens.devices import resident
from hybridlens.hooks import HookPoint, wanted
from hybridlens.memory import Memory
from hybridlens.mixers.gated_norm import GatedNorm
from hybridlens.mixers.linear import RecurrentParts, taps_of
from hybridlens.mixers.recurring import RecurrentMixer, Trajectory, convolved, held_state, remember, through
from hybridlens.mixers.writing import written
from hybridlens.passes import Pass
from hybridlens.projections import Projection, Read
from hybridlens.recurrences.matrix import Matrix
from hybridlens.shapes import Channels, ConvState, Resid
from hybridlens.stream import HeadStates, HeadWrites

M = TypeVar("M", bound=Matrix[Any])
"""A kind's operator."""


class Projected(NamedTuple):
    """What a mixer's input projections give."""

    channels: Float[Tensor, "batch pos channel"]
    """All that enter the convolution, or, without one, the activation."""
    z: Channels
    """The gate's logits."""
    rates: tuple[Tensor, ...]
    """The logits of decay, step size or write strength, in the kind's own order."""


class ValueWeights(NamedTuple):
    """The weights that make the values that are written into the state, and the gates; see `RecurrentParts`."""

    W_in: Float[Tensor, "d_model channel"]
    b_in: Float[Tensor, "channel"] | None
    W_gate: Float[Tensor, "d_model channel"]
    b_gate: Float[Tensor, "channel"] | None
    b_conv: Float[Tensor, "channel"] | None
    at_rest: Float[Tensor, "rec_head"]
    """What the readout holds of the same token's value, with every rate and address at its value for input 0."""
    skip: Float[Tensor, "rec_head"] | None
    """What of a value passes the state by; None for nothing."""


class MatrixState(RecurrentMixer[M], ABC):
    """A mixer with a matrix state a head.

    A kind gives `projected`, `terms`, `value_weights` and `trajectories`, and `skip` and `with_recalls` where it has
    such things.

    Args:
        cfg: its sizes.
        recurrence: its operator.
        mixer: the family's module, with `conv1d` if there is a convolution.
        own: the kind's own hook points, by name, which come by between addresses and writes: its rates, `hook_decay`.
        norm: between readout and output projection.
        out: the output projection.
        d_model: width of the residual stream.
    """

    strength: ClassVar[str | None]
    """The hook point [b p s] of what multiplies a write; None for 1."""
    values: slice
    """Of the convolution's channels, those that are written into the state; the others are addresses. Without a
    convolution all of `hook_v`."""

    def __init__(
        self,
        cfg: RecurrentConfig,
        recurrence: M,
        mixer: Any,
        own: Mapping[str, HookPoint],
        norm: GatedNorm,
        out: Projection,
        d_model: int,
    ) -> None:
        super().__init__(cfg, recurrence, out)
        self.wrapped = (mixer,)
        self.norm = norm
        s, u, m = cfg.state_shape
        c, wide = cfg.d_channels, cfg.d_conv_channels
        if cfg.d_conv:
            self.hook_in = HookPoint("b p c", c=wide)
            self.hook_conv = HookPoint("b p c", c=wide)
        self.hook_v = HookPoint("b p s u", s=s, u=u)
        self.hook_k = HookPoint("b p s m", s=s, m=m)
        self.hook_q = HookPoint("b p s m", s=s, m=m)
        for name, point in own.items():
            self.add_module(name, point)
        self.hook_write = HookPoint("b p s u m", lazy=True, s=s, u=u, m=m)
        self.hook_state = HookPoint("b p s u m", lazy=True, gradient_read_only=True, s=s, u=u, m=m)
        self.hook_y = HookPoint("b p s u", s=s, u=u)
        self.hook_gate = HookPoint("b p c", c=c)
        self.hook_normed = HookPoint("b p c", c=c)
        self.hook_result = HookPoint("b p s d", lazy=True, s=s, d=d_model)
        self.hook_pattern = HookPoint("b s p k", lazy=True, read_only=True, s=s)

    # what a kind says

    @abstractmethod
    def projected(self, x: Resid) -> Projected:
        """What its input projections give."""

    @abstractmethod
    def terms(self, inner: Float[Tensor, "batch pos channel"], rates: tuple[Tensor, ...]) -> Any:
        """The terms of its recurrence, past the hooks on values, addresses and rates.

        Args:
            inner: the channels, convolved, after their activation.
            rates: of `projected`.
        """

    def skip(self, terms: Any) -> Float[Tensor, "batch pos rec_head value"] | None:
        """What of the values passes the state by, added to the readout; None for nothing."""
        return None

    def with_recalls(self, terms: Any, initial: Tensor) -> Any:
        """The terms with what hooks make of recalls, where a token recalls anything."""
        return terms

    @property
    @abstractmethod
    def trajectories(self) -> dict[str, Trajectory]:
        """What of it goes on from token to token, by hook point: its states at least."""

    @abstractmethod
    def value_weights(self, read: Read) -> ValueWeights:
        """The weights that make values and gates."""

    # what all do

    def forward(self, x: Resid, run: Pass, held: Memory | None) -> tuple[Resid, Memory]:
        """The write to the residual stream, and the memory afterwards."""
        op, mixer, (s, u, _) = self.recurrence, self.wrapped[0], self.cfg.state_shape
        initial = held_state(op, held, x)
        with resident(mixer, *((mixer.conv1d,) if self.cfg.d_conv else ())):
            channels, z, rates = self.projected(x)
            inner, conv = self._activated(channels, run, held)
            terms = self.terms(inner, rates)
            skip = self.skip(terms)
        terms = self.with_recalls(op.hold(terms, run.valid), initial)
        if wanted(self.hook_write):  # an edit at padding is none
            terms = op.hold(op.with_writes(terms, initial, self.hook_write.edited), run.valid)
        read, final = through(op, terms, initial, self.hook_state, run.valid)
        y = self.hook_y(self.norm.entering(read if skip is None else read + skip, x.dtype))
        normed = self.norm(y.flatten(-2), self.hook_gate(self.norm.gate(z)), x.dtype)
        out = written(self.out, self.hook_normed(normed).unflatten(-1, (s, u)), self.hook_result)
        self.hook_pattern.lazily(lambda: op.hidden_attention(terms))
        return out, remember(conv, final)

    def _activated(
        self, channels: Float[Tensor, "batch pos channel"], run: Pass, held: Memory | None
    ) -> tuple[Float[Tensor, "batch pos channel"], ConvState | None]:
        """The channels through convolution, if there is one, and activation, and what the convolution remembers."""
        if not self.cfg.d_conv:
            return F.silu(channels), None
        inner, conv = convolved(self.hook_in(channels), self.wrapped[0].conv1d, run, held)
        return self.hook_conv(F.silu(inner)), conv

    @property
    def head_writes(self) -> HeadWrites:
        """What its heads write, the norm's scale as it was in the run."""
        return HeadWrites("ssm_head", self.cfg.state_shape[0], "ssm.hook_normed", self.out)

    @property
    def head_states(self) -> HeadStates:
        """A matrix a head. At address 0 nothing is written, nor erased; values may pass the state by."""
        return HeadStates(self.cfg.state_shape[0], "ssm.hook_k", "ssm.hook_q")

    def linear_parts(self, read: Read) -> RecurrentParts:
        """The linear maps of its values, the channels that are written."""
        made, width = self.value_weights(read), self.cfg.state_shape[1]
        out, b_out = self.out.stored(read)
        has, strength = bool(self.cfg.d_conv), self.strength
        points = ("hook_k", "hook_q") if strength is None else (strength, "hook_k", "hook_q")

        def gain(seen: Mapping[str, Tensor]) -> Tensor:
            """Strength times k_t · q_t, and what passes the state by: what y_t holds of v_t."""
            passed = (seen["hook_k"].float() * seen["hook_q"].float()).sum(dim=-1)
            if strength is not None:
                passed = seen[strength].float() * passed
            if made.skip is not None:
                passed = made.skip.to(passed.device) + passed
            return passed.repeat_interleave(width, dim=-1)

        return RecurrentParts(
            W_in=made.W_in,
            b_in=made.b_in,
            W_gate=made.W_gate,
            b_gate=made.b_gate,
            taps=taps_of(read(self.wrapped[0], "conv1d.weight")[self.values]) if has else torch.ones_like(out[:1]).T,
            b_conv=made.b_conv,
            W_out=self.norm.folded(out.T, read),
            b_out=b_out,
            activation=F.silu,
            slope=0.5,
            gain_at_rest=made.at_rest.repeat_interleave(width),
            gain_points=points,
            gain=gain,
            written=self.values,
            norm_points=("hook_y", "hook_gate"),
            norm=self.norm.factor,
            source="hook_in" if has else "hook_v",
            convolved=has,
        )
