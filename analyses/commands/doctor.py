"""The command that looks at an installation."""

from __future__ import annotations

import typer

from hybridlens.progress import shown, wanted


def doctor() -> None:
    """Versions, devices, scan kernels, memory, and a self-check: what to paste into a bug report.

    Exits with 1 where something that is needed is missing, or a small model computes otherwise than transformers' own.
    """
    with shown():
        seen = wanted()
    if seen:
        typer.echo("looking at this installation; most of the time goes into importing libraries", err=True)
    from hybridlens.doctor import examine

    found = examine()
    typer.echo(found.text)
    if not found.well:
        raise typer.Exit(1)
