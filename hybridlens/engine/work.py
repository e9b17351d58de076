"""What the engine is asked to do, as values: jobs, and how a treatment becomes edits.

A `Job` is a prompt, what is done to it while it is read and while the model answers, and where its needle
stands. What a treatment is, the engine does not know: an analysis says so with a `Treating`, which turns the
treatments of a batch's rows into `Edit`s.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from hybridlens.decoding import Boundary
from hybridlens.hooks import Edit, Phase

Spans: TypeAlias = tuple[tuple[int, int], ...]
"""Half-open ranges of token positions."""


class Job(NamedTuple):
    """One answer that is wanted."""

    tokens: tuple[int, ...]
    """The prompt."""
    reading: Hashable
    """Treatment while the prompt is read; None for the untouched model."""
    answering: Hashable
    """Treatment while the model answers; None likewise."""
    spans: Spans = ()
    """The positions that treatments may single out."""


class Answer(NamedTuple):
    """What a job gave."""

    text: str
    tokens: tuple[int, ...]
    """New tokens, the end-of-text token included."""
    margin: float
    """Smallest gap between the two best logits over the new tokens; a near tie can fall either way."""


@runtime_checkable
class Treating(Protocol):
    """How the treatments of jobs act on rows."""

    def edits(self, treatments: Sequence[Hashable], spans: Sequence[Spans], phase: Phase) -> Sequence[Edit]:
        """The edits of a batch whose row i is under ``treatments[i]`` (None: untouched) with ``spans[i]``."""
        ...

    def together(self, treatment: Hashable) -> Hashable:
        """Rows may share a batch when this is equal for them."""
        ...

    def causal(self, treatment: Hashable) -> bool:
        """Whether what a token gives under it depends on earlier tokens only, so that beginnings can be shared."""
        ...

    def places(self, treatment: Hashable) -> bool:
        """Whether it looks at a job's spans."""
        ...


class Reading(NamedTuple):
    """What has to be read before something can be answered."""

    tokens: tuple[int, ...]
    treatment: Hashable
    spans: Spans


def reading_of(job: Job, boundary: Boundary, treating: Treating) -> Reading:
    """What a job reads before decode rules begin; equal for jobs that can share it."""
    tokens = job.tokens[:-1] if boundary == "last_prompt_token" else job.tokens
    marked = job.reading is not None and treating.places(job.reading)
    return Reading(tokens, job.reading, job.spans if marked else ())


def symbols(reading: Reading) -> tuple[int, ...]:
    """What a prefix tree compares: each token, and whether it is singled out."""
    marked = {position for start, stop in reading.spans for position in range(start, stop)}
    return tuple(2 * token + (position in marked) for position, token in enumerate(reading.tokens))
