"""Which scan kernels are installed, and which of them each family gets on a device.

Neither is decided here: `hybridlens.recurrences.kernels.choice` says what is installed and chooses, and the table of
families (`hybridlens.supported`) says which scan of a family a kernel can run, as the tests found it.

How it fails: choosing imports the library that is chosen; one that cannot be imported is left out, and what it said is
among the `ScanChoices.troubles`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch

from hybridlens.doctor.private import private
from hybridlens.recurrences.kernels import choice
from hybridlens.supported import Verdict, supported

PLAIN = "torch"
"""What `use_kernels` calls the plain code."""

STATES = 16
"""State entries of a channel, as published models of Mamba have them."""


class FamilyScan(NamedTuple):
    """What runs a family's recurrence."""

    family: str
    operation: str | None
    """The scan that a kernel can run, as `kernels.choice` names it; None where none can, or there is no state."""
    reason: str
    """Why there is no such scan; empty where there is one."""
    runs: dict[str, str]
    """Kind of device → the kernel's name, or "torch"."""


class ScanChoices(NamedTuple):
    """What `scan_choices` found."""

    installed: tuple[str, ...]
    """Kernels whose packages are there."""
    families: tuple[FamilyScan, ...]
    troubles: tuple[str, ...]
    """What libraries said that are installed and cannot be imported."""


def scan_choices(kinds: Sequence[str]) -> ScanChoices:
    """What is installed, and what each family gets.

    Args:
        kinds: of devices: "cpu", "cuda", "mps".

    Raises:
        ResultsError: an installation without the table of families.
    """
    installed = tuple(kernel.name for kernel in choice.KERNELS if choice.installed(kernel))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        families = tuple(
            FamilyScan(row.family, found.by or None, _reason(found), {kind: _runs(found.by, kind) for kind in kinds})
            for row in supported().rows
            for found in (row.checks["kernels"],)
        )
    troubles = dict.fromkeys(private(str(one.message)) for one in said)
    return ScanChoices(installed, families, tuple(troubles))


def _reason(found: Verdict) -> str:
    """Why no kernel runs a family's recurrence."""
    return "no layer holds a recurrent state" if found.word == "none" else found.reason


def _runs(operation: str, kind: str) -> str:
    """What would run the float32 scan of some tokens."""
    if not operation:
        return PLAIN
    case = choice.Case(operation, kind, frozenset({torch.float32}), steps=2, elements=1, states=STATES)
    chosen = choice.choose(case, "auto")
    return PLAIN if chosen is None else chosen.name
