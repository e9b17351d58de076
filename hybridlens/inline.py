"""A trace whose block runs where it is written, for want of its source: a script on standard input, say.

nnsight reads the source of a ``with`` block, compiles it, and runs it in a greenlet of its own beside the model. Where
there is none to read, it is the other way round: the block runs as Python runs it, and the model in a greenlet. Both
take turns in the same way, so that everything that a block can do with one run it can do here. All its names outlive
it, saved or not.

How it fails: several invokes of one batch have to run side by side, which blocks that follow each other cannot:
`InputError`, with what to do. An error in the block is Python's own, at its line.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet
from nnsight.intervention.interleaver import Event, Mediator, Pending
from nnsight.tracing.tracer import dec, inc

from hybridlens.errors import InputError

SOURCELESS = (
    "no source can be read for the code that opened this trace (it came on standard input, or was made while running)"
)


class InlineBlock(Mediator):
    """The block of a trace, running where it is written.

    Args:
        run: runs the model with this block, in a greenlet of its own.
    """

    def __init__(self, run: Callable[[InlineBlock], Any]) -> None:
        self.home: Any = getcurrent()
        self.model = greenlet(lambda: run(self))
        self.copy = False
        self.failed = False
        """Whether the model raised, which the block hears of by itself."""
        self.interleaver: Any = None
        self.batch_group: Any = None
        self.worker: Any = None
        self.pending: Any = None
        self.iteration: int | None = 0
        self.counts_at_start: dict[str, int] = {}
        self.caches: list[Any] = []
        self.transform: Any = None
        self.exception: BaseException | None = None
        self._outer: Any = None

    # The model's side.

    @property
    def alive(self) -> bool:
        """Whether the block waits for something."""
        return self.pending is not None and not self.failed

    def start(self, interleaver: Any = None) -> None:
        """Let the block run up to its first request."""
        self.interleaver = interleaver
        self.counts_at_start = dict(interleaver.counts)
        self.worker = self.home
        self.pending = self.switch()

    def switch(self, *args: Any) -> Any:
        """Let the block run on with what it asked for, up to its next request; None when it is over."""
        return self.home.switch(*args)

    # The block's side.

    def enter(self) -> None:
        """Begin: the model runs up to where it would first hand something out."""
        self._outer = getattr(self.home, "mediator", None)
        self.home.mediator = weakref.ref(self)
        inc()
        try:
            self.model.switch()
        except BaseException:
            self._left()
            raise

    def exit(self, error: BaseException | None) -> bool:
        """End: the model runs on to its own end, or hears of the block's error; whether that is dealt with."""
        written = None if error is None else error.__traceback__
        try:
            if error is None:
                self.flush()
                self.model.switch(None)
                return False
            if self.model.dead:
                return False
            self.pending = None
            self.model.throw(error)
            return True  # the end of a loop that outran the run, or `tracer.stop()`
        except BaseException as raised:
            if error is not None and raised is error:
                error.__traceback__ = written  # the block's lines alone, not the model's
                return False
            raise
        finally:
            self._left()

    def request(self, event: Event, location: str, *rest: Any) -> Any:
        """Wait until the model is there."""
        occurrence = self.wanted(location)
        self.flush()
        return self.model.switch(Pending(event, location, occurrence, *rest))

    def flush(self) -> None:
        """Give what the block holds back to the model."""
        waiting, self.transform = self.transform, None
        if waiting is not None:
            self.model.switch(Pending(Event.SWAP, waiting.location, waiting.occurrence, waiting.fn()))

    def _left(self) -> None:
        dec()
        if self._outer is None:
            del self.home.mediator
        else:
            self.home.mediator = self._outer


def refuse(what: str) -> InputError:
    """Why something is not to be had without the source."""
    return InputError(f"{SOURCELESS}, and {what} needs it; put the code in a file and run that")
