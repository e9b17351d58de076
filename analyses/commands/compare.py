"""The command that sets studies side by side; it opens no model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from analyses.commands.declared import typed_words


def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of finished `hybridlens reproduce` runs, two or more.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("results", "compare"),
) -> None:
    """Several studies side by side: the claims that need several models, and each claim of each study.

    Reads what the studies have stored, and opens no model. Differences are taken prompt by prompt where the prompts are
    the same; where studies were asked under other settings, so that a row cannot be compared, the row says which.
    """
    from analyses.study.comparing import compare_studies
    from analyses.study.comparing.report import comparison_table, refuse_a_run, write_comparison

    refuse_a_run(out)
    found = compare_studies(folders)
    report = write_comparison(found, out, shlex.join(["hybridlens", *typed_words.get()]))
    typer.echo(comparison_table(found))
    typer.echo(f"report: {report}")
