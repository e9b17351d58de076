"""nnsight's interleaver, one state for each thread, and what the block of a trace is given.

nnsight keeps the run of a trace on its interleaver, which belongs to the model. Here every thread has a run of its
own on it, so that threads trace the same model at the same time, and those that do not trace see nothing of it.
Runs of the model that the block of a trace starts itself (`run_with_cache` inside ``with lens.trace(...)``) are no
part of that trace.

What a block reads is a copy, which becomes the model's when the block goes on to the next value (`Handed`): so what
was saved before is not changed by what is written in place later, and nothing upstream is. `Live` is what a hook
point's handle and a module's offer: ``output``, ``input`` and ``inputs``.

How it fails: as nnsight's does. A value asked for outside a trace, two writings in place that contradict each other,
and a module that did not run raise `HookFunctionError`.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from greenlet import getcurrent
from nnsight.intervention.interleaver import Event, Interleaver, Mediator
from nnsight.intervention.util import first_input, replace_first_input
from nnsight.util import apply
from torch import Tensor, nn

from hybridlens.errors import HookFunctionError
from hybridlens.siblings import know_each_other
from hybridlens.visits import version

ROOT = "model"
"""What the locations of the lens's own hook points begin with."""


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
        self.location = ""
        """Which value is being handed out."""
        self.modules: dict[str, nn.Module] = {}
        """The modules of the Hugging Face model whose values this run hands out, by path."""

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

    def awaited(self, path: str) -> bool:
        """Whether a block, or a cache, waits for what comes to a place, or what goes from it."""
        parked, observers = self.parked, self.observers
        if not parked and not observers:
            return False
        given, made = f"{path}.input", f"{path}.output"
        return made in parked or given in parked or made in observers or given in observers

    def __enter__(self) -> ThreadInterleaver:
        """As nnsight's, in the thread that traces."""
        know_each_other([mediator for mediator in self.mediators if not mediator.copy])
        self.mediators = [_own(mediator) if mediator.copy else mediator for mediator in self.mediators]
        self._runner = getcurrent()
        super().__enter__()
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> bool:
        """As nnsight's; a block that runs where it is written hears of the model's error by itself."""
        if exc_type is not None:
            workers: list[Any] = self.mediators
            for mediator in workers:
                mediator.failed = True
        return super().__exit__(exc_type, exc_value, traceback)

    def handle(self, provider: str, value: Any) -> Any:
        """As nnsight's; an invoke whose rows read nothing in this pass has no part in it, and does not count it."""
        batcher = self.batcher
        if batcher is None or not batcher.batching:
            return super().handle(provider, value)
        outer, idle = self.location, [m for m in self.mediators if batcher.idle(m.batch_group)]
        caches = self.observers.get(provider)
        if idle and caches:
            self.observers[provider] = [entry for entry in caches if entry[0] not in idle]
        self.location = provider
        try:
            return super().handle(provider, value)
        finally:
            self.location = outer
            for mediator in idle:
                mediator.counts_at_start[provider] = mediator.counts_at_start.get(provider, 0) + 1
            if idle and caches:
                self.observers[provider] = caches

    def _ready(self, provider: str) -> list[Any]:
        ready: list[Any] = super()._ready(provider)
        return ready if self.batcher is None else [m for m in ready if not self.batcher.idle(m.batch_group)]

    def check_dangling_mediators(self) -> None:
        """As nnsight's; a module that did not run at all says so, at the line that waits for it."""
        workers: list[Any] = self.mediators
        for mediator in workers:
            location: str = "" if mediator.pending is None else mediator.pending.provider or ""
            path = location.rpartition(".")[0]
            if mediator.alive and path in self.modules and not mediator.occurrence(location):
                why = (
                    f"'{location}' has no value in this trace: the module did not run, since the lens reads its "
                    "weights alone, or nothing was sent to it; use a hook point of its layer"
                )
                mediator.worker.throw(HookFunctionError(why))
        super().check_dangling_mediators()


def _own(mediator: Any) -> Any:
    """For this trace alone, what is kept on an edited handle for all of its traces."""
    mine = object.__new__(Mediator)
    mine.__dict__.update(mediator.__dict__)
    return mine


# What a block asks for.


