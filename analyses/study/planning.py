"""What a study would take on a machine, before any weight is there: `hybridlens plan`.

The cells, prompts and sweeps are those that a run makes of the same options, by the same code; the engine rehearses
each sweep (`hybridlens.engine.rehearsal`), and what it would read and write is priced (`hybridlens.counting`). Only a
configuration is needed. With the model's tokenizer the grid is the run's own. Without it prompts are made with an
embedded model's: their lengths are the same, and what they share is nearly so.

How it fails: what a run refuses is refused here, in the same words. Hours are an estimate with the assumptions of
`hybridlens.counting.machines`; loading the model, making prompts and writing results are not in them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from analyses.experiment.options.planning import PlanConfig
from analyses.heads.answering import Treated, portions_of
from analyses.study.experiments import Study, plan
from analyses.study.running import StudyRun
from hybridlens import tiny
from hybridlens.checkpoint_files import CheckpointFiles
from hybridlens.counting import SPARE, Expense, Machine, Prices, machine_of, work_of
from hybridlens.display import Displayed, Table, count, many, size
from hybridlens.engine import Rehearsal, Tally, costs_of
from hybridlens.errors import CheckpointError
from hybridlens.loading import checkpoint, read_tokenizer, resolve_dtype
from hybridlens.model import HybridLens

PACKAGED = Path(__file__).parent / "paper_models"
"""Configurations of the paper's three models, by hub id."""

STANDING_IN = "tiny-recurrentgemma"
"""The embedded model whose tokenizer makes prompts where the model's own is not at hand."""

TOGETHER = "together"
"""The row of all experiments in one study, whose common cells are answered once."""


@dataclass(frozen=True)
class Planned(Displayed):
    """What some experiments take.

    Attributes:
        experiment: its name; "together" for all in one study.
        cells: how many.
        answers: distinct ones; cells that come to the same are answered once.
        prompts: distinct ones.
        tokens: of the prompts of all answers, which reading each alone would read.
        tally: what reading comes to.
        rows: answers that a batch has at most.
        batches: of answers.
        expense: tokens read and, at most, written; operations, bytes and seconds.
        portions: seconds of each part that one process makes whole.
    """

    experiment: str
    cells: int
    answers: int
    prompts: int
    tokens: int
    tally: Tally
    rows: int
    batches: int
    expense: Expense
    portions: tuple[float, ...]

    @property
    def hours(self) -> float:
        """Of one process."""
        return self.expense.seconds / 3600

    def hours_of(self, jobs: int) -> float:
        """Of the longest of several jobs, each portion going to whoever has least, the largest first."""
        loads = [0.0] * jobs
        for seconds in sorted(self.portions, reverse=True):
            loads[loads.index(min(loads))] += seconds
        return max(loads) / 3600


