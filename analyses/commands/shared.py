"""What the commands share: options that all of them take, the words typed, and the progress of a run.

How it fails: a run that is stopped with Ctrl-C says how to go on and exits with 130.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hybridlens.config import LensConfig

typed_words: ContextVar[tuple[str, ...]] = ContextVar("typed_words", default=())
"""What stands after the command's name, for the record of a run."""

Model = Annotated[
    str, typer.Option("--model", help="An embedded model (see `hybridlens models`), a folder, or a hub id.")
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:N, mps, or auto to spread the model.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")]
Lengths = Annotated[
    str | None, typer.Option("--lengths", help="Prompt lengths in tokens; ten up to the context, at most 4096.")
]
Depths = Annotated[
    str | None, typer.Option("--depths", help="Needle depths in percent, 0 the start; ten from 0 to 100.")
]
Control = Annotated[bool, typer.Option(help="Also run the prompts with the needle left out.")]
Haystack = Annotated[
    Path | None, typer.Option("--haystack", help="Folder of text files; built-in essays when left out.")
]
Template = Annotated[str, typer.Option("--template", help="base or instruct.")]
Heads = Annotated[
    str | None, typer.Option("--heads", help="Heads kept per layer, like 0,4,8 or 0..8; all when left out.")
]
Boundary = Annotated[str, typer.Option("--boundary", help="last_prompt_token or first_new_token.")]
Semantics = Annotated[str, typer.Option("--semantics", help="clean, or published: what the authors' code did.")]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", help="Most rows that answer together; changes no result.")
]
Memory = Annotated[
    str, typer.Option("--memory", help="What may be held beside the weights, like 2GB; changes no result.")
]


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join(["hybridlens", *typed_words.get()])


@contextmanager
def progress_bar(title: str, unit: str, folder: Path) -> Generator[Callable[[int, int], None]]:
    """A bar to report (done, total) to. Ctrl-C inside says that what is done is kept in `folder`."""
    from tqdm.auto import tqdm

    with tqdm(total=None, unit=unit, desc=title, dynamic_ncols=True, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            if bar.total is None:
                bar.total, bar.initial, bar.n = total, done, done
                bar.refresh()
            bar.update(done - bar.n)

        try:
            yield progress
        except KeyboardInterrupt:
            bar.close()
            typer.echo(
                f"stopped; what is done is kept in {folder}: the same command goes on from there", err=True
            )
            raise typer.Exit(130) from None


def check_memory(cfg: LensConfig, dtype: str, memory: int, lengths: Sequence[int] | None, new_tokens: int) -> None:
    """Refuse a budget too small for a row, as soon as the model's sizes are known.

    Args:
        cfg: the model's sizes.
        dtype: as typed.
        memory: bytes.
        lengths: of the prompts; None for the default ones, of which at least one token is known.
        new_tokens: of an answer.

    Raises:
        InputError: saying how much is needed.
    """
    from hybridlens.engine import Budget, costs_of
    from hybridlens.loading import resolve_dtype

    Budget(costs_of(cfg, resolve_dtype(dtype)), memory).check(max(lengths or (1,)) + new_tokens)