def ask(location: str) -> Any:
    """In a block: the value at a location, a copy of its own, which becomes the model's when the block moves on."""
    mediator: Any = Mediator.current(location)
    occurrence, waiting = mediator.wanted(location), mediator.transform
    if waiting is not None and (waiting.location, waiting.occurrence) == (location, occurrence):
        return waiting.again()
    value = request(Event.VALUE, location)
    if any(tensor.is_meta for tensor in _tensors(value)):  # no values to mix up, and none by which to see a change
        return value
    mediator.transform = Handed(location, occurrence, value)
    return mediator.transform.latest


def put(location: str, value: Any) -> None:
    """In a block: the value that takes the place of the one at a location."""
    request(Event.SWAP, location, value)


def request(event: Event, location: str, *rest: Any) -> Any:
    """Wait for the model, in the block that runs now."""
    mediator: Any = Mediator.current(location)
    mediator.asked = mediator.__dict__.get("asked", 0) + 1  # by which a loop knows that it waits for something
    own = getattr(mediator, "request", None)
    return Mediator.event(event, location, *rest) if own is None else own(event, location, *rest)


class Handed:
    """What a block holds of one value, until it goes back to the model: nnsight's write-back.

    The first to ask gets a copy. Whoever asks again gets a copy of that: so a tensor that was saved before is not
    changed by what is written in place to ``point.output`` later, while ``point.output[:, 5] += f(point.output)``,
    which reads twice and writes to the first, acts.

    Args:
        location: where it was read.
        occurrence: at which visit.
        value: the model's: a tensor, or tuples of them.
    """

    def __init__(self, location: str, occurrence: int, value: Any) -> None:
        self.location = location
        self.occurrence = occurrence
        self.earlier: Any = None
        self._earlier_marks: list[int | Tensor] = []
        self.latest = _copied(value)
        self._marks = _marks(self.latest)

    def again(self) -> Any:
        """A copy for another reading at the same visit."""
        current = self.fn()
        self.earlier, self._earlier_marks = current, _marks(current)
        self.latest = _copied(current)
        self._marks = _marks(self.latest)
        return self.latest

    def fn(self) -> Any:
        """What the model goes on with: the copy that was written in place, if any was.

        Raises:
            HookFunctionError: when two were.
        """
        if self.earlier is None or not _touched(self.earlier, self._earlier_marks):
            return self.latest
        if _touched(self.latest, self._marks):
            raise HookFunctionError(
                f"'{named(self.location)}' was read twice and both tensors were then written in place; "
                "write to the one that was read last"
            )
        return self.earlier


def named(location: str) -> str:
    """A location as its user knows it."""
    return location.removeprefix(f"{ROOT}.")


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    apply(value, lambda tensor: found.append(tensor), Tensor)
    return found


def _copied(value: Any) -> Any:
    return apply(value, lambda tensor: tensor.clone(), Tensor)


def _marks(value: Any) -> list[int | Tensor]:
    """What tensors are like now; in inference mode nothing counts writings."""
    return [tensor.clone() if tensor.is_inference() else version(tensor) for tensor in _tensors(value)]


def _touched(value: Any, marks: list[int | Tensor]) -> bool:
    """Whether any tensor was written in place since."""
    for tensor, mark in zip(_tensors(value), marks, strict=True):
        if isinstance(mark, Tensor):
            if not torch.equal(mark.nan_to_num(), tensor.nan_to_num()):
                return True
        elif version(tensor) != mark:
            return True
    return False


class Live:
    """What has a value while the model runs, and a location by which a trace's block asks for it."""

    path: Any

    def _at(self, side: str) -> str:
        return f"{self.path}.{side}"

    @property
    def output(self) -> Any:
        """What came out: read it, write to it in place, or assign to it."""
        return ask(self._at("output"))

    @output.setter
    def output(self, value: Any) -> None:
        put(self._at("output"), value)

    @property
    def inputs(self) -> Any:
        """What it was called with, as (args, kwargs)."""
        return ask(self._at("input"))

    @inputs.setter
    def inputs(self, value: Any) -> None:
        put(self._at("input"), value)

    @property
    def input(self) -> Any:
        """The first of what it was called with."""
        args, kwargs = ask(self._at("input"))
        return first_input(args, kwargs)

    @input.setter
    def input(self, value: Any) -> None:
        args, kwargs = ask(self._at("input"))
        put(self._at("input"), replace_first_input(args, kwargs, value))
