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
from functools import partial
from types import MappingProxyType
from typing import cast

from analyses.experiment.options.needles import AnswerOptions
from analyses.experiment.parts import Part, Tell
from analyses.experiment.room import Room, room
from analyses.heads.portions import Work, portions
from analyses.heads.ranking import HeadRanking, check_name
from analyses.heads.sparsification import check_ranking
from analyses.heads.treatment import Treatment, treat
from hybridlens import machine, niah
from hybridlens.decoding import Boundary
from hybridlens.effort import Ahead, foresee, watched
from hybridlens.engine import Answer, Budget, Job, Rehearsal, Spans, Sweep, Tally, costs_of
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


class Treated:
    """`Treatment`s as the engine takes them."""

    def __init__(self, lens: HybridLens) -> None:
        self.lens = lens

    def edits(self, treatments: Sequence[Hashable], spans: Sequence[Spans], phase: Phase) -> Sequence[Edit]:
        """The edits of a batch; rows without a treatment are left as they are."""
        given = cast(Sequence[Treatment | None], treatments)
        first = next((one for one in given if one is not None), None)
        if first is None:
            return ()
        rest = Treatment(self.lens.cfg.n_heads, "keep", first.scope, first.semantics)
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


def treatments(
    key: CellKey, n_heads: int, rankings: Rankings = NO_RANKINGS
) -> tuple[Treatment | None, Treatment | None]:
    """What a cell does to the model while it reads and while it answers; None where nothing.

    Equal choices of heads have one form, whichever ranking and scope they are of.

    Args:
        key: the cell's.
        n_heads: of a layer.
        rankings: the static rankings that cells name.

    Raises:
        UnknownNameError: no ranking of that name was given, or no such scope exists.
        InputError: the cell keeps more heads than there are.
    """
    k, scope, heads = key.k, key.scope, None
    if key.ranking:
        check_name(key.ranking, rankings, "was not given")
        ranking = rankings[key.ranking]
        best = ranking.best(key.k, key.scope)
        if best:  # of no head, a choice is what k = 0 is
            k, scope = n_heads, "layer"
            heads = tuple(sorted(best)) if len(best) < ranking.scores.numel() else None
    reads = key.phase == "prefill"
    reading = Treatment(k if reads else n_heads, key.reading, scope, key.semantics, heads if reads else None)
    answering = Treatment(k, key.answering, scope, key.semantics, heads)
    return (
        None if reading.untouched(n_heads) else reading,
        None if answering.untouched(n_heads) else answering,
    )


def work_of(todo: Sequence[CellKey], grid: Grid, n_heads: int, rankings: Rankings = NO_RANKINGS) -> list[Work]:
    """What has to be answered for `todo`: one job for all cells that come to the same.

    Errors as `treatments`.
    """
    keys: dict[tuple[Job, Boundary], list[CellKey]] = {}
    for key in todo:
        prompt = grid[key]
        reading, answering = treatments(key, n_heads, rankings)
        marked = any(one is not None and one.mode != "keep" for one in (reading, answering))
        job = Job(prompt.tokens, reading, answering, prompt.needle_spans if marked else ())
        keys.setdefault((job, cast(Boundary, key.boundary)), []).append(key)
    return [Work(job, boundary, tuple(found)) for (job, boundary), found in keys.items()]


def held(lens: HybridLens, memory: int | None) -> int:
    """Bytes that may be held beside the weights: what was said, else a share of what is free."""
    return machine.budget(machine.devices_of(lens.hf_model)) if memory is None else memory


def room_of(lens: HybridLens, store: Run, grid: Grid, options: AnswerOptions) -> Room:
    """What a run's portions are cut by, and what is here; errors as `answer_cells` and `analyses.experiment.room`."""
    longest = max((len(prompt.tokens) for prompt in grid.values()), default=0) + options.max_new_tokens
    costs = costs_of(lens.cfg, lens.dtype)
    on = machine.devices_of(lens.hf_model)
    return room(store.folder, options.memory, on, lambda found: Budget(costs, found).check(longest))


