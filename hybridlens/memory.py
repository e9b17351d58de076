"""What one mixer remembers of the tokens it has read: batch-first tensors by name.

A `Memory` can be mapped, split, joined and saved without anyone knowing what its tensors mean. Only keys and values
have an axis of key slots, which the layers of a model share (`HybridState.key_positions`); to every other memory,
slots are nothing. A layer whose window has passed what others still see holds the newest of the slots alone.

Tensors of a memory are never written to, but for one economy: when single tokens are appended, their keys go into
free slots behind those in use, of which nothing else has a view.

How it fails: a memory that is appended to with gradients on copies its keys each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, NamedTuple, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hybridlens.devices import sent
from hybridlens.display import brief
from hybridlens.errors import InputError
from hybridlens.shapes import ConvState, HeldKeys, KeptKeys

M = TypeVar("M", bound="Memory")
NewKeys: TypeAlias = Float[Tensor, "batch kv_head new width"]
NewValues: TypeAlias = Float[Tensor, "batch kv_head new d_value"]
Numbered: TypeAlias = Int[Tensor, "key"]

SLACK = 32
"""Key slots made ahead when decoding, so that most steps copy no key."""


@dataclass(frozen=True, repr=False)
class Memory:
    """Batch-first tensors, as the fields of a subclass; a field that is None is not there."""

    kind: ClassVar[str] = ""
    """The name under which it is saved."""

    def __repr__(self) -> str:
        held = ", ".join(f"{name} {brief(value)}" for name, value in self.tensors().items())
        return f"<{type(self).__name__}: {held}; batch first>"

    def tensors(self) -> dict[str, Tensor]:
        """What it holds, by name."""
        held = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: value for name, value in held.items() if isinstance(value, Tensor)}

    @classmethod
    def of(cls: type[M], tensors: Mapping[str, Tensor]) -> M:
        """The memory that holds these; what is not named is not there."""
        return cls(**tensors)

    def map(self: M, fn: Callable[[Tensor], Tensor]) -> M:
        """The same with `fn` applied to every tensor."""
        return self.of({name: fn(value) for name, value in self.tensors().items()})

    def row(self: M, index: int, chosen: Numbered | None, slots: int) -> M:
        """One row, as a copy.

        Args:
            index: which.
            chosen: the key slots to keep, rising, on the host; None for all.
            slots: that its state has.
        """
        return self.map(lambda value: value[index : index + 1].clone())

    def newest(self: M, slots: int) -> M:
        """Without the oldest keys where it holds more than `slots`."""
        return self

    def keep(self: M, chosen: Tensor, slots: int) -> M:
        """With some key slots alone: those numbered `chosen`, rising, of the state's `slots`."""
        return self

    @property
    def slots(self) -> int:
        """Key slots that it holds, the newest of its state's."""
        return 0

    @property
    def like(self) -> Tensor:
        """One of its tensors in the model's dtype: keys, or the convolution's inputs."""
        return next(iter(self.tensors().values()))

    @classmethod
    def cat(cls: type[M], memories: Sequence[M], slots: Sequence[int]) -> M:
        """The rows of several, their key slots counted from the first.

        Args:
            memories: of one mixer.
            slots: key slots of each one's state.
        """
        held = [memory.tensors() for memory in memories]
        return cls.of({name: torch.cat([tensors[name] for tensors in held]) for name in held[0]})


@dataclass(frozen=True, repr=False)
class Recurrent(Memory):
    """What a recurrent mixer holds: its convolution's last inputs and its state."""

    kind = "ssm"

    conv: ConvState | None = None
    """The inputs of the last (width - 1) tokens, oldest first."""
    recurrent: Float[Tensor, "batch *state"] | None = None
    """float32; None where only the convolution remembers."""

    @property
    def like(self) -> Tensor:
        """The convolution's inputs."""
        return super().like if self.conv is None else self.conv


