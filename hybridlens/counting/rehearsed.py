"""What a rehearsed sweep comes to: tokens, operations, bytes, and seconds on a machine.

A pass is bound by operations, by moving weights and states, or by the launches of its kernels (`machines`); decode
steps that a run captures on a GPU (`fixed_steps`) have few launches. Bytes of a pass are the weights that it needs,
once, and each row's state as it comes in and as it goes out; activations, which stay near the processor in blocks, are
not counted.

How it fails: it does not; what it gives is an estimate, whose assumptions stand in `machines`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch

from hybridlens.counting.machines import TREATED_READING, TREATED_STEP, Machine
from hybridlens.counting.work import ModelWork
from hybridlens.engine import Costs
from hybridlens.engine.rehearsal import Batch, Pass
from hybridlens.fixed_steps import FEWEST, ROOM

Shape: TypeAlias = tuple[int, int, int]
"""Rows, tokens and keys of a pass."""


class Expense(NamedTuple):
    """What some passes cost."""

    read: int = 0
    """Tokens of prompts that go through the model, padding left out."""
    written: int = 0
    """New tokens, at most."""
    operations: int = 0
    """Floating-point operations."""
    moved: int = 0
    """Bytes."""
    seconds: float = 0.0

    def plus(self, other: Expense) -> Expense:
        """Both together."""
        return Expense(
            self.read + other.read,
            self.written + other.written,
            self.operations + other.operations,
            self.moved + other.moved,
            self.seconds + other.seconds,
        )


class Prices(NamedTuple):
    """What a model costs on a machine."""

    work: ModelWork
    costs: Costs
    dtype: torch.dtype
    machine: Machine

    def all(self, passes: Sequence[Pass], batches: Sequence[Batch], met: set[Shape] | None = None) -> Expense:
        """What a sweep costs.

        Args:
            passes: over prompts.
            batches: of answers.
            met: shapes that the process has met before; those of the sweep are added.
        """
        total, met = Expense(), set[Shape]() if met is None else met
        for one in passes:
            total = total.plus(self.reading(one))
        for batch in batches:
            total = total.plus(self.answering(batch))
        if not self.attends:
            return total
        shapes = {(len(one.starts), one.width, max(one.starts) + one.width) for one in passes}
        planning = len(shapes - met) * self.machine.shape_seconds
        met |= shapes
        return total._replace(seconds=total.seconds + planning)

    def reading(self, one: Pass) -> Expense:
        """What a pass over prompts costs; padding is computed as other tokens are."""
        scores = 2 if one.treated else 1
        operations = sum(self.work.reading(start, one.width, scores) for start in one.starts)
        ends = [start + count for start, count in zip(one.starts, one.counts, strict=True)]
        states = sum(self.costs.state(tokens) for tokens in (*one.starts, *ends))
        moved = self._weights(one.width * len(one.starts)) + states
        seconds = max(self.machine.seconds(operations, moved, self.dtype), self._launching(self.machine.layer_seconds))
        return Expense(sum(one.counts), 0, operations, moved, seconds * (TREATED_READING if one.treated else 1))

    def answering(self, batch: Batch) -> Expense:
        """What a batch of answers costs, each as long as it may be."""
        scores, rows = 2 if batch.treated else 1, len(batch.lengths)
        operations = sum(self.work.decoding(length, batch.steps, scores) for length in batch.lengths)
        weights, each = self._weights(rows), self.machine.captured_seconds
        plain = self._launching(self.machine.layer_seconds)
        captured = None if each is None or batch.steps < FEWEST else self._launching(each)
        moved, seconds = 0, 0.0
        for step in range(batch.steps):
            step_moved = weights + sum(self.costs.state(length + step) for length in batch.lengths)
            moved += step_moved
            launches = plain if captured is None or step % ROOM == 0 else captured
            seconds += max(self.machine.seconds(operations / batch.steps, step_moved, self.dtype), launches)
            if captured is not None and step % ROOM == 1:
                seconds += plain  # it is recorded
        seconds *= TREATED_STEP if batch.treated else 1
        return Expense(0, rows * batch.written, operations, moved, seconds)

    @property
    def attends(self) -> bool:
        """Whether the model has attention."""
        return any(layer.pair for layer in self.work.layers)

    def _launching(self, layer_seconds: float) -> float:
        """Seconds of a pass, whatever it computes."""
        return self.work.n_layers * layer_seconds + self.work.mixtures * self.machine.mixture_seconds

    def _weights(self, tokens: int) -> int:
        return self.work.weights_read(tokens) * self.dtype.itemsize
