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
from pathlib import Path

from analyses.experiment.options.planning import PlanConfig
from analyses.heads.answering import Treated, portions_of
from analyses.study.experiments import Study, plan
from analyses.study.plan_types import Planned, StudyPlan
from analyses.study.running import StudyRun
from hybridlens import tiny
from hybridlens.checkpoint_files import CheckpointFiles
from hybridlens.counting import Expense, Machine, Prices, Shape, machine_of, work_of
from hybridlens.engine import Rehearsal, Tally, costs_of
from hybridlens.errors import CheckpointError
from hybridlens.loading import checkpoint, model_files, read_tokenizer, resolve_dtype
from hybridlens.machine import BESIDE, MODEST, SHARE, rounded
from hybridlens.model import HybridLens

PACKAGED = Path(__file__).parent / "paper_models"
"""Configurations of the paper's three models, by hub id."""

STANDING_IN = "tiny-recurrentgemma"
"""The embedded model whose tokenizer makes prompts where the model's own is not at hand."""

TOGETHER = "together"
"""The row of all experiments in one study, whose common cells are answered once."""


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
    weights = prices.work.parameters * lens.dtype.itemsize
    memory = _beside(weights, machine) if config.memory is None else config.memory
    config = config.but(memory=memory)
    study = plan(lens, config)
    parts = list[Planned]()
    if len(study.experiments) > 1:
        for name in study.experiments:
            alone = config.but(experiment=(name,))
            parts.append(_planned(lens, plan(lens, alone), config, prices, name))
    name = study.experiments[0] if len(study.experiments) == 1 else TOGETHER
    parts.append(_planned(lens, study, config, prices, name))
    notes += [*study.notes, *assumed(machine)]
    return StudyPlan(config.model, kind, machine, weights, memory, config.jobs, tuple(parts), tuple(notes))


def _beside(weights: int, machine: Machine) -> int:
    """Bytes that a run would take beside the weights where nothing is said (`hybridlens.machine.budget`)."""
    if machine.memory is None:
        return MODEST
    devices = -(-int(BESIDE * weights) // machine.memory)
    return rounded(int(SHARE * (machine.memory - weights / devices)))


def _planned(lens: HybridLens, study: Study, config: PlanConfig, prices: Prices, name: str) -> Planned:
    """What the cells of a study take."""
    limits = (config.max_new_tokens, config.memory, config.batch_size)
    tally, expense, portions, met = Tally(), Expense(), list[float](), set[Shape]()
    answers, tokens, rows, batches = 0, 0, 0, 0
    for portion in portions_of(lens, study.cells, *limits):
        sweep = Rehearsal(lens, Treated(lens), portion[0].boundary, *limits)
        sweep.rehearse([piece.job for piece in portion])
        cost = prices.all(sweep.passes, sweep.batches, met)
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
    from analyses.experiment.checkpoints import checkpoint_dtype, meta_lens

    files = _files(config, notes)
    kind = checkpoint_dtype(files) if dtype == "auto" else resolve_dtype(dtype)
    lens = meta_lens(files)
    lens.hf_model.to(kind)
    lens.tokenizer = _tokenizer(files, notes)
    return lens


def _files(config: PlanConfig, notes: list[str]) -> CheckpointFiles:
    """The files of what the options name; the packaged configuration where the hub does not give one of the paper's."""
    own = PACKAGED / config.model
    try:
        return model_files(checkpoint(config.model, config.revision))
    except CheckpointError as error:
        if config.revision is not None or own not in {path.parent for path in PACKAGED.rglob("config.json")}:
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
    each = machine.captured_seconds
    captured = "" if each is None else f" ({1000 * each:g} ms in captured decode steps)"
    return (
        "Every answer is taken to be as long as it may be; those that end sooner take less.",
        f"Hours assume {100 * machine.share:.0f} % of {machine.name}'s peak while reading, at least "
        f"{1000 * machine.layer_seconds:g} ms a layer{captured} and {1000 * machine.mixture_seconds:g} ms more a "
        f"mixture of experts in each pass, {1000 * machine.shape_seconds:g} ms more where a pass has a shape that none "
        "before it had, and one device's speed however many hold the weights.",
    )
