"""The command that exchanges memories of two prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyses.commands import shared
from analyses.commands.shared import Device, Dtype, Model, Seed
from analyses.options import parse_list


def crossover(
    model: Model,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; results/MODEL-crossover by default.")] = None,
    lengths: Annotated[
        str | None,
        typer.Option(help="Prompt lengths in tokens; by default a short one and one beyond the window, if there is."),
    ] = None,
    depths: Annotated[str, typer.Option(help="Needle depths in percent, 0 the start.")] = "0,10,50",
    pairs: Annotated[
        str, typer.Option(help="Built-in needles whose twins are needle B, like paper,oslo; or all that fit.")
    ] = "all",
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 40,
    block: Annotated[
        int | None, typer.Option(help="Positions at a time of the maps; about 32 places by default.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows that answer together; changes no result.")] = 96,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Which memory holds the needle: keys and values of one prompt, recurrent states of another, and which is told.

    The same command goes on where a run was stopped.
    """
    from analyses.checkpoints import open_model
    from analyses.kv_cache.folder import CrossoverConfig, run
    from analyses.kv_cache.report import write_crossover_report
    from analyses.tables import crossover_table

    config = CrossoverConfig(
        model=model,
        lengths=None if lengths is None else parse_list("--lengths", lengths),
        depths=parse_list("--depths", depths),
        pairs=_names(pairs),
        max_new_tokens=max_new_tokens,
        block=block,
        rows=rows,
        seed=seed,
        command=shared.command_line(),
    )
    folder = Path("results") / f"{Path(model).name}-crossover" if out is None else out
    lens = open_model(model, device, dtype)
    with shared.progress_bar(model, "answer", folder) as progress:
        result = run(lens, config, folder, progress)
    report = write_crossover_report(folder, result.crossover, result.maps, result.record)
    typer.echo(crossover_table(result.crossover, model, lens.cfg.window))
    typer.echo(f"report: {report}")


def _names(given: str) -> tuple[str, ...] | None:
    """The needles that ``--pairs`` names; None for all.

    Raises:
        InputError: a needle is named twice.
        UnknownNameError: there is no such needle, or it has no twin.
    """
    from analyses.kv_cache.twins import TWINS
    from hybridlens.errors import InputError, UnknownNameError, closest

    if given == "all":
        return None
    known = [twin.name for twin in TWINS]
    names = tuple(name.strip() for name in given.split(","))
    for name in names:
        if name not in known:
            near = closest(name, known)
            raise UnknownNameError(f"--pairs {name!r} has no twin{near}; expected all, or some of {', '.join(known)}")
        if names.count(name) > 1:
            raise InputError(f"--pairs names {name} more than once; give each needle once")
    return names
