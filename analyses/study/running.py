"""A study: the paper's experiments over one model, answered by the engine into one folder, and what they say.

`run` answers every cell that the wanted experiments need and the folder lacks, runs the benchmarks, judges the
paper's claims and writes the report. Each experiment is also a function here (`fig2`, `table1`, …) that takes a
lens and returns its typed result, with or without a folder.

How it fails: whatever can be checked is checked before the folder is touched; a folder that holds a study with
other values is refused. A study that was killed goes on with the same command, and loses the batch in hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from analyses.benchmarks.config import BenchmarkConfig
from analyses.benchmarks.results import BenchmarkResult
from analyses.niah_report import model_facts
from analyses.runner import Settings, answer_cells
from analyses.study import views
from analyses.study.config import StudyConfig
from analyses.study.evidence import ModelFacts
from analyses.study.experiments import Study, plan, rubrics_of
from analyses.study.verdict import Verdict, verdicts
from hybridlens import niah
from hybridlens.engine import Tally
from hybridlens.engine.budget import DEFAULT
from hybridlens.model import HybridLens
from hybridlens.results import Cell, Manifest, Run, hash_json

Progress = Callable[[int, int], None]
BENCHMARKS = "benchmarks.json"


class StudyResult(NamedTuple):
    """A finished study."""

    folder: Path
    report: Path
    study: Study
    cells: list[Cell]
    benchmarks: BenchmarkResult | None
    verdicts: list[Verdict]
    damaged: tuple[str, ...]
    """One line for every stored cell that could not be trusted and was run again."""


def quiet(done: int, total: int) -> None:
    """Progress that nobody watches."""


def run(
    lens: HybridLens,
    config: StudyConfig,
    folder: Path,
    weights_hash: str,
    benchmarks: BenchmarkConfig | None = None,
    progress: Progress = quiet,
    benchmark_progress: Progress = quiet,
) -> StudyResult:
    """Run what `folder` does not hold yet, then write its report.

    Args:
        lens: the model, with a tokenizer.
        config: the study.
        folder: made when it does not exist; a study of the same model and values in it is gone on with.
        weights_hash: digest of the model's weights (`hybridlens.results.hash_weights`).
        benchmarks: lm-eval's tasks to run as well; None for none.
        progress: called with the cells done and the cells in all, first before any is run.
        benchmark_progress: the same for pairs of task and k.

    Raises:
        InputError: see `analyses.study.experiments.plan` and `analyses.benchmarks.run_benchmarks`.
        ResultsError: the folder holds something else, or cannot be written.
    """
    from analyses.study.report import write_study_report  # which loads what draws

    study = plan(lens, config) if config.experiments != () else nothing(lens, config)
    settings = Settings(DEFAULT if config.memory is None else config.memory, config.batch_size)
    manifest = make_manifest(lens, config, study, weights_hash)
    expected = {key: prompt.hash for key, prompt in study.cells.items()}
    notes = list(study.notes)

    def tally(cost: Tally) -> None:
        notes.append(cost_words(cost))

    with Run.open(folder, manifest, expected) as store:
        progress(len(store.done & study.cells.keys()), len(expected))
        rubrics = rubrics_of(config, expected)
        for cells in answer_cells(lens, study.cells, store.todo, rubrics, config.max_new_tokens, settings, tally):
            store.add(cells)
            progress(len(store.done & study.cells.keys()), len(expected))
        store.finish()
        result = None
        if benchmarks is not None:
            from analyses.benchmarks import run_benchmarks  # lm-eval takes seconds to import

            result = run_benchmarks(lens, benchmarks, folder / BENCHMARKS, weights_hash, benchmark_progress)
        rows = [] if result is None else list(result.rows)
        facts = ModelFacts(config.model, lens.cfg.family, lens.cfg.window, study.base)
        judged = verdicts(store.cells, rows, facts)
        report = write_study_report(folder, store.cells, store.record, study, rows, judged, notes)
        return StudyResult(folder, report, study, store.cells, result, judged, store.damaged)


def nothing(lens: HybridLens, config: StudyConfig) -> Study:
    """A study of benchmarks alone."""
    return Study({}, (), {}, views.Base(lens.cfg.n_heads, config.semantics, config.boundary), ())


def make_manifest(lens: HybridLens, config: StudyConfig, study: Study, weights_hash: str) -> Manifest:
    """What the study is. Experiments, lengths, k's and needles may be added later; what a name stands for may not."""
    arguments: dict[str, Any] = {
        "haystack": "built-in essays" if config.haystack is None else f"sha256 {config.haystack.hash[:16]}",
        "template": config.template,
        "max_new_tokens": config.max_new_tokens,
        "dtype": str(lens.dtype).removeprefix("torch."),
    }
    named: dict[str, Any] = {}
    for name, semantics in dict.fromkeys((key.needle, key.semantics) for key in study.cells):
        needle = config.needle_of(name, semantics)
        rubric = [list(rule) for rule in needle.rubric]
        named[f"the needle {name} ({semantics})"] = [needle.sentence, needle.question, rubric]
    return Manifest(
        model=config.model,
        arguments=arguments,
        seed=config.seed,
        max_score=niah.MAX_SCORE,
        config_hash=hash_json(lens.hf_model.config.to_diff_dict()),
        weights_hash=weights_hash,
        job="reproduce",
        command=config.command,
        settings={
            "experiments": list(study.experiments),
            "semantics": config.semantics,
            "boundary": config.boundary,
            "batch_size": config.batch_size,
            "memory": config.memory,
            "device": str(lens.device),
        },
        facts=model_facts(lens),
        growing=named,
    )


