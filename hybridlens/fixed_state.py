"""A state of fixed shapes, and the decode step that goes on from it in place: what can be recorded and done again.

Keys have room for a number of steps ahead. Which slot a token takes, where it stands, and which slots it sees are
tensors (`FixedPass`), so that step after step runs the very same operations on the same tensors. Slots that are not
yet taken have position -1, like those that a row does not use, and are masked.

How it fails: more steps than there is room for would overwrite the last slot; `fixed_steps` counts them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlens.memory import KeyValues, Latents, Memory, NewKeys, NewValues, Recurrent, roomy
from hybridlens.passes import Pass
from hybridlens.state import HybridState, Memories

EVEN = 16
"""Slots are a multiple of this: fused attention copies a mask of any other width."""


class Place(NamedTuple):
    """Where the next token's keys go."""

    slot: Tensor
    """Of the slots that a layer holds [1]."""


@dataclass(frozen=True, repr=False)
class FixedKeys(KeyValues):
    """Keys and values whose number of slots stays; new ones are written into the next."""

    fixed = True

    place: Place | None = field(default=None, repr=False, compare=False)

    def append(self, k: NewKeys, v: NewValues) -> KeyValues:
        """Itself, with those of one token written in."""
        assert self.place is not None
        self.k.index_copy_(2, self.place.slot, k)
        self.v.index_copy_(2, self.place.slot, v)
        return self


@dataclass(frozen=True, repr=False)
class FixedLatents(FixedKeys, Latents):
    """The same for latents."""


class FixedPass(Pass):
    """One token a row, at positions and slots that are tensors.

    Args:
        fixed: the state that it goes on from, and writes to.
    """

    fixed = True

    def __init__(self, fixed: FixedState) -> None:
        self._made = {}
        self._steps = fixed.step
        self.continued, self.embedded = True, None
        self.plan, self.counts, self.begins = None, None, fixed.begins
        self.valid = None if fixed.reading is None else fixed.reading[:, None]
        self.positions = fixed.lengths[:, None]
        fresh = self.positions if self.valid is None else self.positions.masked_fill(~self.valid, -1)
        if fixed.slots:
            fixed.key_positions.index_copy_(1, fixed.next, fresh)
        self.key_positions = fixed.key_positions
        self.lengths = fixed.lengths


class FixedState:
    """A state's tensors with room for at least `steps` more tokens of each row; the state itself is not changed.

    Args:
        state: what was read.
        steps: room.
        masked: whether some rows may not read (`reading`).

    Attributes:
        view: the same as a `HybridState`, for the layers.
        lengths: tokens that each row has read.
        key_positions: of every slot.
        next: the slot of the next token [1].
        reading: False for rows that read no more; None where all do.
    """

    def __init__(self, state: HybridState, steps: int, masked: bool) -> None:
        plan, device = state.plan, state.lengths.device
        self.held, self.taken = state.key_positions.shape[1], 0
        self.steps = steps + -(self.held + steps) % EVEN
        self.attends = any(isinstance(m, KeyValues) for held in state.layers for m in held.values())
        self.slots = self.held + self.steps if self.attends else 0
        self.begins = plan is None or 0 in plan.lengths
        self.lengths = state.lengths.clone()
        self.key_positions = F.pad(state.key_positions, (0, self.slots - self.held), value=-1).contiguous()
        self.next = torch.full((1,), self.held, dtype=torch.long, device=device)
        self.step = torch.zeros(1, dtype=torch.long, device=device)
        self.reading = torch.ones(state.batch, dtype=torch.bool, device=device) if masked else None
        self._places: dict[int, Place] = {self.held: Place(self.next)}
        layers = tuple({name: self._fixed(memory) for name, memory in held.items()} for held in state.layers)
        self.view = replace(state, layers=layers, lengths=self.lengths, key_positions=self.key_positions, planned=None)

    def _fixed(self, memory: Memory) -> Memory:
        if not isinstance(memory, KeyValues):
            return memory.map(Tensor.clone)
        if memory.slots not in self._places:  # a smaller window has fewer slots, the newest
            self._places[memory.slots] = Place(self.next - (self.held - memory.slots))
        place, more = self._places[memory.slots], self.steps
        k, v = (torch.cat([t, t.new_zeros(*t.shape[:2], more, t.shape[3])], dim=2) for t in (memory.k, memory.v))
        kept = None if memory.kept is None else F.pad(memory.kept, (0, more), value=True)
        if isinstance(memory, Latents):
            return FixedLatents(k, v, kept, place=place)
        return FixedKeys(k, v, kept, place=place)

    def advance(self, layers: list[Memories]) -> None:
        """Take over what a pass remembers, and go on to the next slot; part of the step."""
        into, new = list[Tensor](), list[Tensor]()
        for held, after in zip(self.view.layers, layers, strict=True):
            for name, memory in held.items():
                if isinstance(memory, Recurrent):
                    given = after[name].tensors()
                    into += list(memory.tensors().values())
                    new += [given[part] for part in memory.tensors()]
        if into:
            torch._foreach_copy_(into, new)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        self.lengths.add_(1 if self.reading is None else self.reading)
        for place in self._places.values():
            place.slot.add_(1)

    def state(self) -> HybridState:
        """What has been read so far, as a state like any other; this one is not to be gone on with."""
        used = self.held + self.taken
        layers = tuple({name: self._freed(memory) for name, memory in held.items()} for held in self.view.layers)
        positions = self.key_positions[:, :used].clone() if self.attends else self.key_positions
        return replace(self.view, layers=layers, key_positions=positions)

    def _freed(self, memory: Memory) -> Memory:
        if not isinstance(memory, KeyValues):
            return memory
        end = memory.slots - self.steps + self.taken
        kept = None if memory.kept is None else memory.kept[:, :, :end]
        kind = Latents if isinstance(memory, Latents) else KeyValues
        return roomy(kind, memory.k, memory.v, end, kept)


def unfixed(memory: Memory) -> bool:
    """Whether a memory has something that a fixed one cannot: keys and values held beside latents."""
    return isinstance(memory, Latents) and memory.unfolded_k is not None
