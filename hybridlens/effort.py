"""How much of something long is done: its stages, and the passes of the model that go into them.

Stages (cells, prompts, layers) are told when they are over. In between, every layer of every pass tells how much it
has done (`layer_done`), so that a prompt of thousands of tokens moves what shows it layer by layer. Whoever knows
beforehand how much work stages take says so (`foresee`): they then count by that, and the time left follows from it.

The unit is a token through all layers. A pass over a few tokens reads all weights like one over many, so it counts as
`LEAST` at least; which makes answers, a token a pass, worth about what they take on a processor.

How it fails: it does not. Where nobody looks (`watching`), telling costs a look at a variable. Work that was foreseen
wrongly makes the time left wrong: stages are right whatever was foreseen, and nothing ever goes back.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

LEAST = 32.0
"""Tokens that a pass counts as at least."""


class Ahead(NamedTuple):
    """Stages that follow one another, and what they take."""

    stages: int
    work: float
    """Of all of them."""


def cost(tokens: float) -> float:
    """The work of a pass over so many tokens, in all rows."""
    return max(tokens, LEAST)


class Effort:
    """How far something is.

    Args:
        show: called with this whenever it has changed.

    Attributes:
        what: is done now, where that is not what it began with.
        done: stages that are over.
        total: how many there are; None before that is known.
        tokens: that went through all layers.
    """

    def __init__(self, show: Callable[[Effort], None]) -> None:
        self._show = show
        self.tokens = 0.0
        self.turn_to("", None)

    def turn_to(self, what: str, total: int | None = 1) -> None:
        """Something else begins."""
        self.what, self.done, self.total = what, 0, total
        self._first = 0
        """The stage that `_ahead` begins with."""
        self._ahead: tuple[Ahead, ...] = ()
        self._since = 0.0
        """Work since the part in hand began."""
        self._within = 0.0
        """How much of the stage in hand is done, where it was said."""
        self._share = 0.0
        if what:
            self._show(self)

    def tell(self, done: int, total: int) -> None:
        """So many stages are over, of so many."""
        if self._part(done) != self._part(self.done):
            self._since = 0.0
        if done != self.done:
            self._within = 0.0
        self.done, self.total = done, total
        self._show(self)

    def within(self, share: float) -> None:
        """So much of the stage in hand is done, 0 … 1: of one of which nothing was foreseen."""
        self._within = min(share, 1.0)
        self._show(self)

    def foresee(self, ahead: Sequence[Ahead]) -> None:
        """The stages that come next, and what they take; in place of what was foreseen before."""
        self._first, self._ahead, self._since = self.done, tuple(one for one in ahead if one.stages > 0), 0.0

    def add(self, tokens: float, work: float) -> None:
        """So much more is done."""
        self.tokens += tokens
        self._since += work
        self._show(self)

    @property
    def share(self) -> float:
        """How much is done, 0 … 1; by work where it was foreseen, else by stages."""
        if self.total is None:
            return 0.0
        foreseen, work = sum(one.stages for one in self._ahead), sum(one.work for one in self._ahead)
        each = work / foreseen if work else 1.0  # of what was not foreseen
        whole = work + each * max(0, self.total - foreseen)
        others = min(self.done, self._first) + max(0, self.done - self._first - foreseen)
        if self.done < self.total and not self._first <= self.done < self._first + foreseen:
            others += self._within
        done = each * others
        at = self._first
        for one in self._ahead:
            inside = min(max(self.done - at, 0), one.stages)
            by_stages = one.work * inside / one.stages
            in_hand = at <= self.done < at + one.stages
            done += max(by_stages, min(self._since, one.work)) if in_hand else by_stages
            at += one.stages
        self._share = max(self._share, min(done / whole, 1.0) if whole else 1.0)
        return self._share

    def _part(self, done: int) -> int:
        """Which part a stage is in; those that were not foreseen are one each."""
        at = self._first
        for index, one in enumerate(self._ahead):
            at += one.stages
            if done < at:
                return index
        return len(self._ahead) + done - at


_LOOKING: ContextVar[Effort | None] = ContextVar("looking", default=None)


@contextmanager
def watching(effort: Effort) -> Generator[None]:
    """Passes inside tell `effort` what they do."""
    token = _LOOKING.set(effort)
    try:
        yield
    finally:
        _LOOKING.reset(token)


def watched() -> bool:
    """Whether anybody wants to know, so that it pays to foresee."""
    return _LOOKING.get() is not None


def layer_done(tokens: int, layers: int) -> None:
    """One of so many layers has run over so many tokens, in all rows."""
    effort = _LOOKING.get()
    if effort is not None:
        effort.add(tokens / layers, cost(float(tokens)) / layers)


def foresee(ahead: Sequence[Ahead]) -> None:
    """See `Effort.foresee`."""
    effort = _LOOKING.get()
    if effort is not None:
        effort.foresee(ahead)


def pieces(n: int) -> Callable[[], None]:
    """To be called whenever another of `n` pieces of the stage in hand is done."""
    effort, done = _LOOKING.get(), 0

    def another() -> None:
        nonlocal done
        done += 1
        if effort is not None:
            effort.within(done / n)

    return another


def turn_to(what: str) -> None:
    """See `Effort.turn_to`."""
    effort = _LOOKING.get()
    if effort is not None:
        effort.turn_to(what)
