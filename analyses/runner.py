"""From the cells of an experiment to their answers: which treatment a cell stands for, and its score.

A cell's key says all of what is done: the k and the scope of the heads kept, the manipulation of attention
weights while reading and while answering, the boundary between the two. Cells that come to the same thing (k =
n_heads in either version, say) are answered once. The engine does the work.

How it fails: see `hybridlens.engine`; a cell whose answer hung on a near tie says so in its `margin`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

from analyses.treatment import Treatment, treat
from hybridlens import niah
from hybridlens.engine import Answer, Job, Spans, Sweep, Tally
from hybridlens.engine.budget import DEFAULT
from hybridlens.generation import Boundary
from hybridlens.hooks import Edit, Phase
from hybridlens.model import HybridLens
from hybridlens.results import Cell, CellKey

Grid = Mapping[CellKey, niah.Prompt]
"""Every cell of a run and its prompt, in the order they are run."""


class Settings(NamedTuple):
    """What changes how fast a run is, and none of its cells."""

    memory: int = DEFAULT
    """Bytes that may be held beside the weights."""
    rows: int | None = None
    """Most rows that answer together; None for as many as fit."""


class Treated:
    """`Treatment`s as the engine takes them."""

    def __init__(self, lens: HybridLens) -> None:
        self.lens = lens

    def edits(self, treatments: Sequence[Hashable], spans: Sequence[Spans], phase: Phase) -> Sequence[Edit]:
        """The edits of a batch; rows without a treatment are left as they are."""
        given = cast(Sequence[Treatment | None], treatments)
        treated = [one for one in given if one is not None]
        if not treated:
            return ()
        rest = treated[0]._replace(k=self.lens.cfg.n_heads, mode="keep")
        return treat(self.lens, [rest if one is None else one for one in given], spans, phase)

    def together(self, treatment: Hashable) -> Hashable:
        """Rows of one scope and semantics can share a batch."""
        one = cast(Treatment, treatment)
        return (one.scope, one.semantics)

    def causal(self, treatment: Hashable) -> bool:
        """Whether beginnings can be shared under it."""
        return cast(Treatment, treatment).causal

    def places(self, treatment: Hashable) -> bool:
        """Whether it looks at the needle."""
        return cast(Treatment, treatment).mode != "keep"


class Work(NamedTuple):
    """Cells that share one answer."""

    job: Job
    boundary: Boundary
    keys: tuple[CellKey, ...]


def treatments(key: CellKey, n_heads: int) -> tuple[Treatment | None, Treatment | None]:
    """What a cell does to the model while it reads and while it answers; None where nothing."""
    reading = Treatment(key.k if key.phase == "prefill" else n_heads, key.reading, key.scope, key.semantics)
    answering = Treatment(key.k, key.answering, key.scope, key.semantics)
    return (
        None if reading.untouched(n_heads) else reading,
        None if answering.untouched(n_heads) else answering,
    )


def work_of(todo: Sequence[CellKey], grid: Grid, n_heads: int) -> list[Work]:
    """What has to be answered for `todo`: one job for all cells that come to the same."""
    keys: dict[tuple[Job, Boundary], list[CellKey]] = {}
    for key in todo:
        prompt = grid[key]
        reading, answering = treatments(key, n_heads)
        marked = any(one is not None and one.mode != "keep" for one in (reading, answering))
        job = Job(prompt.tokens, reading, answering, prompt.needle_spans if marked else ())
        keys.setdefault((job, cast(Boundary, key.boundary)), []).append(key)
    return [Work(job, boundary, tuple(found)) for (job, boundary), found in keys.items()]


def answer_cells(
    lens: HybridLens,
    grid: Grid,
    todo: Sequence[CellKey],
    rubrics: Mapping[tuple[str, str], niah.Rubric],
    max_new_tokens: int,
    settings: Settings,
    tally: Callable[[Tally], None] = lambda tally: None,
) -> Iterator[list[Cell]]:
    """Answer and score cells, a batch at a time.

    Args:
        lens: the model, with a tokenizer.
        grid: the prompts of all cells.
        todo: the cells wanted.
        rubrics: by the needle's name and semantics.
        max_new_tokens: at most so many in an answer.
        settings: of the engine.
        tally: given what reading cost, at the end of each sweep.

    Raises:
        InputError: a budget too small, or prompts that do not fit the model.
    """
    work = work_of(todo, grid, lens.cfg.n_heads)
    boundaries: list[Boundary] = list(dict.fromkeys(piece.boundary for piece in work))
    for boundary in boundaries:
        mine = [piece for piece in work if piece.boundary == boundary]
        sweep = Sweep(lens, Treated(lens), boundary, max_new_tokens, settings.memory, settings.rows)
        started = time.perf_counter()
        for batch in sweep.run([piece.job for piece in mine]):
            pairs = [(key, answered.answer) for answered in batch for key in mine[answered.job].keys]
            seconds = (time.perf_counter() - started) / len(pairs)
            yield [_cell(key, grid[key], answer, rubrics[key.needle, key.semantics], seconds) for key, answer in pairs]
            started = time.perf_counter()
        tally(sweep.tally)


def _cell(key: CellKey, prompt: niah.Prompt, answer: Answer, rubric: niah.Rubric, seconds: float) -> Cell:
    start, end = prompt.needle_span or (None, None)
    return Cell(
        **key._asdict(),
        score=niah.score(answer.text, rubric),
        text=answer.text,
        needle_start=start,
        needle_end=end,
        seconds=seconds,
        prompt_hash=prompt.hash,
        margin=answer.margin,
        tokens=len(answer.tokens),
    )
