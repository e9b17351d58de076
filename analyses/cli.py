"""The `hybridlens` command.

Each command (`analyses.commands`) checks its options, loads what it needs inside itself (so that ``--help``
answers at once), and prints plain text. How it fails: everything raised on purpose, and what the system refuses, comes
out as one line on stderr, with exit status 2 and nothing half-written; Ctrl-C (130) and SIGTERM (143) say how to go
on. A traceback means a defect of ours.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer
from typer._click.exceptions import ClickException  # pyright: ignore[reportPrivateUsage]

from analyses.commands.compare import compare
from analyses.commands.declared import command, typed_words
from analyses.commands.doctor import doctor
from analyses.commands.experiments import EXPERIMENTS
from analyses.commands.look import families, heads, hooks, models
from analyses.commands.planning import plan
from analyses.commands.report import report
from analyses.commands.status import status
from analyses.commands.zoo import zoo
from hybridlens import __version__
from hybridlens.boundary_words import sound
from hybridlens.errors import HybridLensError
from hybridlens.progress import hidden

app = typer.Typer(
    name="hybridlens",
    help="Read, edit and test what is inside hybrid language models (recurrent layers and attention).",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"hybridlens {__version__}")
        raise typer.Exit
    return asked


def _summary(text: str | None) -> str:
    """The first paragraph of a command's help, whole: click cuts what it chooses itself off at the end of a line."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version; `doctor` shows more.")
    ] = False,
) -> None:
    """See `app`."""


for _declared in EXPERIMENTS:
    app.command(_declared.name, short_help=_summary(_declared.help))(command(_declared))
for _command in (zoo, compare, report, hooks, models, families, heads, plan, status, doctor):
    app.command(short_help=_summary(_command.__doc__))(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    Args:
        arguments: what follows the command's name; what was typed when left out.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    odd = next((word for word in typed if not sound(word)), None)
    if odd is not None:
        return _refused(f"the argument {odd!r} is not UTF-8 text; name it otherwise")
    typed_words.set(tuple(typed))
    # Read when torch is loaded. Threads that spin while they wait lose most of a core to any other busy
    # process: a sweep of the tiny models took twenty times as long beside one. Waiting idle costs nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    entry = typer.main.get_command(app)
    try:
        with _terminable(), warnings.catch_warnings(), hidden():  # commands have bars of their own
            warnings.showwarning = _one_line
            with entry.make_context("hybridlens", typed or ["--help"]) as context:  # `main` would lose what stopped it
                entry.invoke(context)
    except HybridLensError as error:
        return _refused(str(error))
    except ClickException as error:
        asked = getattr(getattr(error, "ctx", None), "command_path", None) or "hybridlens"
        return _refused(f"{error.format_message().rstrip('.')}; see {asked} --help")
    except OSError as error:
        where = f"'{error.filename}' " if error.filename else "the system "
        return _refused(f"{where}refuses ({error.strerror or error}); make room, give the rights, or name another")
    except typer.Exit as error:
        return error.exit_code
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped; nothing was begun", file=sys.stderr)
        return int(getattr(stop, "status", 130))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error).split("\n")[0]:
            raise
        return _refused("the memory of this machine is not enough; give shorter prompts, or smaller batches")
    return 0


def _refused(line: str) -> int:
    """Say what is wrong, on one line; returns the exit status."""
    print(f"hybridlens: {' '.join(line.split())}", file=sys.stderr)
    return 2


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a command as Ctrl-C does."""

    status = 143


@contextmanager
def _terminable() -> Generator[None]:
    """Have SIGTERM stop what runs inside as Ctrl-C does, where this is the thread that hears signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _one_line(message: Warning | str, *place: object) -> None:
    """A warning as people read it: its text, on one line."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