def cost_words(cost: Tally) -> str:
    """One sentence about what reading the prompts of a session cost."""
    if not cost.distinct:
        return "Nothing was left to read."
    again = f", {cost.dropped} snapshots dropped for want of memory" if cost.dropped else ""
    return (
        f"Prompts were read once for all that share a beginning and a treatment: {cost.prefilled:,} tokens, "
        f"{cost.prefilled / cost.distinct:.3f} of the distinct ones{again}."
    )


def answers(
    lens: HybridLens,
    experiment: str,
    folder: Path | None = None,
    model: str = "model",
    weights_hash: str | None = None,
    **options: Any,
) -> tuple[list[Cell], views.Base]:
    """The cells of one experiment, answered, and what its view holds fixed.

    Args:
        lens: the model, with a tokenizer.
        experiment: a name of `analyses.study.experiments.EXPERIMENTS`.
        folder: where to keep the cells, and to go on from; None to keep none.
        model: what results call the model.
        weights_hash: digest of its weights; None to work it out where `folder` is given.
        options: those of `StudyConfig`.

    Raises:
        InputError, ResultsError: see `run`.
    """
    config = StudyConfig(model, (experiment,), **options)
    if folder is not None:
        from hybridlens.results import hash_weights

        digest = weights_hash or hash_weights(lens.hf_model.state_dict())
        result = run(lens, config, folder, digest)
        return result.cells, result.study.base
    study = plan(lens, config)
    settings = Settings(DEFAULT if config.memory is None else config.memory, config.batch_size)
    rubrics = rubrics_of(config, study.cells)
    found = answer_cells(lens, study.cells, list(study.cells), rubrics, config.max_new_tokens, settings)
    return [cell for cells in found for cell in cells], study.base


def fig2(lens: HybridLens, **options: Any) -> views.Fig2:
    """Accuracy against heads kept, generation and prefill versions; options as in `answers`."""
    return views.fig2(*answers(lens, "fig2", **options))


def jrt(lens: HybridLens, **options: Any) -> views.JrtResult:
    """Accuracy at k = 0, 1, 2 and all, prompts read once and twice; options as in `answers`."""
    return views.jrt(*answers(lens, "fig3-jrt", **options))


def table1(lens: HybridLens, **options: Any) -> views.Table1:
    """Accuracy under manipulated attention weights, while reading by while answering; options as in `answers`."""
    return views.table1(*answers(lens, "table1", **options))


def maps(lens: HybridLens, **options: Any) -> views.Maps:
    """Accuracy by length and depth under every condition; options as in `answers`."""
    return views.maps(*answers(lens, "maps", **options))


def needles(lens: HybridLens, **options: Any) -> views.NeedlesResult:
    """Accuracy for needles of several forms; options as in `answers`."""
    return views.needles(*answers(lens, "needles", **options))


def scopes(lens: HybridLens, **options: Any) -> views.Contrast:
    """Heads that compete in their layer beside heads that compete in the model; options as in `answers`."""
    return views.scopes(*answers(lens, "scope", **options))


def boundaries(lens: HybridLens, **options: Any) -> views.Contrast:
    """Both boundaries between reading and answering; options as in `answers`."""
    return views.boundaries(*answers(lens, "boundary", **options))


def semantics(lens: HybridLens, **options: Any) -> views.SemanticsDifference:
    """What changes between clean and published semantics, cell by cell; options as in `answers`."""
    return views.semantics_difference(*answers(lens, "semantics", **options))

