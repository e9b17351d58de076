"""What a rehearsed sweep comes to: tokens, operations, bytes, and seconds on a machine.

Reading is bound by operations or by moving weights and states, a decode step by these or by the launches of its
kernels (`machines`). Bytes of a pass are the weights that it needs, once, and each row's state as it comes in and as it
goes out; activations, which stay near the processor in blocks, are not counted.

How it fails: it does not; what it gives is an estimate, whose assumptions stand in `machines`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from hybridlens.counting.machines import TREATED_READING, TREATED_STEP, Machine
from hybridlens.counting.work import ModelWork
from hybridlens.engine import Costs
from hybridlens.engine.rehearsal import Batch, Pass


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

    def all(self, passes: Sequence[Pass], batches: Sequence[Batch]) -> Expense:
        """What a sweep costs."""
        total = Expense()
        for one in passes:
            total = total.plus(self.reading(one))
        for batch in batches:
            total = total.plus(self.answering(batch))
        return total

    def reading(self, one: Pass) -> Expense:
        """What a pass over prompts costs; padding is computed as other tokens are."""
        scores = 2 if one.treated else 1
        operations = sum(self.work.reading(start, one.width, scores) for start in one.starts)
        ends = [start + count for start, count in zip(one.starts, one.counts, strict=True)]
        states = sum(self.costs.state(tokens) for tokens in (*one.starts, *ends))
        moved = self._weights(one.width * len(one.starts)) + states
        seconds = max(self.machine.seconds(operations, moved, self.dtype), self.launching)
        return Expense(sum(one.counts), 0, operations, moved, seconds * (TREATED_READING if one.treated else 1))

    def answering(self, batch: Batch) -> Expense:
        """What a batch of answers costs, each as long as it may be."""
        scores, rows = 2 if batch.treated else 1, len(batch.lengths)
        operations = sum(self.work.decoding(length, batch.steps, scores) for length in batch.lengths)
        weights = self._weights(rows)
        moved, seconds = 0, 0.0
        for step in range(batch.steps):
            step_moved = weights + sum(self.costs.state(length + step) for length in batch.lengths)
            moved += step_moved
            seconds += max(self.machine.seconds(operations / batch.steps, step_moved, self.dtype), self.launching)
        seconds *= TREATED_STEP if batch.treated else 1
        return Expense(0, rows * batch.written, operations, moved, seconds)

    @property
    def launching(self) -> float:
        """Seconds of a pass, whatever it computes."""
        return self.work.n_layers * self.machine.layer_seconds + self.work.mixtures * self.machine.mixture_seconds

    def _weights(self, tokens: int) -> int:
        return self.work.weights_read(tokens) * self.dtype.itemsize
