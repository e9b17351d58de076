"""Progress bars of what takes long: tqdm's, in a notebook or a terminal; elsewhere, and in tests, there are none.

A bar counts stages, and moves with every layer of every pass of a model in between (`hybridlens.effort`).

A function that is given a callback of its own reports to that instead. Inside `hidden` nothing is shown: whatever has
a bar already, as commands and lists of prompts do, hides those of what it calls. tqdm is imported when the first bar
is shown. Where a notebook has no ipywidgets a bar is text among its other output, since what was wiped from standard
error would stay there as an empty strip. How it fails: it does not; a bar that is not wanted costs a call that does
nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

from hybridlens.effort import Effort, watching

Advance = Callable[[int], None]
"""Called with how many more are done."""

Stages = Callable[[int, int], None]
"""Called with how many are done and how many there are in all."""

SMALL = 1 << 22
"""Bytes that are done too soon for a bar."""

_HIDDEN: ContextVar[bool] = ContextVar("hidden", default=False)


def wanted() -> bool:
    """Whether a bar would be seen: in a notebook, or where standard error is a terminal, and not inside `hidden`."""
    if _HIDDEN.get():
        return False
    return _notebook() or bool(sys.stderr and sys.stderr.isatty())


def _notebook() -> bool:
    return "ipykernel.zmqshell" in sys.modules


def _written() -> Any:
    """Where bars are text; None for where tqdm has them."""
    return sys.stdout if _notebook() else None


@contextmanager
def _inside(hidden: bool) -> Generator[None]:
    token = _HIDDEN.set(hidden)
    try:
        yield
    finally:
        _HIDDEN.reset(token)


def hidden() -> AbstractContextManager[None]:
    """No bars of what is called inside."""
    return _inside(hidden=True)


def shown() -> AbstractContextManager[None]:
    """Bars again inside `hidden`: of what comes before whatever hides them has a bar of its own."""
    return _inside(hidden=False)


@contextmanager
def counted(total: int, what: str, given: Advance | None = None) -> Generator[Advance]:
    """A bar over so many things, to be moved on by how many more are done; others inside are hidden.

    Args:
        total: how many there are; of one, no bar is shown.
        what: they are, in a word or two.
        given: the caller's own callback, which is called instead.
    """
    if given is not None or total < 2 or not wanted():
        yield given or _nothing
        return
    with _bar(what) as effort:
        effort.tell(0, total)
        yield lambda more: effort.tell(effort.done + more, total)


@contextmanager
def sized(total: int, what: str) -> Generator[Advance]:
    """A bar over so many bytes, to be moved on from any thread; others inside are hidden.

    Args:
        total: how many there are; of fewer than `SMALL`, no bar is shown.
        what: is done with them, in a few words.
    """
    if total < SMALL or not wanted():
        yield _nothing
        return
    from tqdm.auto import tqdm

    lock = Lock()
    with tqdm(total=total, desc=what, leave=False, unit="B", unit_scale=True, unit_divisor=1024) as bar, hidden():

        def advance(more: int) -> None:
            with lock:
                bar.update(more)

        yield advance


@contextmanager
def staged(what: str, given: Stages | None = None) -> Generator[Stages]:
    """Likewise for what reports how many are done and how many there are, the number being known only then."""
    if given is not None or not wanted():
        yield given or _nothing
        return
    with _bar(what) as effort:
        yield effort.tell


@contextmanager
def _bar(what: str) -> Generator[Effort]:
    """A bar of stages, and of the passes that go into them."""
    from tqdm.auto import tqdm

    with tqdm(total=0, desc=what, leave=False, file=_written(), miniters=0) as bar:

        def show(effort: Effort) -> None:
            total = effort.total or 0
            if effort.what and bar.desc != f"{effort.what}: ":
                bar.set_description(effort.what, refresh=False)
                bar.reset(total)
            if bar.total != total:
                bar.reset(total)
            bar.bar_format = f"{{l_bar}}{{bar}}| {words(effort)} [{{elapsed}}<{{remaining}}]"
            bar.update(effort.share * total - bar.n)

        effort = Effort(show)
        with watching(effort), hidden():
            yield effort


def words(effort: Effort, unit: str = "") -> str:
    """How much is done, in numbers: stages, named where there is a `unit`, and tokens where a model runs."""
    stages = "" if effort.what else f"{effort.done}/{effort.total or '?'}{unit and f' {unit}s'}"
    tokens = f"{effort.tokens:,.0f} tokens" if effort.tokens else ""
    return ", ".join(filter(None, (stages, tokens)))


def _nothing(*_: int) -> None:
    """Nobody watches."""
