"""From the cells of an experiment to their answers: which treatment a cell stands for, and its score.

A cell's key says all of what is done: the k and the scope of the heads kept and the name of the ranking that chose
them, the manipulation of attention weights while reading and while answering, the boundary between the two. Cells
that come to the same thing (k = n_heads in either version, say, or rankings that agree on the best n) are answered
once. The engine does the work.

How it fails: see `hybridlens.engine`; a cell whose answer hung on a near tie says so in its `margin`. What a ranking's
name stands for is for the caller to keep equal from one session to the next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, cast

from analyses.experiment.options.needles import PromptOptions
from analyses.heads.ranking import HeadRanking
from analyses.heads.sparsification import Heads, check_ranking
from analyses.heads.treatment import Treatment, treat
from hybridlens import niah
from hybridlens.decoding import Boundary
from hybridlens.engine import Answer, Job, Spans, Sweep, Tally
from hybridlens.engine.budget import DEFAULT
from hybridlens.errors import UnknownNameError, closest
from hybridlens.hooks import Edit, Phase
from hybridlens.model import HybridLens
from hybridlens.results import Cell, CellKey, Run

Grid = Mapping[CellKey, niah.Prompt]
"""Every cell of a run and its prompt, in the order they are run."""

Rankings = Mapping[str, HeadRanking]
"""Static rankings by the names that cells give them."""

MARGIN_STEPS = 10_000
"""Of a margin's unit: what rounding leaves is not stored, so that cells do not depend on how batches fell."""

NO_RANKINGS: Rankings = MappingProxyType({})


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
        rest = treated[0]._replace(k=self.lens.cfg.n_heads, mode="keep", heads=None)
        return treat(self.lens, [rest if one is None else one for one in given], spans, phase)

    def together(self, treatment: Hashable) -> Hashable:
        """Rows of one scope and semantics can share a batch; static heads, which need no scores, go by themselves."""
        one = cast(Treatment, treatment)
        return (one.scope, one.semantics, one.heads is None)

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


class Keeping:
    """Which heads static rankings keep, each choice worked out once.

    Args:
        rankings: by the names that cells give them, of the model's heads.
    """

    def __init__(self, rankings: Rankings) -> None:
        self.rankings = rankings
        self._found: dict[tuple[str, int, str], Heads | None] = {}

    def heads(self, name: str, n: int, scope: str) -> Heads | None:
        """The best `n` heads of a ranking, of the model or of each layer, sorted; None where these are all.

        Raises:
            UnknownNameError: no ranking of that name was given, or no such scope exists.
            InputError: `n` is more than there are.
        """
        if (name, n, scope) not in self._found:
            if name not in self.rankings:
                known = ", ".join(map(repr, self.rankings)) or "none"
                raise UnknownNameError(
                    f"ranking {name!r} was not given{closest(name, self.rankings)}; there is {known}"
                )
            ranking = self.rankings[name]
            kept = ranking.kept(n, scope)
            pairs = cast(list[list[int]], kept.nonzero().tolist())
            chosen = tuple(sorted((ranking.layers[place], head) for place, head in pairs))
            self._found[name, n, scope] = None if bool(kept.all()) else chosen
        return self._found[name, n, scope]


def treatments(key: CellKey, n_heads: int, keeping: Keeping | None = None) -> tuple[Treatment | None, Treatment | None]:
    """What a cell does to the model while it reads and while it answers; None where nothing.

    Args:
        key: the cell's.
        n_heads: of a layer.
        keeping: the static rankings; None where no cell names one.

    Raises:
        UnknownNameError, InputError: see `Keeping.heads`.
    """
    if key.ranking:
        heads = (keeping or Keeping({})).heads(key.ranking, key.k, key.scope)
        chosen = _static(key, heads, n_heads)
    else:
        chosen = Treatment(key.k, "keep", key.scope, key.semantics)
    unchosen = Treatment(n_heads, "keep", chosen.scope, key.semantics)
    reading = (chosen if key.phase == "prefill" else unchosen)._replace(mode=key.reading)
    answering = chosen._replace(mode=key.answering)
    return (
        None if reading.untouched(n_heads) else reading,
        None if answering.untouched(n_heads) else answering,
    )


def _static(key: CellKey, heads: Heads | None, n_heads: int) -> Treatment:
    """A static choice of heads in the one form that equal choices share, whichever ranking and scope they are of."""
    if heads == ():  # what k = 0 does as well
        return Treatment(0, "keep", key.scope, key.semantics)
    return Treatment(n_heads, "keep", "layer", key.semantics, heads)


def work_of(todo: Sequence[CellKey], grid: Grid, n_heads: int, rankings: Rankings = NO_RANKINGS) -> list[Work]:
    """What has to be answered for `todo`: one job for all cells that come to the same.

    Raises:
        UnknownNameError, InputError: see `Keeping.heads`.
    """
    keys: dict[tuple[Job, Boundary], list[CellKey]] = {}
    keeping = Keeping(rankings)
    for key in todo:
        prompt = grid[key]
        reading, answering = treatments(key, n_heads, keeping)
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
    rankings: Rankings = NO_RANKINGS,
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
        rankings: what the static rankings that cells name stand for.

    Raises:
        InputError: a budget too small, prompts that do not fit the model, or a ranking of another model's heads.
        UnknownNameError: a cell names a ranking that is not given.
    """
    for ranking in rankings.values():
        check_ranking(lens, ranking)
    work = work_of(todo, grid, lens.cfg.n_heads, rankings)
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


def answer_all(
    lens: HybridLens,
    store: Run,
    grid: Grid,
    rubrics: Mapping[tuple[str, str], niah.Rubric],
    options: PromptOptions,
    progress: Callable[[int, int], None],
    tally: Callable[[Tally], None] = lambda tally: None,
    rankings: Rankings = NO_RANKINGS,
) -> list[Cell]:
    """Answer the cells of a grid that a folder lacks, a batch at a time, and write their table; returns all.

    Errors as `answer_cells` and `Run`.
    """
    settings = Settings(options.memory, options.batch_size)
    progress(len(store.done & grid.keys()), len(grid))
    new = options.max_new_tokens
    for cells in answer_cells(lens, grid, store.todo, rubrics, new, settings, tally, rankings):
        store.add(cells)
        progress(len(store.done & grid.keys()), len(grid))
    store.write()
    return store.cells


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
        margin=math.floor(answer.margin * MARGIN_STEPS) / MARGIN_STEPS,
        tokens=len(answer.tokens),
    )
