"""The commands that look at models: hook points, the embedded ones, what works for each family, heads ranked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from analyses.commands.declared import DEVICE, DTYPE, MODEL, REVISION
from hybridlens.errors import InputError
from hybridlens.progress import shown, wanted

Model = Annotated[str, typer.Option("--model", help=MODEL)]
Revision = Annotated[str | None, typer.Option(help=REVISION)]


def hooks(
    model: Model,
    layer: Annotated[int | None, typer.Option(help="Only the points of this layer.")] = None,
    revision: Revision = None,
) -> None:
    """Every hook point of a model, with its shape. Needs the configuration only, no weights."""
    from analyses.commands.hook_points import hook_table
    from analyses.experiment.checkpoints import meta_lens

    lens = meta_lens(model, revision)
    if layer is not None and not 0 <= layer < lens.cfg.n_layers:
        raise InputError(f"--layer {layer} given, expected 0..{lens.cfg.n_layers - 1}, the layers of {model}")
    typer.echo(hook_table(lens, layer))


def models() -> None:
    """The embedded models: layers, size, context, measured accuracy."""
    from analyses.commands.embedded import model_table

    typer.echo(model_table())


def families() -> None:
    """The families of models that can be opened, and what the tests found to work for each."""
    from analyses.commands.family_table import family_table

    typer.echo(family_table())


def heads(
    model: Model,
    prompt: Annotated[str | None, typer.Option(help="A text to rank the heads on.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of prompts: one a line, or a JSON list of strings.")
    ] = None,
    queries: Annotated[
        str, typer.Option(help="all: mean over all tokens; last: the last token of each prompt.")
    ] = "all",
    semantics: Annotated[str, typer.Option(help="clean, or published: what the authors' code did.")] = "clean",
    out: Annotated[Path | None, typer.Option(help="JSON file to write the ranking to.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.", min=0)] = 0,
    device: Annotated[str, typer.Option(help=DEVICE)] = "auto",
    dtype: Annotated[str, typer.Option(help=DTYPE)] = "auto",
    revision: Revision = None,
) -> None:
    """Attention heads by mean entropy, the most focused first.

    Without --prompt or --prompts: on a prompt of the paper's benchmark, its essays drawn with --seed.
    """
    with shown():
        if wanted():
            typer.echo(f"opening {model}", err=True)  # before what takes its time to be imported
    from analyses.experiment.checkpoints import meta_lens, open_model
    from analyses.heads.entropy import rank_heads
    from analyses.heads.ranking import ranking_table
    from hybridlens import niah as benchmark
    from hybridlens.loading import checkpoint

    if prompt is not None and prompts is not None:
        raise InputError("--prompt and --prompts given; give one of them")
    texts = [prompt] if prompt is not None else read_prompts(prompts) if prompts is not None else None
    if out is not None and not out.parent.is_dir():
        raise InputError(f"--out {out} cannot be written: {out.parent} is no folder; make it or name another file")
    with shown():
        files = checkpoint(model, revision)
        meta_lens(files).cfg.need_attention("ranking heads")
        lens = open_model(files, device, dtype)
    if texts is None:
        length = benchmark.shortest_length(lens.tokenizer, seed=seed)
        tokens: Any = [list(p.tokens) for p in benchmark.grid(lens.tokenizer, [length], [50], seed=seed)]
    else:
        tokens = texts
    ranking = rank_heads(lens, tokens, queries=queries, semantics=semantics)
    typer.echo(ranking_table(ranking))
    if out is not None:
        typer.echo(f"ranking: {ranking.save(out)}")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: a JSON list of strings (ending .json), else one prompt a line.

    Raises:
        InputError: the file cannot be read, or holds no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--prompts {path} cannot be read as UTF-8 text ({error}); give a text or JSON file"
        ) from error
    try:
        prompts: Any = (
            json.loads(text) if path.suffix == ".json" else [line for line in text.split("\n") if line.strip()]
        )
    except (ValueError, RecursionError) as error:
        raise InputError(f"--prompts {path} is not JSON ({error}); give a list of strings") from error
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError(f'--prompts {path} is no list of strings; give ["first prompt", "second prompt"]')
    if not prompts:
        raise InputError(f"--prompts {path} holds no prompt; write one on each line")
    return prompts
