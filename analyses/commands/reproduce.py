"""The command that runs the paper's experiments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyses.commands import shared
from analyses.commands.shared import (
    BatchSize,
    Boundary,
    Control,
    Depths,
    Device,
    Dtype,
    Haystack,
    Heads,
    Lengths,
    Memory,
    Model,
    Seed,
    Semantics,
    Template,
)
from analyses.options import parse_list, parse_phase, read_needles
from hybridlens.errors import InputError

if TYPE_CHECKING:
    from analyses.benchmarks.config import BenchmarkConfig
    from analyses.study.config import StudyConfig

ALL, BENCHMARKS = "all", "benchmarks"
PUBLIC_TASKS = ("glue", "mmlu")
"""What the paper measures; the embedded models get the project's own tasks instead."""


def reproduce(
    model: Model,
    experiments: Annotated[
        list[str] | None,
        typer.Argument(help="fig2, fig3-jrt, table1, maps, benchmarks, needles, scope, boundary, semantics, or all."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study; results/MODEL-study when left out.")] = None,
    lengths: Lengths = None,
    depths: Depths = None,
    control: Control = True,
    needles: Annotated[
        str | None,
        typer.Option(help="Of the experiment `needles`: a JSON file, built-in names like oslo,code, or all."),
    ] = None,
    haystack: Haystack = None,
    template: Template = "base",
    heads: Heads = None,
    phase: Annotated[
        str | None, typer.Option(help="generation, prefill, or both; what each experiment has when left out.")
    ] = None,
    boundary: Boundary = "last_prompt_token",
    semantics: Semantics = "clean",
    tasks: Annotated[
        str | None,
        typer.Option(help="lm-eval tasks of the benchmarks, like glue,mmlu; embedded models: the project's own."),
    ] = None,
    include: Annotated[Path | None, typer.Option(help="Folder with lm-eval tasks of one's own.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many documents of each benchmark task.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(help="Examples before each benchmark question.")] = None,
    apply_chat_template: Annotated[bool, typer.Option(help="Benchmarks: use the tokenizer's chat template.")] = False,
    fewshot_as_multiturn: Annotated[bool, typer.Option(help="Benchmarks: examples as turns of a chat.")] = False,
    max_length: Annotated[int | None, typer.Option(help="Benchmarks: tokens of the longest sequence.")] = None,
    batch_size: BatchSize = None,
    memory: Memory = "2GB",
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """The paper's experiments, and what they say of its claims: one report with every figure and the verdicts.

    All experiments when none is named. The same command goes on where a study was stopped, and other
    experiments of the same model may be added to its folder.
    """
    from analyses.benchmarks.config import BenchmarkConfig
    from analyses.study.config import StudyConfig
    from hybridlens.engine import parse_memory
    from hybridlens.niah import DEFAULT_DEPTHS, read_haystack

    names = tuple(experiments or [ALL])
    everything = ALL in names
    if everything and len(names) > 1:
        raise InputError(f"{' '.join(names)} given; all stands for every experiment, name it alone")
    if len(set(names)) < len(names):
        raise InputError(f"{' '.join(names)} given, which names an experiment twice; name each once")
    wanted = tuple(name for name in names if name != BENCHMARKS)
    config = StudyConfig(
        model=model,
        experiments=None if everything else wanted,
        lengths=None if lengths is None else parse_list("--lengths", lengths),
        depths=DEFAULT_DEPTHS if depths is None else parse_list("--depths", depths),
        control=control,
        needles=None if needles is None else tuple(read_needles(needles)),
        haystack=None if haystack is None else read_haystack(haystack),
        template=template,
        heads=None if heads is None else parse_list("--heads", heads),
        phases=None if phase is None else parse_phase(phase),
        boundary=boundary,
        semantics=semantics,
        batch_size=batch_size,
        memory=parse_memory(memory),
        seed=seed,
        command=shared.command_line(),
    )
    benchmarks = None
    if everything or BENCHMARKS in names:
        benchmarks = BenchmarkConfig(
            model=model,
            tasks=_tasks(tasks, model),
            limit=limit,
            num_fewshot=num_fewshot,
            semantics=semantics,
            boundary=boundary,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=fewshot_as_multiturn,
            max_length=max_length,
            include=include,
            batch_size=BenchmarkConfig.batch_size if batch_size is None else batch_size,
        )
    folder = Path("results") / f"{Path(model).name}-study" if out is None else out
    _check(config, benchmarks, dtype)
    _run(config, benchmarks, folder, device, dtype)


def _tasks(given: str | None, model: str) -> tuple[str, ...]:
    """The benchmark tasks: those named, else the project's own for an embedded model, the paper's for others."""
    from analyses.local_tasks import NAMES
    from hybridlens.tiny import names

    if given is not None:
        return tuple(name.strip() for name in given.split(","))
    return NAMES if model in names() else PUBLIC_TASKS


def _check(config: StudyConfig, benchmarks: BenchmarkConfig | None, dtype: str) -> None:
    """Refuse what no weights are needed to refuse."""
    from analyses.checkpoints import meta_lens
    from analyses.study.experiments import check_study

    cfg = meta_lens(config.model).cfg
    if config.experiments != ():
        check_study(config, cfg)
        shared.check_memory(cfg, dtype, config.memory or 0, config.lengths, config.max_new_tokens)
    if benchmarks is not None:
        from analyses.benchmarks.tasks import check_tasks, require

        require()
        benchmarks.heads(cfg.n_heads)
        check_tasks(benchmarks.tasks, benchmarks.include)


def _run(
    config: StudyConfig, benchmarks: BenchmarkConfig | None, folder: Path, device: str, dtype: str
) -> None:
    """Load the model, run, and say what came out."""
    from analyses.checkpoints import open_model, weights_hash
    from analyses.study import run
    from analyses.tables import verdict_table

    lens = open_model(config.model, device, dtype)
    digest = weights_hash(config.model, lens)
    with (
        shared.progress_bar(config.model, "cell", folder) as progress,
        shared.progress_bar("benchmarks", "task", folder) as tasks_progress,
    ):
        result = run(lens, config, folder, digest, benchmarks, progress, tasks_progress)
    for line in result.damaged:
        typer.echo(f"damaged and run again: {line}", err=True)
    typer.echo(verdict_table(result.verdicts, config.model))
    typer.echo(f"report: {result.report}")
