"""What one layer remembers: keys and values, or convolution inputs and a recurrent state.

Tensors of a memory are never written to, but for one economy: when single tokens are appended, their keys go into
free slots behind those in use, of which nothing else has a view.

Key slots and their positions are shared by all layers (`HybridState.key_positions`). A key that is gone from one
layer or head only keeps its slot there and is masked: `AttentionState.kept`.

How it fails: a memory that is appended to with gradients on copies its keys each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hybridlens.shapes import ConvState, HeldKeys, KeptKeys, State

NewKeys: TypeAlias = Float[Tensor, "batch kv_head new d_head"]

SLACK = 32
"""Key slots made ahead when decoding, so that most steps copy no key."""


@dataclass(eq=False)
class _Buffer:
    """Keys and values with free slots behind those in use."""

    k: Tensor
    v: Tensor
    used: int


class _Room(NamedTuple):
    """The buffer that a layer's keys are a view of, and the slot behind the last of them."""

    buffer: _Buffer
    end: int


@dataclass(frozen=True)
class AttentionState:
    """Keys (after rotary) and values held by an attention layer."""

    k: HeldKeys
    v: HeldKeys
    room: _Room | None = field(default=None, repr=False, compare=False)
    kept: KeptKeys | None = None
    """False where a head has lost a key that its row holds in other layers or heads; None where none has."""

    def append(self, k: NewKeys, v: NewKeys) -> AttentionState:
        """The keys and values with those of new tokens behind them; this state stays what it is.

        Single tokens are written into free slots behind a state's own, which nothing else has a view of; of two
        states that go on from the same one, the second finds the slots taken and copies.
        """
        new, held = k.shape[2], self.k.shape[2]
        kept = None if self.kept is None else F.pad(self.kept, (0, new), value=True)
        if new != 1 or torch.is_grad_enabled():
            return AttentionState(torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2), kept=kept)
        room = self.room
        if room is None or room.end != room.buffer.used or room.end == room.buffer.k.shape[2]:
            buffer = _Buffer(_with_slack(self.k), _with_slack(self.v), held)
            room = _Room(buffer, held)
        buffer, end = room.buffer, room.end
        buffer.k[:, :, end : end + 1], buffer.v[:, :, end : end + 1] = k, v
        buffer.used = end + 1
        seen = slice(end - held, end + 1)
        return AttentionState(buffer.k[:, :, seen], buffer.v[:, :, seen], _Room(buffer, end + 1), kept)

    def drop(self, n: int) -> AttentionState:
        """Without the first `n` slots."""
        k, v, kept = self.k[:, :, n:], self.v[:, :, n:], None if self.kept is None else self.kept[:, :, n:].clone()
        if self.room is None:
            return AttentionState(k.clone(), v.clone(), kept=kept)
        return AttentionState(k, v, self.room, kept)


def widened(held: Sequence[Tensor], slots: int) -> HeldKeys:
    """Keys or values of several states in one batch; slots that a row lacks hold zeros."""
    if all(part.shape[2] == slots for part in held):
        return torch.cat(list(held))
    rows = sum(part.shape[0] for part in held)
    out = held[0].new_zeros(rows, held[0].shape[1], slots, held[0].shape[3])
    start = 0
    for part in held:
        out[start : start + part.shape[0], :, : part.shape[2]] = part
        start += part.shape[0]
    return out


def _with_slack(held: HeldKeys) -> Float[Tensor, "batch kv_head slot d_head"]:
    """A copy with `SLACK` free slots behind it."""
    batch, heads, slots, width = held.shape
    larger = held.new_empty(batch, heads, slots + SLACK, width)
    larger[:, :, :slots] = held
    return larger


@dataclass(frozen=True)
class RecurrentState:
    """What a recurrent layer holds: its convolution's last inputs and its state."""

    conv: ConvState
    """The inputs of the last (width - 1) tokens, oldest first."""
    recurrent: State
    """float32."""


LayerState: TypeAlias = AttentionState | RecurrentState


def newest(held: LayerState, slots: int) -> LayerState:
    """Without the oldest keys where it holds more than `slots`."""
    if isinstance(held, RecurrentState) or held.k.shape[2] <= slots:
        return held
    return held.drop(held.k.shape[2] - slots)


def parts(held: LayerState) -> dict[str, Tensor]:
    """The tensors of a layer's memory, by name."""
    return {name: value for name, value in vars(held).items() if isinstance(value, Tensor)}
