"""nnsight's interleaver, one state for each thread.

nnsight keeps the run of a trace on its interleaver, which belongs to the model. Here every thread has a run of its
own on it, so that threads trace the same model at the same time, and those that do not trace see nothing of it.
Runs of the model that the block of a trace starts itself (`run_with_cache` inside ``with lens.trace(...)``) are no
part of that trace.

How it fails: only as nnsight's does.
"""

from __future__ import annotations

import threading
from typing import Any

from greenlet import getcurrent
from nnsight.intervention.interleaver import Interleaver, Mediator


class ThreadInterleaver(Interleaver, threading.local):
    """An interleaver whose attributes are a thread's own, but for the tree of handles.

    Args:
        envoys: nnsight's handles by module, the same for all threads.
    """

    def __init__(self, envoys: Any) -> None:  # run anew by each thread that comes by
        self._workers = False
        self._runner: Any = None
        super().__init__()
        self.envoys = envoys

    @property
    def busy(self) -> bool:
        """Whether the code that asks is the model's, in a trace of this thread that has a block to serve."""
        return self._workers and self.interleaving and getcurrent() is self._runner

    @busy.setter
    def busy(self, workers: bool) -> None:
        self._workers = workers

    def in_block(self) -> bool:
        """Whether the code that asks is the block of a trace of this thread."""
        if not self.interleaving:
            return False
        mediator = getattr(getcurrent(), "mediator", None)
        return mediator is not None and mediator() in self.mediators

    def __enter__(self) -> ThreadInterleaver:
        """As nnsight's, in the thread that traces."""
        self.mediators = [_own(mediator) if mediator.copy else mediator for mediator in self.mediators]
        self._runner = getcurrent()
        super().__enter__()
        return self


def _own(mediator: Any) -> Any:
    """For this trace alone, what is kept on the model for all: ``lens.nnsight.edit(inplace=True)``."""
    mine = object.__new__(Mediator)
    mine.__dict__.update(mediator.__dict__)
    return mine
