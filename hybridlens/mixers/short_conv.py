"""The gated short convolution of LFM2 (Liquid AI 2025): a mixer without a state, whose convolution alone remembers.

From a token's input come a value v, an input gate B and an output gate C, all linear. B ⊙ v goes through a causal
convolution of a few taps, without an activation; C times what leaves it is projected to the residual stream. So a
token is heard for as many tokens as there are taps, itself included, and there is no decay, write or state.

The readout is what leaves the convolution: `hook_conv` and `hook_y` hold the same numbers, one before the other.
Hidden attention is what a readout takes of each v, the input gate in it, averaged over channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hybridlens.config import RecurrentConfig
from hybridlens.devices import resident
from hybridlens.hooks import HookPoint
from hybridlens.memory import Memory, Recurrent
from hybridlens.mixers.linear import RecurrentParts, identity, taps_of
from hybridlens.mixers.named import RecurrenceByName
from hybridlens.mixers.recurring import convolved
from hybridlens.passes import Pass
from hybridlens.projections import Projection, Read
from hybridlens.recurrences.convolution import convolution_attention
from hybridlens.shapes import Channels, Resid


class ShortConv(RecurrenceByName):
    """A gated short convolution.

    Args:
        cfg: its sizes.
        mixer: the family's module, with `in_proj` to B, C and v one behind the other, `conv` and `out_proj`.
    """

    def __init__(self, cfg: RecurrentConfig, mixer: Any) -> None:
        super().__init__()
        self.cfg = cfg
        self.wrapped = (mixer,)
        self.project, self.out = Projection(mixer, "in_proj"), Projection(mixer, "out_proj")
        c = cfg.d_channels
        self.hook_input_gate = HookPoint("b p c", c=c)
        self.hook_v = HookPoint("b p c", c=c)
        self.hook_in = HookPoint("b p c", c=c)
        self.hook_conv = HookPoint("b p c", c=c)
        self.hook_y = HookPoint("b p c", c=c)
        self.hook_gate = HookPoint("b p c", c=c)
        self.hook_pattern = HookPoint("b h p k", lazy=True, read_only=True, h=1)

    def forward(self, x: Resid, run: Pass, held: Memory | None) -> tuple[Resid, Memory]:
        """The write to the residual stream, and the convolution's last inputs afterwards."""
        mixer = self.wrapped[0]
        B, C, v = self.project(x).chunk(3, dim=-1)
        B, v = self.hook_input_gate(B), self.hook_v(v)
        with resident(mixer.conv):
            inner, conv = convolved(self.hook_in(B * v), mixer.conv, run, held)
            y = self.hook_y(self.hook_conv(inner))
            out = self.out(self.hook_gate(C) * y)
            self.hook_pattern.lazily(lambda: convolution_attention(B, taps_of(mixer.conv.weight)))
        return out, Recurrent(conv)

    def out_bias(self) -> Tensor | None:
        """What it writes whatever it reads; None for nothing."""
        return self.out.bias()

    def empty(self, batch: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """What `batch` rows hold that have read nothing: inputs of 0."""
        cfg = self.cfg
        return Recurrent(torch.zeros(batch, cfg.d_conv - 1, cfg.d_conv_channels, dtype=dtype, device=device))

    def linear_parts(self, read: Read) -> RecurrentParts:
        """Its linear maps, the input gate taken for the gain. At rest that gate is its bias, without one 0."""
        rows, bias = self.project.stored(read)
        W_B, W_C, W_v = rows.T.chunk(3, dim=1)
        b_B, b_C, b_v = (None, None, None) if bias is None else bias.chunk(3)
        conv = self.wrapped[0].conv
        W_out, b_out = self.out.stored(read)
        return RecurrentParts(
            W_in=W_v,
            b_in=b_v,
            W_gate=W_C,
            b_gate=b_C,
            taps=taps_of(read(conv, "weight")),
            b_conv=None if conv.bias is None else read(conv, "bias"),
            W_out=W_out.T,
            b_out=b_out,
            activation=identity,
            slope=1.0,
            gain_at_rest=W_B.new_zeros(W_B.shape[1]) if b_B is None else b_B,
            gain_points=("hook_input_gate",),
            gain=_gain,
            source="hook_v",
        )


def _gain(seen: Mapping[str, Tensor]) -> Channels:
    """B_t: what of v_t enters the convolution."""
    return seen["hook_input_gate"].float()
