"""The command that asks many models the same; it runs the other experiments' commands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from analyses.commands.declared import DEVICE, DTYPE, progress_bar, typed_words
from analyses.experiment.options.zoo import PARTS, ZooConfig

_HELP = {name: str(field.description) for name, field in ZooConfig.model_fields.items()}


def zoo(
    models: Annotated[list[str] | None, typer.Argument(help=_HELP["models"])] = None,
    parts: Annotated[str | None, typer.Option(help=_HELP["parts"])] = None,
    jobs: Annotated[int | None, typer.Option(help=_HELP["jobs"])] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs and the report.")] = Path("results", "zoo"),
    device: Annotated[str, typer.Option(help=DEVICE)] = "auto",
    dtype: Annotated[str, typer.Option(help=DTYPE)] = "auto",
) -> None:
    """Many models side by side: the paper's experiments and five more with each, and what they say together.

    Runs what is not done yet, each experiment as a command in a process and a folder of its own under --out, so that
    the same command goes on where it was stopped. The package has the finished table of the embedded models: what is
    computed of them is compared with it, and where only some of them, or some --parts, are asked for, the report shows
    the rest of the table. Models of your own stand alone.
    """
    given: dict[str, Any] = {"models": tuple(models) if models else None, "parts": parts, "jobs": jobs}
    config = ZooConfig(**given)

    from analyses.study.comparing.report import refuse_a_run
    from analyses.study.zoo.making import make, subjects_of
    from analyses.study.zoo.report import write_zoo, zoo_table
    from analyses.study.zoo.results import FILE, read_zoo
    from analyses.study.zoo.stored import beside_stored
    from hybridlens.tiny import names

    refuse_a_run(out)
    subjects = subjects_of(config.models or names())
    chosen = tuple(name for name in PARTS if config.parts is None or name in config.parts)
    with progress_bar("zoo", "experiment") as progress:
        refused = make(subjects, chosen, out, device, dtype, config.jobs, progress)
    found = read_zoo(out, subjects, chosen, refused)
    found.save(out / FILE)
    whole, note = beside_stored(found)
    notes = (note,) if note else ()
    report = write_zoo(whole, out, shlex.join(["hybridlens", *typed_words.get()]), notes)
    for line in (*notes, *zoo_table(whole)):
        typer.echo(line)
    typer.echo(f"report: {report}")
