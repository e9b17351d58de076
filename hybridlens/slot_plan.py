"""Where a batch's tokens stand in its key slots, as numbers on the host.

Lengths and positions of a `HybridState` are tensors where the model computes; what has to be decided about them before
a pass runs (how many slots a window has passed, whether every query sees every key) would wait for that device each
time. A `SlotPlan` says the same as plain numbers: each row's tokens as a few `Stretch`es of consecutive slots and
positions. A pass makes the plan of its outcome from that of its start and the number of new tokens.

How it fails: nothing here reads a tensor but `SlotPlan.of`, which waits for it. Tensors made in PyTorch's inference
mode do not count what is written to them, so that a plan of theirs goes on saying what they held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from hybridlens.shapes import KeyPositions, Lengths


class Stretch(NamedTuple):
    """Consecutive tokens in consecutive slots."""

    slot: int
    """Of the first."""
    position: int
    """Of the first, in the text."""
    size: int
    """Tokens."""


@dataclass(frozen=True)
class SlotPlan:
    """Which slots hold which tokens.

    Attributes:
        lengths: tokens read by each row.
        slots: that the rows share.
        rows: each row's stretches, in the order of slots; slots in none of them are not used by the row.
    """

    lengths: tuple[int, ...]
    slots: int
    rows: tuple[tuple[Stretch, ...], ...]

    @staticmethod
    def empty(batch: int) -> SlotPlan:
        """Of rows that have read nothing."""
        return SlotPlan((0,) * batch, 0, ((),) * batch)

    @staticmethod
    def of(key_positions: KeyPositions, lengths: Lengths) -> SlotPlan:
        """Read from the tensors of a state."""
        held: Any = key_positions.detach().cpu().numpy()
        return SlotPlan(tuple(lengths.tolist()), held.shape[1], tuple(_stretches(row) for row in held))

    def append(self, new: int, counts: Sequence[int] | None) -> SlotPlan:
        """With `new` more slots, of which row i uses the first ``counts[i]``; None for all."""
        each = (new,) * len(self.lengths) if counts is None else counts
        lengths = tuple(length + count for length, count in zip(self.lengths, each, strict=True))
        rows = tuple(
            _extended(row, Stretch(self.slots, length, count)) if count else row
            for row, length, count in zip(self.rows, self.lengths, each, strict=True)
        )
        return SlotPlan(lengths, self.slots + new, rows)

    def unslotted(self) -> SlotPlan:
        """Of a model that holds no keys."""
        return SlotPlan(self.lengths, 0, ((),) * len(self.lengths))

    def drop(self, n: int) -> SlotPlan:
        """Without the first `n` slots."""
        return SlotPlan(self.lengths, self.slots - n, tuple(_moved(row, n) for row in self.rows)) if n else self

    def select(self, rows: Sequence[int]) -> SlotPlan:
        """The given rows."""
        return SlotPlan(tuple(self.lengths[i] for i in rows), self.slots, tuple(self.rows[i] for i in rows))

    @staticmethod
    def cat(plans: Sequence[SlotPlan]) -> SlotPlan:
        """The rows of several, their slots counted from the first."""
        lengths = tuple(length for plan in plans for length in plan.lengths)
        rows = tuple(row for plan in plans for row in plan.rows)
        return SlotPlan(lengths, max(plan.slots for plan in plans), rows)

    def passed(self, window: int, held: int) -> int:
        """How many of the oldest of the newest `held` slots no row's next token can see under a window."""
        if held < window or any(length < window - 1 for length in self.lengths):
            return 0
        start, first = self.slots - held, self.slots
        for length, row in zip(self.lengths, self.rows, strict=True):
            for stretch in row:
                slot = max(stretch.slot + max(0, length - window + 1 - stretch.position), start)
                if slot < stretch.slot + stretch.size:
                    first = min(first, slot)
                    break
        return first - start

    def all_seen(self, window: int | None, held: int, reading: Sequence[int] | None) -> bool:
        """Whether the last token that each row has read sees all of the newest `held` slots.

        Args:
            window: keys that it sees, its own included; None for all.
            held: slots.
            reading: new tokens of each row; those of none do not matter. None for one each.
        """
        start = self.slots - held
        for row, (length, stretches) in enumerate(zip(self.lengths, self.rows, strict=True)):
            if reading is not None and not reading[row]:
                continue
            oldest, seen = 0 if window is None else max(0, length - window), 0
            for slot, position, count in stretches:
                inside = max(0, start - slot)
                if inside < count:
                    if position + inside < oldest:
                        return False
                    seen += count - inside
            if seen < held:
                return False
        return True

    def alone(self, row: int, oldest: int) -> tuple[SlotPlan, list[int]]:
        """One row without the slots that hold nothing, or tokens before `oldest`; and those that it keeps."""
        kept, stretches = list[int](), tuple[Stretch, ...]()
        for slot, position, count in self.rows[row]:
            cut = max(0, oldest - position)
            if cut < count:
                stretches = _extended(stretches, Stretch(len(kept), position + cut, count - cut))
                kept += range(slot + cut, slot + count)
        return SlotPlan((self.lengths[row],), len(kept), (stretches,)), kept


class Planned(NamedTuple):
    """A plan, and the tensors that it is of: of others, or of the same written to, it says nothing."""

    plan: SlotPlan
    lengths: Lengths
    key_positions: KeyPositions
    versions: tuple[int, int]

    @staticmethod
    def now(plan: SlotPlan, lengths: Lengths, key_positions: KeyPositions) -> Planned:
        """The plan of these tensors as they are."""
        return Planned(plan, lengths, key_positions, (_version(lengths), _version(key_positions)))

    def holds(self, lengths: Lengths, key_positions: KeyPositions) -> bool:
        """Whether it is of these tensors as they are."""
        same = self.lengths is lengths and self.key_positions is key_positions
        return same and self.versions == (_version(lengths), _version(key_positions))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # pyright: ignore[reportPrivateUsage]


def _stretches(positions: Any) -> tuple[Stretch, ...]:
    """The stretches of one row's slots, -1 in those not used."""
    slots = np.flatnonzero(positions >= 0)
    if not slots.size:
        return ()
    held = positions[slots]
    breaks = np.flatnonzero((np.diff(slots) != 1) | (np.diff(held) != 1)) + 1
    starts = [0, *breaks.tolist()]
    stops = [*breaks.tolist(), slots.size]
    return tuple(Stretch(int(slots[a]), int(held[a]), b - a) for a, b in zip(starts, stops, strict=True))


def _extended(row: tuple[Stretch, ...], new: Stretch) -> tuple[Stretch, ...]:
    if row:
        slot, position, count = row[-1]
        if slot + count == new.slot and position + count == new.position:
            return (*row[:-1], Stretch(slot, position, count + new.size))
    return (*row, new)


def _moved(row: tuple[Stretch, ...], n: int) -> tuple[Stretch, ...]:
    cuts = ((max(0, n - stretch.slot), *stretch) for stretch in row)
    return tuple(Stretch(slot + cut - n, at + cut, count - cut) for cut, slot, at, count in cuts if cut < count)
