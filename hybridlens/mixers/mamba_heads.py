"""Mamba in heads (Zamba, https://arxiv.org/abs/2405.16712): equal blocks of channels with their own Δ, B and C.

What makes them is one weight for all heads, read head by head. The rows of `in_proj` take turns: an even one enters the
convolution, the odd one after it is the gate of the same channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridlens.config import RecurrentConfig
from hybridlens.mixers.mamba import SelectiveMixer
from hybridlens.recurrences.selective_heads import SelectiveHeads
from hybridlens.shapes import Channels


class MambaHeads(SelectiveMixer):
    """A Mamba mixer in heads.

    Args:
        cfg: its sizes.
        mixer: the family's module.
    """

    def __init__(self, cfg: RecurrentConfig, mixer: Any) -> None:
        heads = mixer.n_mamba_heads
        super().__init__(cfg, SelectiveHeads(cfg.state_shape, heads), mixer, heads)

    def halves(self, packed: Tensor, dim: int) -> tuple[Tensor, ...]:
        """By turns."""
        return packed.unflatten(dim, (-1, 2)).unbind(-1 if dim == -1 else dim + 1)

    def selected(self, u: Channels) -> tuple[Channels, Tensor, Tensor]:
        """By the part of `x_proj_weight` and of `dt_proj_weight` that is a head's."""
        mixer = self.wrapped[0]
        rank, n = mixer.time_step_rank, mixer.ssm_state_size
        made = torch.einsum("bpsc, src -> bpsr", u.unflatten(-1, (mixer.n_mamba_heads, -1)), mixer.x_proj_weight)
        dt, B, C = made.split([rank, n, n], dim=-1)
        dt = torch.einsum("bpsr, scr -> bpsc", dt, mixer.dt_proj_weight)
        return (dt + mixer.dt_proj_bias.to(dt.dtype)).flatten(-2), B, C

    def matrices(self) -> tuple[Tensor, Tensor]:
        """The weights that make Δ, B and C, which no linear map of the family's holds."""
        mixer = self.wrapped[0]
        return mixer.x_proj_weight, mixer.dt_proj_weight
