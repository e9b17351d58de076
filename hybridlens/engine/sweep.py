"""Every answer of a sweep, with nothing computed twice.

Jobs that differ only in how they are answered share one reading; readings share their beginnings
(`reading.Reader`); rows under different treatments decode together (`answering.answer`). Rows wait until a
batch is full, of their own kind, and those of equal length go together.

How it fails: bad prompts, treatments and budgets raise before anything runs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import torch

from hybridlens import machine
from hybridlens.decoding import Boundary, check_boundary
from hybridlens.engine.answering import Row, answer
from hybridlens.engine.budget import Budget, costs_of
from hybridlens.engine.reading import Reader, Tally
from hybridlens.engine.work import Answer, Job, Treating, reading_of
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.tokens import check_context


class Answered(NamedTuple):
    """The answer to one job."""

    job: int
    """Which."""
    answer: Answer


class Sweep:
    """The answers to many jobs, batch by batch.

    Args:
        lens: the model.
        treating: how the jobs' treatments act.
        boundary: which rules read the last token of a prompt.
        max_new_tokens: at most so many for each answer.
        memory: bytes that may be held beside the weights; None for a share of what is free (`machine.budget`).
        rows: most rows that answer together; None for as many as fit.
        capture: record decode steps and do them again; see `hybridlens.decoding.Decoding`.

    Attributes:
        tally: what reading has cost so far.

    Raises:
        UnknownNameError: for a boundary that does not exist.
        InputError: for a number of new tokens or rows below 1.
    """

    def __init__(
        self,
        lens: HybridLens,
        treating: Treating,
        boundary: Boundary = "last_prompt_token",
        max_new_tokens: int = 40,
        memory: int | None = None,
        rows: int | None = None,
        capture: bool | None = None,
    ) -> None:
        check_boundary(boundary)
        for name, value in (("max_new_tokens", max_new_tokens), ("rows", rows)):
            if value is not None and value < 1:
                raise InputError(f"{name} {value} given, expected at least 1")
        self.lens = lens
        self.treating = treating
        self.boundary: Boundary = boundary
        self.max_new_tokens = max_new_tokens
        self.capture = capture
        held = machine.budget(machine.devices_of(lens.hf_model)) if memory is None else memory
        self.budget = Budget(costs_of(lens.cfg, lens.dtype), held, rows)
        self.tally = Tally()

    def run(self, jobs: Sequence[Job]) -> Iterator[list[Answered]]:
        """Answer every job, a batch at a time; greedy, and independent of which jobs run together.

        Raises:
            InputError: a prompt is empty or too long, or does not fit the budget or the device.
        """
        for job in jobs:
            if not job.tokens:
                raise InputError("a job has an empty prompt, expected at least one token")
        longest = max((len(job.tokens) for job in jobs), default=0) + self.max_new_tokens
        check_context(longest - 1, self.lens.cfg.n_ctx)
        self.budget.check(longest)
        wanted: dict[Hashable, list[int]] = {}
        for index, job in enumerate(jobs):
            wanted.setdefault(reading_of(job, self.boundary, self.treating), []).append(index)
        readings = [reading_of(jobs[members[0]], self.boundary, self.treating) for members in wanted.values()]
        members = list(wanted.values())
        reader = self._reader()
        waiting: dict[Hashable, list[Row]] = {}
        try:
            for done in reader.read(readings):
                for read in done:
                    held = read.state.nbytes
                    for index in members[read.reading]:
                        job = jobs[index]
                        kind = None if job.answering is None else self.treating.together(job.answering)
                        row = Row(index, read.state, held, read.logits, job.tokens[-1], job.answering, job.spans)
                        waiting.setdefault(kind, []).append(row)
                yield from self._answer(waiting, jobs, everything=False)
            yield from self._answer(waiting, jobs, everything=True)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"the memory of {self.lens.device} is not enough for this sweep; give a smaller --memory"
            ) from error

    def _answer(
        self, waiting: dict[Hashable, list[Row]], jobs: Sequence[Job], everything: bool
    ) -> Iterator[list[Answered]]:
        """Answer the rows that fill batches, or all of them; rows of like length together."""
        held = {id(row.state): row.held for rows in waiting.values() for row in rows}
        crowded = sum(held.values()) > self.budget.waiting
        for kind, rows in waiting.items():
            longest = max((len(jobs[row.job].tokens) for row in rows), default=0) + self.max_new_tokens
            size = self.budget.answering_rows(longest, kind is not None)
            if not everything and len(rows) < size and not crowded:
                continue
            rows.sort(key=lambda row: len(jobs[row.job].tokens))
            full = len(rows) if everything or crowded else len(rows) - len(rows) % size
            for start in range(0, full, size):
                batch = rows[start : start + size]
                said = self._say(batch)
                yield [Answered(row.job, one) for row, one in zip(batch, said, strict=True)]
            del rows[:full]

    def _reader(self) -> Reader:
        """What reads the prompts, and counts it in the tally."""
        return Reader(self.lens, self.treating, self.budget, self.tally)

    def _say(self, batch: Sequence[Row]) -> list[Answer]:
        """What the rows of a batch say."""
        return answer(
            self.lens.network,
            batch,
            self.treating,
            self.boundary,
            self.max_new_tokens,
            tokenizer=self.lens.tokenizer,
            capture=self.capture,
        )
