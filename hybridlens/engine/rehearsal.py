"""A sweep without its model: which tokens it would read and write in which batches, from sizes alone.

A `Rehearsal` takes every decision that a `Sweep` takes, by the sweep's own code: what is shared, what is read together
and in how many passes, what is dropped for want of memory, which rows answer together. Where the sweep would run the
model, the rehearsal writes down what it would be run on; states are sizes without numbers. So a lens without weights
is enough.

How it fails: nothing says when a row will end, so that every answer is taken to be as long as it may be. In a model
whose layers see windows of several sizes, sizes of states of rows of unequal length that are read together are
estimates; how soon snapshots are dropped hangs on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hybridlens.config import LensConfig
from hybridlens.effort import cost
from hybridlens.engine.answering import Row
from hybridlens.engine.budget import Costs, costs_of
from hybridlens.engine.reading import Reached, Reader, Stretch
from hybridlens.engine.sweep import Sweep
from hybridlens.engine.work import Answer, Job
from hybridlens.memory import Memory
from hybridlens.state import HybridState


class Pass(NamedTuple):
    """A forward pass."""

    starts: tuple[int, ...]
    """Tokens of each row that were read before."""
    counts: tuple[int, ...]
    """Tokens of each row that it reads, padding left out; some may be 0."""
    width: int
    """Tokens of each row with padding."""
    treated: bool
    """Whether edits act."""


class Batch(NamedTuple):
    """Rows that answer together."""

    lengths: tuple[int, ...]
    """Tokens of each row that were read before its first decode step."""
    steps: int
    """Decode steps, at most."""
    written: int
    """New tokens of a row, at most."""
    treated: bool


class Rehearsal(Sweep):
    """A sweep that runs nothing; arguments, tally and errors as `Sweep`.

    Attributes:
        passes: over prompts, in the order in which they would be run.
        batches: of answers, likewise.
    """

    def rehearse(self, jobs: Sequence[Job]) -> None:
        """Write down what the sweep would do for some jobs; errors as `run`."""
        self.passes: list[Pass] = []
        self.batches: list[Batch] = []
        for _ in self.run(jobs):
            pass

    @property
    def work(self) -> float:
        """Of all that was rehearsed, in the unit of `hybridlens.effort`."""
        read = sum(cost(float(len(one.counts) * one.width)) for one in self.passes)
        return read + sum(one.steps * cost(float(len(one.lengths))) for one in self.batches)

    def _reader(self) -> Reader:
        return _Reader(self.lens, self.treating, self.budget, self.tally, passes=self.passes)

    def _say(self, batch: Sequence[Row]) -> list[Answer]:
        steps = self.max_new_tokens - (self.boundary == "first_new_token")
        read = tuple(int(row.state.lengths) for row in batch)
        treated = any(row.treatment is not None for row in batch)
        self.batches.append(Batch(read, steps, self.max_new_tokens, treated))
        return [Answer("", (), 0.0)] * len(batch)


class _Reader(Reader):
    """A reader that runs nothing."""

    def __init__(self, *given: object, passes: list[Pass]) -> None:
        super().__init__(*given)  # pyright: ignore[reportArgumentType]
        self.passes = passes
        self.cfg = self.lens.cfg
        self.costs = costs_of(self.cfg, self.lens.dtype)

    def _through(self, stretch: Stretch, before: Sequence[HybridState | None]) -> list[Reached]:
        read = list(stretch.starts)
        for parts in stretch.pieces():
            counts = tuple(len(part) for part in parts)
            self.passes.append(Pass(tuple(read), counts, max(counts), bool(stretch.edits)))
            read = [start + count for start, count in zip(read, counts, strict=True)]
        return [Reached(sized(self.cfg, self.costs, stop), None) for stop in stretch.stops]


@dataclass(frozen=True, repr=False)
class _Sized(Memory):
    """So many bytes."""

    held: Tensor


def sized(cfg: LensConfig, costs: Costs, tokens: int) -> HybridState:
    """A state of one row that holds no numbers, of the size that one has in the engine.

    Args:
        cfg: of the model.
        costs: its rows' and tokens'.
        tokens: read.
    """
    seen = {window: tokens if window is None else min(tokens, window - 1) for window in costs.keys}
    held = costs.row + sum(seen[window] * size for window, size in costs.keys.items())
    slots = max(seen.values(), default=0)
    nothing = _Sized(torch.empty(1, held, dtype=torch.uint8, device="meta"))
    positions = torch.empty(1, slots, dtype=torch.long, device="meta")
    return HybridState("", torch.tensor([tokens]), positions, ({"all": nothing},), cfg.window)
