"""How much memory a run's work is cut by, which is settled once for all of its processes, and how much is here.

How it fails: a machine that has less free than the run was begun with does not stop it, nor does a smaller size that
is given to jobs that go on: what is cut stays as it is, what is computed at once gets smaller, and the run's record
says that rounding may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from hybridlens import machine
from hybridlens.engine import in_words
from hybridlens.results import Folder


class Room(NamedTuple):
    """Bytes that may be held beside the weights."""

    settled: int
    """In all processes of a run alike: what its work is cut by."""
    here: int
    """What may be computed at once in this one."""


def room(
    folder: Folder,
    memory: int | None,
    devices: Iterable[torch.device],
    check: Callable[[int], object] = lambda settled: None,
) -> Room:
    """What a run has settled, now at the latest, and what of it is here.

    Args:
        folder: the run's.
        memory: what the user says; it is taken as it is said, but of shared work that was begun with less. None for a
            share of what is free when it is settled.
        devices: that the model is on.
        check: raises where so much is not enough; then nothing is settled, and another try may have more.

    Raises:
        ResultsError: see `Folder.settle`.
    """
    on = set(devices)
    if memory is not None:
        check(memory)

    def find() -> int:
        found = machine.budget(on)
        check(found)
        return found

    before = folder.record["settled"].get("memory")
    settled = folder.settle("memory", memory, find)
    if before is not None and before != settled:
        folder.remark(
            f"the run was begun with {in_words(before)} beside the weights and went on with {in_words(settled)}: its "
            "work was cut otherwise from then on, and what was made is the same but for rounding"
        )
    here = machine.within(on, settled) if memory is None else min(settled, memory)
    if here < settled:
        folder.remark(
            f"the run was begun with {in_words(settled)} beside the weights; a process that went on with it had "
            f"{in_words(here)}: it ran smaller batches, and what it made is the same but for rounding"
        )
    return Room(settled, here)
