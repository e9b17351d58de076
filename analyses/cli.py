"""The `hybridlens` command.

Each command (`analyses.commands`) checks its options, loads what it needs inside itself (so that ``--help``
answers at once), and prints plain text. How it fails: everything raised on purpose comes out as one line on
stderr, with exit status 2 and nothing half-written; Ctrl-C says how to go on and exits with 130. A traceback
means a defect of ours.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

import typer
from typer._click.exceptions import ClickException  # pyright: ignore[reportPrivateUsage]

from analyses.commands.circuits import circuits
from analyses.commands.crossover import crossover
from analyses.commands.look import heads, hooks, models
from analyses.commands.niah import niah
from analyses.commands.patch import patch
from analyses.commands.rankings import rankings
from analyses.commands.reproduce import reproduce
from analyses.commands.shared import typed_words
from hybridlens.errors import HybridLensError

app = typer.Typer(
    name="hybridlens",
    help="Read, edit and test what is inside hybrid language models (recurrent layers and attention).",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for _command in (niah, reproduce, circuits, rankings, patch, crossover, hooks, models, heads):
    app.command()(_command)


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
