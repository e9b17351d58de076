"""The command of an experiment, made of its options: what is declared there is what the command line offers.

Every field of the options with a description becomes an option of the same name; ``--out``, ``--device`` and
``--dtype`` come with all. The experiment itself, and what it needs, is imported when the command is run, so that
``--help`` answers at once.

How it fails: see `analyses.experiment`: one line for whatever is wrong, and for a run that was stopped.
"""

from __future__ import annotations

import inspect
import re
import shlex
import types
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from analyses.experiment.options.base import Options, flag
from analyses.experiment.options.cluster import ClusterConfig, cluster_of, without_cluster
from analyses.experiment.parts import loaded
from hybridlens.effort import Effort, watching
from hybridlens.progress import shown, wanted, words

MODEL = "An embedded model (see `hybridlens models`), a folder, or a hub id."
REVISION = str(Options.model_fields["revision"].description)
DEVICE = "cpu, cuda, cuda:N, mps; auto for the GPU with room for the model, all of them, or the CPU."
DTYPE = "float32, bfloat16 or float16; auto for the checkpoint's."

SPEED = 600.0
"""Seconds over which the time left is judged by."""

typed_words: ContextVar[tuple[str, ...]] = ContextVar("typed_words", default=())
"""What stands after the command's name, for the record of a run."""


class Declared(NamedTuple):
    """An experiment as a command."""

    name: str
    options: type[Options]
    experiment: str
    """Its class, as "module:Class"."""
    help: str
    folder: str | None = None
    """Of the results by default: results/MODEL-folder; the command's name where it is None, and none where empty."""
    positional: str = ""
    """The field that is given without a name."""

    def load(self) -> Any:
        """The experiment's class."""
        return loaded(self.experiment)


def command(declared: Declared) -> Callable[..., None]:
    """The function that typer makes the command of."""

    def call(**given: Any) -> None:
        out, device, dtype = (given.pop(name) for name in ("out", "device", "dtype"))
        cluster = cluster_of({name: given.pop(name) for name in ClusterConfig.model_fields})
        positional = given.get(declared.positional)
        if isinstance(positional, list):
            given[declared.positional] = tuple(positional)
        words = ["hybridlens", *without_cluster(typed_words.get())]  # of which nothing but where it is run is lost
        options = declared.options(**given, command=shlex.join(words))
        folder = default_folder(options, declared) if out is None else out
        if cluster is None:
            carry_out(declared, options, folder, device, dtype)
        else:
            from analyses.experiment.cluster.submitting import submit

            submit(declared.experiment, options, folder, device, dtype, cluster, typer.echo)

    return signed(call, declared, _common(declared))


def signed(call: Callable[..., None], declared: Declared, others: list[inspect.Parameter]) -> Callable[..., None]:
    """A function that takes any words, as one that takes the options that are declared.

    Args:
        call: takes them by name.
        declared: the command's name, help and options.
        others: what it takes beside them.
    """
    offered = [
        _parameter(name, field, declared) for name, field in declared.options.model_fields.items() if field.description
    ]
    named = declared.options.model_fields["model"].is_required()  # else what is given otherwise names it
    model = [_option("model", str, inspect.Parameter.empty, MODEL)] if named else []
    parameters = [*model, *offered, *others]
    call.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__doc__ = declared.help
    call.__name__ = declared.name
    return call


