"""The commands that look at a model: its hook points, the embedded ones, its heads ranked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from analyses.commands.shared import Device, Dtype, Model, Seed, Semantics
from analyses.options import read_prompts
from hybridlens.errors import InputError


def hooks(
    model: Model,
    layer: Annotated[int | None, typer.Option(help="Only the points of this layer.")] = None,
) -> None:
    """Every hook point of a model, with its shape. Needs the configuration only, no weights."""
    from analyses.checkpoints import meta_lens
    from analyses.tables import hook_table

    lens = meta_lens(model)
    if layer is not None and not 0 <= layer < lens.cfg.n_layers:
        raise InputError(f"--layer {layer} given, expected 0..{lens.cfg.n_layers - 1}, the layers of {model}")
    typer.echo(hook_table(lens, layer))


def models() -> None:
    """The embedded models: layers, size, context, measured accuracy."""
    from analyses.embedded import model_table

    typer.echo(model_table())


def heads(
    model: Model,
    prompt: Annotated[str | None, typer.Option(help="A text to rank the heads on.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of prompts: one a line, or a JSON list of strings.")
    ] = None,
    queries: Annotated[
        str, typer.Option(help="all: mean over all tokens; last: the last token of each prompt.")
    ] = "all",
    semantics: Semantics = "clean",
    out: Annotated[Path | None, typer.Option(help="JSON file to write the ranking to.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Attention heads by mean entropy, the most focused first.

    Without --prompt or --prompts: on a prompt of the paper's benchmark, its essays drawn with --seed.
    """
    from analyses.checkpoints import open_model
    from analyses.entropy import rank_heads
    from analyses.ranking import ranking_table
    from hybridlens import niah as benchmark

    if prompt is not None and prompts is not None:
        raise InputError("--prompt and --prompts given; give one of them")
    texts = [prompt] if prompt is not None else read_prompts(prompts) if prompts is not None else None
    if out is not None and not out.parent.is_dir():
        raise InputError(f"--out {out} cannot be written: {out.parent} is no folder; make it or name another file")
    lens = open_model(model, device, dtype)
    if texts is None:
        length = benchmark.shortest_length(lens.tokenizer, seed=seed)
        tokens: Any = [list(p.tokens) for p in benchmark.grid(lens.tokenizer, [length], [50], seed=seed)]
    else:
        tokens = texts
    ranking = rank_heads(lens, tokens, queries=queries, semantics=semantics)
    typer.echo(ranking_table(ranking))
    if out is not None:
        typer.echo(f"ranking: {ranking.save(out)}")
