"""How much work jobs will be, before any is done: tokens to read along prefix trees, and steps of answers.

In the unit of `hybridlens.effort`. How it fails: answers that end early, and prompts that are read again for want of
memory, are not foreseen.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from hybridlens.decoding import Boundary
from hybridlens.effort import cost
from hybridlens.engine.budget import Budget
from hybridlens.engine.tree import distinct_prefixes
from hybridlens.engine.work import Job, Reading, Treating, reading_of

Prompts = frozenset[tuple[int, ...]]


class Foreseeing:
    """What jobs will take.

    Args:
        treating: how their treatments act.
        budget: what rows are answered together under.
        boundary: which rules read the last token of a prompt.
        max_new_tokens: of an answer.
    """

    def __init__(self, treating: Treating, budget: Budget, boundary: Boundary, max_new_tokens: int) -> None:
        self.treating, self.budget = treating, budget
        self.boundary: Boundary = boundary
        self.max_new_tokens = max_new_tokens
        self._known: dict[Prompts, int] = {}
        """Distinct tokens of prompts, which many treatments read."""

    def work(self, jobs: Sequence[Job]) -> float:
        """Of jobs that are run together."""
        readings = dict.fromkeys(reading_of(job, self.boundary, self.treating) for job in jobs)
        together: dict[Hashable, list[Reading]] = {}
        alone = 0.0
        for reading in readings:
            if reading.treatment is None or self.treating.causal(reading.treatment):
                together.setdefault(reading.treatment, []).append(reading)
            else:
                alone += len(reading.tokens)
        read = alone + sum(self._distinct(frozenset(one.tokens for one in group)) for group in together.values())
        kinds: dict[Hashable, list[int]] = {}
        for job in jobs:
            kind = None if job.answering is None else self.treating.together(job.answering)
            kinds.setdefault(kind, []).append(len(job.tokens))
        return read + sum(self._answering(lengths, kind is not None) for kind, lengths in kinds.items())

    def _distinct(self, prompts: Prompts) -> int:
        if prompts not in self._known:
            self._known[prompts] = distinct_prefixes(sorted(prompts))
        return self._known[prompts]

    def _answering(self, lengths: Sequence[int], ranked: bool) -> float:
        """The steps of answers that share batches."""
        rows = self.budget.answering_rows(max(lengths) + self.max_new_tokens, ranked)
        batches = [min(rows, len(lengths) - start) for start in range(0, len(lengths), rows)]
        return self.max_new_tokens * sum(cost(float(batch)) for batch in batches)
