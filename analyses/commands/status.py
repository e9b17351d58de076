"""The command that shows how far a run is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def status(folder: Annotated[Path, typer.Argument(help="Folder of the results, as given to --out.")]) -> None:
    """How far a run is: shards, cells done, what failed and its last line, the time left. Loads no model."""
    from analyses.experiment.cluster.status import status_lines

    for line in status_lines(folder):
        typer.echo(line)
