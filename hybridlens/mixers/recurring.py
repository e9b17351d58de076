"""What all recurrent mixers do alike: convolve, start from what is held, run past the hook on the state, remember."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from hybridlens.config import RecurrentConfig
from hybridlens.hooks import HookPoint, wanted
from hybridlens.memory import Memory, Recurrent
from hybridlens.passes import Pass
from hybridlens.recurrences.base import Recurrence, Run
from hybridlens.recurrences.convolution import causal_convolution
from hybridlens.shapes import Channels, ConvState, Valid

T = TypeVar("T", bound=tuple[Any, ...])


def convolved(x: Channels, conv: nn.Module, run: Pass, held: Memory | None) -> tuple[Channels, ConvState]:
    """A mixer's convolution of its channels, and the inputs that the next token's needs.

    Args:
        x: the channels of the new tokens.
        conv: the family's ``nn.Conv1d``, whose weights are at hand.
        run: the forward pass.
        held: the mixer's memory of earlier tokens.
    """
    before = None if held is None else cast(Recurrent, held).conv
    weights: Any = conv
    return causal_convolution(x, before, weights.weight, weights.bias, run.valid)


def held_state(op: Recurrence[Any], held: Memory | None, like: Tensor) -> Tensor:
    """The state that a pass goes on from, float32."""
    state = None if held is None else cast(Recurrent, held).recurrent
    return op.empty(like.shape[0], like.device) if state is None else state


def through(op: Recurrence[T], terms: T, initial: Tensor, point: HookPoint, valid: Valid | None) -> Run:
    """A run past the hook on the state; every state is made only if somebody asks for it.

    Args:
        op: the recurrence.
        terms: of the new tokens; nothing happens in them at padding.
        initial: the state before them.
        point: `hook_state`.
        valid: False on padding, where edits mean nothing.
    """
    if not wanted(point):
        return op.run(terms, initial)

    def hook(states: Tensor) -> tuple[Tensor, Tensor | None]:
        value, mask = point.edited(states)
        if valid is None or mask is None:
            return value, mask
        real = valid.reshape(*valid.shape, *[1] * (states.ndim - 2))
        return torch.where(real, value, states), mask & real

    hooked = op.hooked(terms, initial, hook)
    return Run(hooked.y, hooked.final)


def remember(conv: ConvState, final: Tensor) -> Recurrent:
    """A mixer's memory, sharing no storage with the whole trajectory."""
    return Recurrent(conv, final.float().clone())


def empty(
    cfg: RecurrentConfig, op: Recurrence[Any], batch: int, dtype: torch.dtype, device: torch.device
) -> Recurrent:
    """What `batch` rows hold that have read nothing."""
    conv = torch.zeros(batch, cfg.d_conv - 1, cfg.d_conv_channels, dtype=dtype, device=device)
    return Recurrent(conv, op.empty(batch, device))
