"""The command that patches activations between two needle prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyses.commands import shared
from analyses.commands.shared import Device, Dtype, Model, Seed


def patch(
    model: Model,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; results/MODEL-patch by default.")] = None,
    pair: Annotated[
        str, typer.Option(help="In the corrupt prompt: needle (another one), none, or moved (elsewhere).")
    ] = "needle",
    needle: Annotated[str, typer.Option(help="A built-in needle, of the clean prompt.")] = "paper",
    sweeps: Annotated[
        str | None,
        typer.Option(help="Names with commas, like v_by_position,state (the README lists them), or all."),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="logit-difference, log-probability, rank, kl or score.")
    ] = "logit-difference",
    direction: Annotated[
        str, typer.Option(help="denoise: clean values into the corrupt run; noise: corrupt ones into the clean run.")
    ] = "denoise",
    length: Annotated[
        int | None, typer.Option(help="Tokens of the prompts; the shortest of the benchmark by default.")
    ] = None,
    depth: Annotated[int, typer.Option(help="Needle depth in percent, 0 the start.")] = 50,
    attribution: Annotated[bool, typer.Option(help="Estimate sweeps and direct paths by gradients too.")] = True,
    batch_size: Annotated[int, typer.Option(help="Patches in one forward pass, at most.")] = 32,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Which component carries the needle: activations of one prompt put into another, place by place.

    The same command goes on where a run was stopped, and other sweeps may be added to its folder.
    """
    from analyses.checkpoints import open_model
    from analyses.patching.folder import PatchConfig, run
    from analyses.patching.report import write_patch_report
    from analyses.tables import patch_table

    config = PatchConfig(
        model=model,
        pair=pair,
        needle=needle,
        sweeps=None if sweeps is None else tuple(name.strip() for name in sweeps.split(",")),
        metric=metric,
        direction=direction,
        length=length,
        depth=depth,
        attribution=attribution,
        batch_size=batch_size,
        seed=seed,
        command=shared.command_line(),
    )
    folder = Path("results") / f"{Path(model).name}-patch" if out is None else out
    lens = open_model(model, device, dtype)
    with shared.progress_bar(model, "sweep", folder) as progress:
        result = run(lens, config, folder, progress)
    report = write_patch_report(folder, result.found, result.record)
    typer.echo(patch_table(result.found, model))
    typer.echo(f"report: {report}")