@dataclass(eq=False)
class _Buffer:
    """Keys and values with free slots behind those in use."""

    k: Tensor
    v: Tensor
    used: int
    by: int = 0
    """The thread that took the last of them."""

    def take(self, end: int) -> bool:
        """Have the slot behind the first `end`, if there is one and nobody else has it; threads may want the same."""
        with _TAKING:
            free = self.used == end < self.k.shape[2]
            if free:
                self.used, self.by = end + 1, threading.get_ident()
            return free

    def give_back(self, used: int) -> None:
        """Have all but the first `used` slots free again, if it was this thread that took them."""
        with _TAKING:
            if self.by == threading.get_ident():
                self.used = used


_TAKING = threading.Lock()


class _Room(NamedTuple):
    """The buffer that a layer's keys are a view of, and the slot behind the last of them."""

    buffer: _Buffer
    end: int


@dataclass(frozen=True, repr=False)
class KeyValues(Memory):
    """Keys (after rotary) and values held by an attention mixer."""

    kind = "attention"
    fixed: ClassVar[bool] = False
    """Whether it is of a fixed number of slots, some of them not yet taken."""

    k: HeldKeys
    v: Float[Tensor, "batch kv_head key d_value"]
    kept: KeptKeys | None = None
    """False where a head has lost a key that its row holds in other layers or heads; None where none has."""
    room: _Room | None = field(default=None, repr=False, compare=False)

    def append(self, k: NewKeys, v: NewValues) -> KeyValues:
        """The keys and values with those of new tokens behind them; this memory stays what it is.

        Single tokens are written into free slots behind its own, which nothing else has a view of; of two runs
        that go on from the same memory, the second finds the slots taken and copies.
        """
        new, held = k.shape[2], self.k.shape[2]
        kept = None if self.kept is None else F.pad(self.kept, (0, new), value=True)
        if new != 1 or torch.is_grad_enabled():
            return type(self)(torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2), kept)
        room = self.room
        if room is None or not room.buffer.take(room.end):
            room = _Room(_Buffer(_with_slack(self.k), _with_slack(self.v), held + 1), held)
        buffer, end = room.buffer, room.end
        buffer.k.narrow(2, end, 1).copy_(k)
        buffer.v.narrow(2, end, 1).copy_(v)
        keys, values = buffer.k.narrow(2, end - held, held + 1), buffer.v.narrow(2, end - held, held + 1)
        return type(self)(keys, values, kept, _Room(buffer, end + 1))

    def lost(self) -> KeptKeys:
        """True where a head has lost a key."""
        nothing = torch.zeros_like(self.k[..., 0], dtype=torch.bool)
        return nothing if self.kept is None else ~self.kept

    def row(self, index: int, chosen: Numbered | None, slots: int) -> KeyValues:
        """One row, as a copy, with the key slots that are used."""
        if chosen is None:
            return super().row(index, None, slots)
        return self.map(lambda value: value[index : index + 1]).keep(chosen, slots)

    def newest(self, slots: int) -> KeyValues:
        """Without the oldest keys where it holds more than `slots`."""
        return self if self.k.shape[2] <= slots else self.drop(self.k.shape[2] - slots)

    def drop(self, n: int) -> KeyValues:
        """Without the first `n` slots."""
        k, v, kept = self.k[:, :, n:], self.v[:, :, n:], None if self.kept is None else self.kept[:, :, n:].clone()
        return type(self)(k.clone(), v.clone(), kept) if self.room is None else type(self)(k, v, kept, self.room)

    def keep(self, chosen: Tensor, slots: int) -> KeyValues:
        """With some key slots alone; see `Memory.keep`."""
        own = chosen[chosen >= slots - self.slots] - (slots - self.slots)
        return self.map(lambda value: taken(value, own, axis=2))

    @property
    def slots(self) -> int:
        """Key slots that it holds, the newest of its state's."""
        return self.k.shape[2]

    @property
    def like(self) -> Tensor:
        """The keys."""
        return self.k

    @classmethod
    def cat(cls, memories: Sequence[KeyValues], slots: Sequence[int]) -> KeyValues:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The rows of several; slots that a row lacks hold zeros."""
        starts, width = _joined(memories, slots)
        masks = None
        if any(held.kept is not None for held in memories):
            padded = [
                F.pad(~held.lost(), (start, width - start - held.slots))
                for held, start in zip(memories, starts, strict=True)
            ]
            masks = torch.cat(padded)
        k, v = (_widened([getattr(held, name) for held in memories], starts, width) for name in ("k", "v"))
        return cls(k, v, masks)


@dataclass(frozen=True, repr=False)
class Latents(KeyValues):
    """What multi-head latent attention holds, as heads of one: latents as `k`, and as `v` the shared parts of keys.

    Keys and values are unfolded from them at each step. Where a hook has changed some of those, or reads them while
    gradients are followed, they are held as well, of every slot, and are what is read.
    """

    kind = "latent"

    unfolded_k: Float[Tensor, "batch head key unfolded_key"] | None = None
    unfolded_v: Float[Tensor, "batch head key unfolded_value"] | None = None

    def unfolding(self, k: NewKeys, v: NewValues) -> Latents:
        """With keys and values of every slot as they are read."""
        return replace(self, unfolded_k=k, unfolded_v=v)

    def drop(self, n: int) -> Latents:
        """Without the first `n` slots."""
        rest = super().drop(n)
        assert isinstance(rest, Latents)
        if self.unfolded_k is None or self.unfolded_v is None:
            return rest
        return rest.unfolding(self.unfolded_k[:, :, n:].clone(), self.unfolded_v[:, :, n:].clone())

    @classmethod
    def cat(cls, memories: Sequence[Latents], slots: Sequence[int]) -> Latents:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The rows of several; slots that a row lacks hold zeros.

        Raises:
            InputError: some hold keys and values that a hook has changed or followed, and others none.
        """
        joined = super().cat(memories, slots)
        assert isinstance(joined, Latents)
        changed = [(held.unfolded_k, held.unfolded_v) for held in memories]
        if all(k is None for k, _ in changed):
            return joined
        parts = [(k, v) for k, v in changed if k is not None and v is not None]
        if len(parts) < len(changed):
            raise InputError(
                "states with keys or values of latent attention that a hook has changed cannot be joined with states "
                "without, nor those of which one has read them with gradients on; change the latent "
                "(attn.hook_kv_latent) instead, or join before the change"
            )
        starts, width = _joined(memories, slots)
        k, v = (_widened([part[i] for part in parts], starts, width) for i in (0, 1))
        return joined.unfolding(k, v)


