"""The `hybridlens` command.

Each command checks its options, loads what it needs inside itself (so that ``--help`` answers at once), and
prints plain text. How it fails: everything raised on purpose comes out as one line on stderr, with exit
status 2 and nothing half-written; Ctrl-C says how to go on and exits with 130. A traceback means a defect
of ours.
"""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer._click.exceptions import ClickException  # pyright: ignore[reportPrivateUsage]

from analyses.options import parse_list, parse_phase, read_needle, read_prompts
from hybridlens.errors import HybridLensError, InputError

if TYPE_CHECKING:
    from analyses.niah import NiahResult
    from analyses.niah_config import NiahConfig

app = typer.Typer(
    name="hybridlens",
    help="Read, edit and test what is inside hybrid language models (recurrent layers and attention).",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

typed_words: ContextVar[tuple[str, ...]] = ContextVar("typed_words", default=())
"""What stands after the command's name, for the record of a run."""

Model = Annotated[
    str, typer.Option("--model", help="An embedded model (see `hybridlens models`), a folder, or a hub id.")
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:N, mps, or auto to spread the model.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")]


@app.command()
def niah(
    model: Model,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; results/MODEL when left out.")] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Prompt lengths in tokens; ten up to the context, at most 4096.")
    ] = None,
    depths: Annotated[
        str | None, typer.Option(help="Needle depths in percent, 0 the start; ten from 0 to 100.")
    ] = None,
    control: Annotated[bool, typer.Option(help="Also run the prompts with the needle left out.")] = True,
    needle: Annotated[
        str | None,
        typer.Option(help="A built-in needle by name, or an own sentence with --question and --rubric."),
    ] = None,
    question: Annotated[str | None, typer.Option(help="The question of an own needle.")] = None,
    rubric: Annotated[Path | None, typer.Option(help="JSON file: a list of [phrase, points, add or set].")] = None,
    haystack: Annotated[Path | None, typer.Option(help="Folder of text files; built-in essays when left out.")] = None,
    template: Annotated[str, typer.Option(help="base or instruct.")] = "base",
    jrt: Annotated[bool, typer.Option(help="Just read twice: context and question given twice.")] = False,
    heads: Annotated[
        str | None, typer.Option(help="Heads kept per layer, like 0,4,8 or 0..8; all when left out.")
    ] = None,
    phase: Annotated[str, typer.Option(help="generation, prefill (both stages sparsified), or both.")] = "both",
    boundary: Annotated[str, typer.Option(help="last_prompt_token or first_new_token.")] = "last_prompt_token",
    semantics: Annotated[str, typer.Option(help="clean, or published: what the authors' code did.")] = "clean",
    batch_size: Annotated[int | None, typer.Option(help="Rows run together; changes no result.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Needle in a haystack while the k heads of lowest entropy are kept: the paper's figure 2.

    Lists are written 0,4,8 or 0..8. The same command goes on where a run was stopped.
    """
    from analyses.niah_config import NiahConfig
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
        seed=seed,
        command=shlex.join(["hybridlens", *typed_words.get()]),
    )
    folder = Path("results") / Path(model).name if out is None else out
    _check_sizes(config)
    result = _run_niah(config, folder, device, dtype)
    for line in result.damaged:
        typer.echo(f"damaged and run again: {line}", err=True)
    from analyses.tables import accuracy_table

    typer.echo(accuracy_table(result.cells, model))
    typer.echo(f"report: {result.report}")


def _check_sizes(config: NiahConfig) -> None:
    """Refuse what the checkpoint's configuration alone rules out, before its weights are read."""
    from analyses.checkpoints import meta_lens
    from analyses.niah_config import check_heads

    check_heads(config.heads, meta_lens(config.model).cfg.n_heads, config.model)


def _run_niah(config: NiahConfig, folder: Path, device: str, dtype: str) -> NiahResult:
    """Load the model and run, with a progress bar; Ctrl-C says how to go on."""
    from tqdm.auto import tqdm

    from analyses.checkpoints import open_model, weights_hash
    from analyses.niah import run

    lens = open_model(config.model, device, dtype)
    digest = weights_hash(config.model, lens)
    with tqdm(total=None, unit="cell", desc=config.model, dynamic_ncols=True, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            if bar.total is None:
                bar.total, bar.initial, bar.n = total, done, done
                bar.refresh()
            bar.update(done - bar.n)

        try:
            return run(lens, config, folder, digest, progress)
        except KeyboardInterrupt:
            bar.close()
            typer.echo(f"stopped; the cells done are kept in {folder}: the same command goes on from there", err=True)
            raise typer.Exit(130) from None


@app.command()
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


@app.command()
def models() -> None:
    """The embedded models: layers, size, context, measured accuracy."""
    from analyses.embedded import model_table

    typer.echo(model_table())


@app.command()
def heads(
    model: Model,
    prompt: Annotated[str | None, typer.Option(help="A text to rank the heads on.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of prompts: one a line, or a JSON list of strings.")
    ] = None,
    queries: Annotated[
        str, typer.Option(help="all: mean over all tokens; last: the last token of each prompt.")
    ] = "all",
    semantics: Annotated[str, typer.Option(help="clean or published.")] = "clean",
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
    from analyses.tables import ranking_table
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    Args:
        arguments: what follows the command's name; what was typed when left out.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    typed_words.set(tuple(typed))
    # Read when torch is loaded. Threads that spin while they wait lose most of a core to any other busy
    # process: a sweep of the tiny models took twenty times as long beside one. Waiting idle costs nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command = typer.main.get_command(app)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line
            status = command.main(args=typed, prog_name="hybridlens", standalone_mode=False)
    except HybridLensError as error:
        print(f"hybridlens: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ClickException as error:
        print(f"hybridlens: {' '.join(error.format_message().split())}; see hybridlens --help", file=sys.stderr)
        return 2
    return status if isinstance(status, int) else 0


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as people read it: its text, on one line."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
