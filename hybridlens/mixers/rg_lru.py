"""The RG-LRU of Griffin (De et al. 2024, eq. 1-4): a diagonal recurrence with gated decay.

r_t and i_t are sigmoids of block-diagonal maps of the convolved input x_t; a_t = exp(-8 · softplus(Λ) · r_t) and
h_t = a_t h_{t-1} + √(1 - a_t²) (i_t ⊙ x_t). At position 0 a document starts: a is 0 and the multiplier 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import SqrtBoundDerivative

from hybridlens.config import RecurrentConfig
from hybridlens.devices import resident
from hybridlens.hooks import HookPoint
from hybridlens.memory import Memory
from hybridlens.mixers.linear import RecurrentParts, identity, taps_of
from hybridlens.mixers.recurring import DiagonalMixer, convolved, held_state, remember, through
from hybridlens.passes import Pass
from hybridlens.projections import Projection, Read
from hybridlens.recurrences.diagonal import Diagonal, DiagonalTerms
from hybridlens.shapes import Channels, Resid
from hybridlens.stream import HeadStates


class RgLru(DiagonalMixer[Diagonal]):
    """The recurrent mixer of a RecurrentGemma layer.

    Args:
        cfg: its sizes.
        block: the family's module.
    """

    def __init__(self, cfg: RecurrentConfig, block: Any) -> None:
        blocks, c = block.rg_lru.num_attention_heads, cfg.d_channels
        recurrence = Diagonal(cfg.state_shape, groups=blocks)
        super().__init__(cfg, recurrence, Projection(block, "linear_out"), recurrence)
        self.wrapped = (block,)
        self.hook_in = HookPoint("b p c", c=c)
        self.hook_conv = HookPoint("b p c", c=c)
        self.hook_gate = HookPoint("b p c", c=c)
        self.hook_input_gate = HookPoint("b p c", c=c)
        self.hook_recurrence_gate = HookPoint("b p c", c=c)
        self.hook_decay = HookPoint("b p c", c=c)
        self.hook_write = HookPoint("b p c", c=c)
        self.hook_state = HookPoint("b p c", lazy=True, gradient_read_only=True, c=c)
        self.hook_y = HookPoint("b p c", c=c)
        self.hook_pattern = HookPoint("b h p k", lazy=True, read_only=True, h=blocks)

    def forward(self, x: Resid, run: Pass, held: Memory | None) -> tuple[Resid, Memory]:
        """The write to the residual stream, and the memory afterwards."""
        block, lru = self.wrapped[0], self.wrapped[0].rg_lru
        with resident(block.conv_1d, lru):
            u, conv = convolved(self.hook_in(block.linear_x(x)), block.conv_1d, run, held)
            u = self.hook_conv(u)
            gate = self.hook_gate(block.act_fn(block.linear_y(x)))
            i = self.hook_input_gate(block_sigmoid(u, lru.input_gate_weight, lru.input_gate_bias))
            r = self.hook_recurrence_gate(block_sigmoid(u, lru.recurrent_gate_weight, lru.recurrent_gate_bias))
            starts = run.once("starts", lambda: _starts(run))
            decay, multiplier = decay_and_multiplier(r, lru.recurrent_param, starts)
        write = (u * i) * multiplier
        decay, write = self.hook_decay(decay.float()), self.hook_write(write.float())
        op = self.recurrence
        terms = op.hold(DiagonalTerms(decay, write, source=(i * multiplier).float()), run.valid)
        read, final = through(op, terms, held_state(op, held, x), self.hook_state, run.valid)
        y = self.hook_y(read.to(x.dtype))
        self.hook_pattern.lazily(lambda: op.hidden_attention(terms))
        return self.out(y * gate), remember(conv, final)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """The weights of its gates, which no linear map of the family's holds."""
        lru = self.wrapped[0].rg_lru
        return lru.input_gate_weight, lru.recurrent_gate_weight

    @property
    def head_states(self) -> HeadStates:
        """Its blocks of channels: what gates are made of is read within a block. The readout is the state itself."""
        return HeadStates(self.recurrence.groups, "ssm.hook_write", "ssm.hook_y")

    def linear_parts(self, read: Read) -> RecurrentParts:
        """Its linear maps. At rest both gates are the sigmoids of their biases."""
        block = self.wrapped[0]
        i = torch.sigmoid(read(block, "rg_lru.input_gate_bias").flatten())
        r = torch.sigmoid(read(block, "rg_lru.recurrent_gate_bias").flatten())
        _, multiplier = decay_and_multiplier(r[None, None], read(block, "rg_lru.recurrent_param"), None)
        return RecurrentParts(
            W_in=read(block, "linear_x.weight").T,
            b_in=read(block, "linear_x.bias"),
            W_gate=read(block, "linear_y.weight").T,
            b_gate=read(block, "linear_y.bias"),
            taps=taps_of(read(block, "conv_1d.weight")),
            b_conv=read(block, "conv_1d.bias"),
            W_out=read(block, "linear_out.weight").T,
            b_out=read(block, "linear_out.bias"),
            activation=identity,
            slope=1.0,
            gain_at_rest=i * multiplier[0, 0],
            gain_points=("hook_input_gate", "hook_decay"),
            gain=_gain,
        )


def _gain(seen: Mapping[str, Tensor]) -> Channels:
    """i_t √(1 - a_t²): what h_t holds of x_t."""
    return seen["hook_input_gate"].float() * (1 - seen["hook_decay"].square()).clamp(min=0).sqrt()


def block_sigmoid(
    x: Channels, weight: Float[Tensor, "block inner outer"], bias: Float[Tensor, "block outer"]
) -> Channels:
    """σ(W x + b) with a block-diagonal W."""
    blocks = x.reshape(-1, weight.shape[0], weight.shape[1]).transpose(0, 1)
    out = torch.baddbmm(bias[:, None, :], blocks, weight)
    return torch.sigmoid(out.transpose(0, 1).reshape(x.shape))


def _starts(run: Pass) -> Tensor | None:
    """True at position 0 [b p 1]; None where no row is there."""
    return (run.positions == 0)[..., None] if run.begins else None


def decay_and_multiplier(
    r: Channels, param: Float[Tensor, "channel"], starts: Tensor | None
) -> tuple[Channels, Channels]:
    """a_t and √(1 - a_t²); 0 and 1 where a document starts.

    The square root's gradient is bounded as in the reference, since a_t near 1 would blow it up.

    Args:
        r: the recurrence gate.
        param: Λ.
        starts: bool [b p 1], True at position 0; None for nowhere.
    """
    log_a = -8.0 * r * F.softplus(param)
    square = 1 - torch.exp(2 * log_a)
    root = cast(Tensor, SqrtBoundDerivative.apply(square)) if square.requires_grad else square.sqrt()
    decay = torch.exp(log_a)
    if starts is None:
        return decay, root.to(r.dtype)
    return decay.masked_fill(starts, 0.0), root.masked_fill(starts, 1.0).to(r.dtype)