KINDS: dict[str, type[Memory]] = {kind.kind: kind for kind in (KeyValues, Latents, Recurrent)}
"""The kinds of memory by the name under which they are saved."""


def taken(value: Tensor, chosen: Tensor, axis: int) -> Tensor:
    """The entries numbered `chosen` along an axis, as a copy; numbers on the host are sent without waiting."""
    return value.index_select(axis, sent(chosen, value.device))


def roomy(kind: type[KeyValues], k: Tensor, v: Tensor, end: int, kept: KeptKeys | None) -> KeyValues:
    """Keys and values of which slots up to `end` are in use, and those behind are free for tokens to come."""
    return kind(k[:, :, :end], v[:, :, :end], kept, _Room(_Buffer(k, v, end), end))


def _joined(memories: Sequence[KeyValues], slots: Sequence[int]) -> tuple[list[int], int]:
    """The slot from which on each one's keys stand where several are joined, and the slots that they have then."""
    first = [of_state - held.slots for held, of_state in zip(memories, slots, strict=True)]
    return [start - min(first) for start in first], max(slots) - min(first)


def _widened(held: Sequence[Tensor], starts: Sequence[int], slots: int) -> HeldKeys:
    """Keys or values of several memories in one batch of `slots` slots, each from a slot of its own on."""
    if all(part.shape[2] == slots for part in held):
        return torch.cat(list(held))
    rows = sum(part.shape[0] for part in held)
    out = held[0].new_zeros(rows, held[0].shape[1], slots, held[0].shape[3])
    row = 0
    for part, start in zip(held, starts, strict=True):
        out[row : row + part.shape[0], :, start : start + part.shape[2]] = part
        row += part.shape[0]
    return out


def _with_slack(held: HeldKeys) -> Float[Tensor, "batch kv_head slot width"]:
    """A copy with `SLACK` free slots behind it."""
    batch, heads, slots, width = held.shape
    larger = held.new_empty(batch, heads, slots + SLACK, width)
    larger[:, :, :slots] = held
    return larger