def portions_of(
    lens: HybridLens,
    grid: Grid,
    max_new_tokens: int,
    memory: int | None = None,
    rows: int | None = None,
    rankings: Rankings = NO_RANKINGS,
) -> list[list[Work]]:
    """The portions of a whole grid, see `analyses.heads.portions`; arguments and errors as `answer_cells`."""
    for ranking in rankings.values():
        check_ranking(lens, ranking)
    longest = max((len(prompt.tokens) for prompt in grid.values()), default=0) + max_new_tokens
    batch = Budget(costs_of(lens.cfg, lens.dtype), held(lens, memory), rows).answering_rows(longest)
    return portions(work_of(list(grid), grid, lens.cfg.n_heads, rankings), batch)


def answer_cells(
    lens: HybridLens,
    grid: Grid,
    todo: Sequence[CellKey],
    rubrics: Mapping[tuple[str, str], niah.Rubric],
    max_new_tokens: int,
    memory: int | None = None,
    rows: int | None = None,
    tally: Callable[[Tally], None] = lambda tally: None,
    rankings: Rankings = NO_RANKINGS,
    moved: Callable[[int], None] = lambda cells: None,
    here: int | None = None,
) -> Iterator[list[Cell]]:
    """Answer and score cells, a portion at a time, each in the order of the grid.

    Args:
        lens: the model, with a tokenizer.
        grid: the prompts of all cells, whose portions do not depend on what is wanted of them.
        todo: the cells wanted.
        rubrics: by the needle's name and semantics.
        max_new_tokens: at most so many in an answer.
        memory: bytes that may be held beside the weights; None for a share of what is free.
        rows: most that answer together; None for as many as fit. Neither changes a cell, but for rounding.
        tally: given what reading cost, at the end of each sweep.
        rankings: what the static rankings that cells name stand for.
        moved: told after each batch how many more cells are answered.
        here: bytes that batches may hold where that is less than `memory`, which portions are cut by.

    Raises:
        InputError: a budget too small, prompts that do not fit the model, or a ranking of another model's heads.
        UnknownNameError: a cell names a ranking that is not given.
    """
    memory = held(lens, memory)
    held_here = memory if here is None else here
    wanted, place = set(todo), {key: index for index, key in enumerate(grid)}
    left: list[list[Work]] = []
    for portion in portions_of(lens, grid, max_new_tokens, memory, rows, rankings):
        mine = [piece._replace(keys=tuple(key for key in piece.keys if key in wanted)) for piece in portion]
        left.append([piece for piece in mine if piece.keys])
    if watched():
        foresee(_ahead(lens, left, max_new_tokens, held_here, rows))
    for mine in left:
        if mine:
            cells = _answered(lens, grid, mine, rubrics, max_new_tokens, held_here, rows, tally, moved)
            yield sorted(cells, key=lambda cell: place[cell.key])


def _ahead(
    lens: HybridLens, left: Sequence[Sequence[Work]], max_new_tokens: int, memory: int, rows: int | None
) -> list[Ahead]:
    """The cells of each portion, and the work that they take."""
    ahead: list[Ahead] = []
    for mine in left:
        if mine:
            rehearsal = Rehearsal(lens, Treated(lens), mine[0].boundary, max_new_tokens, memory, rows)
            rehearsal.rehearse([piece.job for piece in mine])
            ahead.append(Ahead(sum(len(piece.keys) for piece in mine), rehearsal.work))
    return ahead


def _answered(
    lens: HybridLens,
    grid: Grid,
    portion: Sequence[Work],
    rubrics: Mapping[tuple[str, str], niah.Rubric],
    max_new_tokens: int,
    memory: int,
    rows: int | None,
    tally: Callable[[Tally], None],
    moved: Callable[[int], None],
) -> list[Cell]:
    """The cells of one portion, in the order in which they are known."""
    sweep = Sweep(lens, Treated(lens), portion[0].boundary, max_new_tokens, memory, rows)
    cells: list[Cell] = []
    started = time.perf_counter()
    for batch in sweep.run([piece.job for piece in portion]):
        pairs = [(key, answered.answer) for answered in batch for key in portion[answered.job].keys]
        seconds = (time.perf_counter() - started) / len(pairs)
        cells += [_cell(key, grid[key], answer, rubrics[key.needle, key.semantics], seconds) for key, answer in pairs]
        moved(len(pairs))
        started = time.perf_counter()
    tally(sweep.tally)
    return cells


