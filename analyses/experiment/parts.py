"""Parts of an experiment's work that need nothing of each other, and how processes share them.

How it fails: it does not. Every process that knows the parts comes to the same division of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

Tell = Callable[[int], None]
"""Called with how many units of a part are done."""


class Part(NamedTuple):
    """Some of an experiment's work: what is made of it stands in the folder, and `Experiment.run` finds it there."""

    name: str
    units: int
    """How many of what the experiment's progress counts."""
    size: float
    """About how much work, by a measure of the experiment's own."""
    make: Callable[[Tell], object]
    """Makes what the folder lacks of it."""


def stage(name: str, make: Callable[[], object], size: float = 1.0) -> Part:
    """A part that is one unit."""

    def made(tell: Tell) -> None:
        make()
        tell(1)

    return Part(name, 1, size, made)


def share(parts: Sequence[Part], shard: int, shards: int) -> list[Part]:
    """The parts that one of several shards makes, in their order: the largest first to whoever has least."""
    loads = [0.0] * shards
    mine: list[int] = []
    for index in sorted(range(len(parts)), key=lambda i: (-parts[i].size, i)):
        least = loads.index(min(loads))
        loads[least] += parts[index].size
        if least == shard:
            mine.append(index)
    return [parts[index] for index in sorted(mine)]


def loaded(experiment: str) -> Any:
    """The class of an experiment that is named "module:Class"."""
    module, _, name = experiment.partition(":")
    return getattr(import_module(module), name)