def carry_out(declared: Declared, options: Options, folder: Path, device: str, dtype: str) -> None:
    """Run an experiment, with a bar that shows how far it is, and print what came out."""
    with shown():
        seen = wanted()
    if seen:
        typer.echo(f"opening {options.model}", err=True)  # before what takes its time to be imported
    kind = declared.load()
    from analyses.experiment.checkpoints import placed
    from analyses.experiment.running import conduct
    from hybridlens.model import HybridLens
    from hybridlens.results.settled import settled

    experiment = kind.opened(options, device, dtype)
    memory = getattr(options, "memory", 0)

    def tell() -> None:
        if isinstance(getattr(experiment, "lens", None), HybridLens) and ("auto" in (device, dtype) or memory is None):
            typer.echo(placed(experiment.lens, settled(folder, "memory") if memory is None else memory), err=True)

    with progress_bar(Path(options.model).name, kind.unit) as progress:
        outcome = conduct(experiment, folder, progress, opened=tell)
    for line in outcome.damaged:
        typer.echo(f"damaged and made again: {line}", err=True)
    for line in outcome.record["remarks"]:
        typer.echo(line, err=True)
    for line in experiment.table(outcome.result):
        typer.echo(line)
    typer.echo(f"report: {outcome.report}")


def default_folder(options: Options, declared: Declared) -> Path:
    """Where results go: a folder for each model and command, and for each revision that is named."""
    of = "" if options.revision is None else "@" + re.sub(r"[^\w.-]", "-", options.revision)[:60]
    return Path("results", f"{Path(options.model).name[:100]}{of}{_ending(declared)}")


def _ending(declared: Declared) -> str:
    """What the name of a folder of results ends with."""
    kind = declared.name if declared.folder is None else declared.folder
    return f"-{kind}" if kind else ""


@contextmanager
def progress_bar(title: str, unit: str) -> Generator[Callable[[int, int], None]]:
    """A bar to report (done, total) to, which moves with every layer of a pass; none where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[words]}"))
    off = not console.is_terminal
    with Progress(
        *columns, TimeElapsedColumn(), TimeLeft(), console=console, disable=off, speed_estimate_period=SPEED
    ) as bar:
        task = bar.add_task(title, total=None, words="")

        def show(effort: Effort) -> None:
            if effort.what and effort.what != bar.tasks[0].description:
                bar.reset(task, description=effort.what)
            total = None if effort.total is None else 1.0
            bar.update(task, completed=effort.share, total=total, words=words(effort, unit))

        effort = Effort(show)
        with nullcontext() if off else watching(effort):
            yield effort.tell


def _option(name: str, annotation: Any, default: Any, help_text: str) -> inspect.Parameter:
    flags = flag(name)
    if annotation is bool or bool in get_args(annotation):
        flags = f"{flags}/--no-{flags[2:]}"
    noted = Annotated[annotation, typer.Option(flags, help=help_text)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=noted)


def _parameter(name: str, field: FieldInfo, declared: Declared) -> inspect.Parameter:
    """A field as an option: of its own plain type, else as text that the options read."""
    if name == declared.positional:
        noted = Annotated[list[str] | None, typer.Argument(help=field.description)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=noted)
    annotation, default = field.annotation, field.default
    extra: Any = field.json_schema_extra or {}
    kinds = get_args(annotation) if get_origin(annotation) in (types.UnionType,) else (annotation,)
    plain = [kind for kind in kinds if kind in (bool, int, float, str, Path)]
    others = [kind for kind in kinds if kind not in (*plain, type(None))]
    if others or "typed" in extra:
        plain, default = [str], extra.get("typed", _typed(default))
    shown: Any = plain[0] if default is not None and type(None) not in kinds else plain[0] | None
    return _option(name, shown, default, str(field.description))


def _typed(default: object) -> str | None:
    """A default as one would type it."""
    return ",".join(map(str, default)) if isinstance(default, tuple) else None


def _common(declared: Declared) -> list[inspect.Parameter]:
    of = "MODEL" if declared.options.model_fields["model"].is_required() else declared.positional.upper()
    return [
        _option("out", Path | None, None, f"Folder of the results; results/{of}{_ending(declared)} when left out."),
        _option("device", str, "auto", DEVICE),
        dtype_option(),
        *(_parameter(name, field, declared) for name, field in ClusterConfig.model_fields.items()),
    ]


def dtype_option() -> inspect.Parameter:
    """``--dtype``, as every command of an experiment has it."""
    return _option("dtype", str, "auto", DTYPE)