def answer_all(
    lens: HybridLens,
    store: Run,
    grid: Grid,
    rubrics: Mapping[tuple[str, str], niah.Rubric],
    options: AnswerOptions,
    progress: Callable[[int, int], None],
    tally: Callable[[Tally], None] = lambda tally: None,
    rankings: Rankings = NO_RANKINGS,
) -> list[Cell]:
    """Answer the cells of a grid that a folder lacks, a portion at a time, and write their table; returns all.

    Errors as `answer_cells` and `Run`.
    """
    if store.todo:
        memory = room_of(lens, store, grid, options)
        answer = partial(_answer_some, lens, store, grid, rubrics, options, memory, progress, tally, rankings)
        if store.beside:  # what shards have answered is taken over in the order in which one process answers
            for keys in _keys_of(lens, grid, options, memory, rankings):
                store.take_over(keys)
                if not store.done.issuperset(keys):
                    answer([key for key in keys if key not in store.done])
        else:
            answer(store.todo)
    else:
        progress(len(grid), len(grid))
    store.write()
    return store.cells


def answering_parts(
    lens: HybridLens,
    store: Run,
    grid: Grid,
    rubrics: Mapping[tuple[str, str], niah.Rubric],
    options: AnswerOptions,
    rankings: Rankings = NO_RANKINGS,
) -> list[Part]:
    """A part for each portion of which cells are neither in this folder's run nor beside it; errors as `answer_all`."""

    def make(keys: Sequence[CellKey], tell: Tell) -> None:
        lacking = [key for key in keys if key not in store.done]
        done = len(keys) - len(lacking)

        def moved(cells: int) -> None:
            nonlocal done
            done += cells
            tell(done)

        limits = (options.max_new_tokens, memory.settled, options.batch_size)
        quiet = (lambda _: None, rankings, moved, memory.here)
        for cells in answer_cells(lens, grid, lacking, rubrics, *limits, *quiet):
            store.add(cells)

    made: list[Part] = []
    memory = room_of(lens, store, grid, options)
    for index, keys in enumerate(_keys_of(lens, grid, options, memory, rankings)):
        wanted = [key for key in keys if key not in store.beside]
        if wanted:
            tokens = sum(len(grid[key].tokens) for key in wanted)
            made.append(Part(f"portion {index}", len(wanted), tokens, partial(make, wanted)))
    return made


def _keys_of(
    lens: HybridLens, grid: Grid, options: AnswerOptions, memory: Room, rankings: Rankings
) -> list[list[CellKey]]:
    """The cells of each portion, in the grid's order."""
    place = {key: index for index, key in enumerate(grid)}
    limits = (options.max_new_tokens, memory.settled, options.batch_size)
    return [
        sorted((key for piece in portion for key in piece.keys), key=place.__getitem__)
        for portion in portions_of(lens, grid, *limits, rankings)
    ]


def _answer_some(
    lens: HybridLens,
    store: Run,
    grid: Grid,
    rubrics: Mapping[tuple[str, str], niah.Rubric],
    options: AnswerOptions,
    memory: Room,
    progress: Callable[[int, int], None],
    tally: Callable[[Tally], None],
    rankings: Rankings,
    todo: Sequence[CellKey],
) -> None:
    """Answer some cells of a grid and store them."""
    done = len(store.done & grid.keys())

    def moved(cells: int) -> None:
        nonlocal done
        done += cells
        progress(done, len(grid))

    moved(0)
    limits = (options.max_new_tokens, memory.settled, options.batch_size)
    for cells in answer_cells(lens, grid, todo, rubrics, *limits, tally, rankings, moved, memory.here):
        store.add(cells)


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