@dataclass(frozen=True)
class StudyPlan(Displayed):
    """What a study takes on a machine.

    Attributes:
        model: as it was named.
        dtype: of its weights.
        machine: what it runs on.
        weights: bytes.
        memory: bytes that may be held beside them, `--memory`.
        jobs: that share the work; None for one process.
        parts: a row for each experiment by itself, and one for all together where there are several.
        notes: what was chosen, left out or assumed, one sentence each.
    """

    model: str
    dtype: str
    machine: Machine
    weights: int
    memory: int
    jobs: int | None
    parts: tuple[Planned, ...]
    notes: tuple[str, ...]

    @property
    def whole(self) -> Planned:
        """Of the whole study."""
        return self.parts[-1]

    @property
    def gpus(self) -> int | None:
        """How many devices hold weights, budget and what a runtime needs; None where their memory is not known."""
        held = self.machine.memory
        return None if held is None else -(-(self.weights + self.memory) // (held - SPARE))

    def summary(self) -> str:
        """Model, machine, cells and hours."""
        cells = many(self.whole.cells, "cell")
        return f"{self.model} on {self.machine.name}: {cells}, about {_three(self.whole.hours)} hours"

    def table(self) -> Table:
        """A row for each experiment, and for all."""
        columns = {
            "experiment": "",
            "cells": "",
            "answers": "cells that come to the same are answered once",
            "tokens of prompts": "what reading each answer's prompt alone would read",
            "tokens read": "every shared beginning once",
            "tokens written": "at most: answers that end sooner have fewer",
            "answers a batch": "at most",
            "Tflop": "floating-point operations, 10¹²",
            "TB moved": "weights and states, 10¹² bytes",
            "hours": "of one process",
        }
        rows: list[tuple[str | int | float, ...]] = [
            (
                one.experiment,
                one.cells,
                one.answers,
                one.tokens,
                one.expense.read,
                one.expense.written,
                one.rows,
                _three(one.expense.operations / 1e12),
                _three(one.expense.moved / 1e12),
                _three(one.hours),
            )
            for one in self.parts
        ]
        if self.jobs is not None:
            columns["hours a job"] = f"of the longest of {many(self.jobs, 'job')}"
            rows = [(*row, _three(one.hours_of(self.jobs))) for row, one in zip(rows, self.parts, strict=True)]
        return Table(tuple(columns), rows, {name: meaning for name, meaning in columns.items() if meaning})

    def lines(self) -> list[str]:
        """What stands around the table in a terminal."""
        gpus = "" if self.gpus is None else f"; {many(self.gpus, 'device')} of {size(self.machine.memory or 0)}"
        return [
            f"{self.model}, {self.dtype}, on {self.machine.name}: weights {size(self.weights)}, beside them at most "
            f"{size(self.memory)} (--memory){gpus}",
            f"The work has {many(len(self.whole.portions), 'portion')}, which jobs can share.",
            *self.notes,
        ]


def study_plan(config: PlanConfig, dtype: str = "float32", lens: HybridLens | None = None) -> StudyPlan:
    """What a study takes.

    Args:
        config: the study's options, with the machine.
        dtype: of the weights; of the lens where there is one.
        lens: the model, with a tokenizer; its weights may be without memory. None for what the options name.

    Raises:
        InputError: what a run of the options is refused for.
        UnknownNameError: a model, experiment, dtype or machine that does not exist.
        CheckpointError: the configuration cannot be had or read.
    """
    machine, notes = machine_of(config.gpu), list[str]()
    if lens is None:
        lens = planned_lens(config, dtype, notes)
    kind = str(lens.dtype).removeprefix("torch.")
    StudyRun.check(config, lens.cfg)
    StudyRun.check_memory(config, lens.cfg, kind)
    prices = Prices(work_of(lens.network), costs_of(lens.cfg, lens.dtype), lens.dtype, machine)
    study = plan(lens, config)
    parts = list[Planned]()
    if len(study.experiments) > 1:
        for name in study.experiments:
            alone = config.but(experiment=(name,))
            parts.append(_planned(lens, plan(lens, alone), config, prices, name))
    name = study.experiments[0] if len(study.experiments) == 1 else TOGETHER
    parts.append(_planned(lens, study, config, prices, name))
    weights = prices.work.parameters * lens.dtype.itemsize
    notes += [*study.notes, *assumed(machine)]
    return StudyPlan(config.model, kind, machine, weights, config.memory, config.jobs, tuple(parts), tuple(notes))


def _planned(lens: HybridLens, study: Study, config: PlanConfig, prices: Prices, name: str) -> Planned:
    """What the cells of a study take."""
    limits = (config.max_new_tokens, config.memory, config.batch_size)
    tally, expense, portions = Tally(), Expense(), list[float]()
    answers, tokens, rows, batches = 0, 0, 0, 0
    for portion in portions_of(lens, study.cells, *limits):
        sweep = Rehearsal(lens, Treated(lens), portion[0].boundary, *limits)
        sweep.rehearse([piece.job for piece in portion])
        cost = prices.all(sweep.passes, sweep.batches)
        tally, expense = tally + sweep.tally, expense.plus(cost)
        portions.append(cost.seconds)
        answers += len(portion)
        tokens += sum(len(piece.job.tokens) for piece in portion)
        rows = max(rows, *(len(batch.lengths) for batch in sweep.batches))
        batches += len(sweep.batches)
    prompts = len({prompt.tokens for prompt in study.cells.values()})
    return Planned(name, len(study.cells), answers, prompts, tokens, tally, rows, batches, expense, tuple(portions))


def planned_lens(config: PlanConfig, dtype: str, notes: list[str]) -> HybridLens:
    """A lens without weights over what the options name, with a tokenizer; what had to be put in place is noted.

    Raises:
        UnknownNameError, CheckpointError: see `study_plan`.
    """
    from analyses.experiment.checkpoints import meta_lens

    kind = resolve_dtype(dtype)
    files = _files(config, notes)
    lens = meta_lens(files)
    lens.hf_model.to(kind)
    lens.tokenizer = _tokenizer(files, notes)
    return lens


def _files(config: PlanConfig, notes: list[str]) -> CheckpointFiles:
    """The files of what the options name; the packaged configuration where the hub does not give one of the paper's."""
    own = PACKAGED / config.model
    try:
        return checkpoint(config.model, config.revision)
    except CheckpointError as error:
        if config.revision is not None or not (own / "config.json").is_file() or ".." in own.parts:
            raise
        notes.append(f"Sizes of {config.model} are those that come with hybridlens: {error}.")
        return checkpoint(own)


def _tokenizer(files: CheckpointFiles, notes: list[str]) -> object:
    """The checkpoint's tokenizer, or one that stands in for it."""
    try:
        files.fetch_beside()
        found = read_tokenizer(files)
    except CheckpointError as error:
        found, why = None, str(error)
    else:
        why = "it has no tokenizer"
    if found is not None:
        return found
    notes.append(
        f"Prompts are made with the tokenizer of {STANDING_IN}, so that what they share is an estimate: {why}."
    )
    standing_in = copy.deepcopy(read_tokenizer(str(tiny.path(STANDING_IN))))
    standing_in.model_max_length = 10**30  # as transformers writes no limit
    return standing_in


def assumed(machine: Machine) -> tuple[str, ...]:
    """What an estimate of hours on a machine stands on, in words."""
    return (
        "Every answer is taken to be as long as it may be; those that end sooner take less.",
        f"Hours assume {100 * machine.share:.0f} % of {machine.name}'s peak while reading, at least "
        f"{1000 * machine.layer_seconds:g} ms a layer and {1000 * machine.mixture_seconds:g} ms more a mixture of "
        "experts in each pass, and one device's speed however many hold the weights.",
    )


def text_of(found: StudyPlan) -> str:
    """A plan as text for a terminal."""
    from analyses.experiment.text import columns

    table = found.table()
    rows = [list(table.columns), *[[_cell(value) for value in row] for row in table.rows]]
    return "\n".join([columns(rows), *found.lines()])


def _cell(value: object) -> str:
    return count(value) if isinstance(value, int) else f"{value:,.0f}" if _large(value) else str(value)


def _large(value: object) -> bool:
    return isinstance(value, float) and value >= 100


def _three(value: float) -> float:
    """A number in three digits."""
    return float(f"{value:.3g}")
