"""The command of the needle experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from analyses.options import parse_list, parse_phase, read_needle


def niah(
    model: Model,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; results/MODEL when left out.")] = None,
    lengths: Lengths = None,
    depths: Depths = None,
    control: Control = True,
    needle: Annotated[
        str | None,
        typer.Option(help="A built-in needle by name, or an own sentence with --question and --rubric."),
    ] = None,
    question: Annotated[str | None, typer.Option(help="The question of an own needle.")] = None,
    rubric: Annotated[Path | None, typer.Option(help="JSON file: a list of [phrase, points, add or set].")] = None,
    haystack: Haystack = None,
    template: Template = "base",
    jrt: Annotated[bool, typer.Option(help="Just read twice: context and question given twice.")] = False,
    heads: Heads = None,
    phase: Annotated[str, typer.Option(help="generation, prefill (both stages sparsified), or both.")] = "both",
    boundary: Boundary = "last_prompt_token",
    semantics: Semantics = "clean",
    batch_size: BatchSize = None,
    memory: Memory = "2GB",
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Needle in a haystack while the k heads of lowest entropy are kept: the paper's figure 2.

    Lists are written 0,4,8 or 0..8. The same command goes on where a run was stopped.
    """
    from analyses.niah_config import NiahConfig, check_heads
    from hybridlens.engine import parse_memory
    from hybridlens.niah import DEFAULT_DEPTHS, read_haystack

    config = NiahConfig(
        model=model,
        lengths=None if lengths is None else parse_list("--lengths", lengths),
        depths=DEFAULT_DEPTHS if depths is None else parse_list("--depths", depths),
        control=control,
        needle=read_needle(needle, question, rubric),
        haystack=None if haystack is None else read_haystack(haystack),
        template=template,
        jrt=jrt,
        heads=None if heads is None else parse_list("--heads", heads),
        phases=parse_phase(phase),
        boundary=boundary,
        semantics=semantics,
        batch_size=batch_size,
        memory=parse_memory(memory),
        seed=seed,
        command=shared.command_line(),
    )
    folder = Path("results") / Path(model).name if out is None else out
    from analyses.checkpoints import meta_lens, open_model, weights_hash

    cfg = meta_lens(model).cfg  # what the configuration alone rules out is refused before the weights are read
    check_heads(config.heads, cfg.n_heads, model)
    shared.check_memory(cfg, dtype, config.memory, config.lengths, config.max_new_tokens)
    from analyses.niah import run
    from analyses.tables import accuracy_table

    lens = open_model(model, device, dtype)
    digest = weights_hash(model, lens)
    with shared.progress_bar(model, "cell", folder) as progress:
        result = run(lens, config, folder, digest, progress)
    for line in result.damaged:
        typer.echo(f"damaged and run again: {line}", err=True)
    typer.echo(accuracy_table(result.cells, model))
    typer.echo(f"report: {result.report}")
