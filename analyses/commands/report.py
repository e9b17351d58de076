"""The command that writes the start page of a folder of results; it opens no model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from analyses.commands.declared import typed_words


def report(
    folder: Annotated[Path, typer.Argument(help="Folder that the --out folders of commands are in.")] = Path("results"),
) -> None:
    """One start page for all results in a folder: what was run, what each run found, links to every report.

    Reads records and reports alone, and opens no model. Written is FOLDER/index.html; runs that are not finished, and
    folders that hold no run or a damaged one, are named on it.
    """
    from analyses.study.overview.page import write_overview
    from analyses.study.overview.reading import overview

    found = overview(folder)
    page = write_overview(found, shlex.join(["hybridlens", *typed_words.get()]))
    typer.echo(found.summary())
    for line in (*found.unfinished, *found.unread):
        typer.echo(line.summary())
    typer.echo(f"start page: {page}")
