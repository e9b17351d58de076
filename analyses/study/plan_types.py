"""What a study takes, as typed results: a row for each experiment, and one for all together."""

from __future__ import annotations

from dataclasses import dataclass

from hybridlens.counting import SPARE, Expense, Machine
from hybridlens.display import Displayed, Table, count, many, size
from hybridlens.engine import Tally

MEANINGS = {
    "answers": "cells that come to the same are answered once",
    "tokens of prompts": "what reading each answer's prompt alone would read",
    "tokens read": "every shared beginning once, and again where its snapshot was dropped",
    "tokens written": "at most: answers that end sooner have fewer",
    "answers a batch": "at most",
    "Tflop": "floating-point operations, 10¹²",
    "TB moved": "weights and states, 10¹² bytes",
    "hours": "of one process",
}
"""Of the columns of a plan."""


@dataclass(frozen=True)
class Planned(Displayed):
    """What some experiments take.

    Attributes:
        experiment: its name; "together" for all in one study.
        cells: how many.
        answers: distinct ones; cells that come to the same are answered once.
        prompts: distinct ones.
        tokens: of the prompts of all answers, which reading each alone would read.
        tally: what reading comes to.
        rows: answers that a batch has at most.
        batches: of answers.
        expense: tokens read and, at most, written; operations, bytes and seconds.
        portions: seconds of each part that one process makes whole.
    """

    experiment: str
    cells: int
    answers: int
    prompts: int
    tokens: int
    tally: Tally
    rows: int
    batches: int
    expense: Expense
    portions: tuple[float, ...]

    def summary(self) -> str:
        """Cells, tokens and hours."""
        spent = self.expense
        return (
            f"{self.experiment}, {many(self.cells, 'cell')}, {count(spent.read)} tokens read and "
            f"{count(spent.written)} written, about {_three(self.hours)} hours"
        )

    def row(self) -> dict[str, str | int | float | bool | None]:
        """What it is in a table of several."""
        spent = self.expense
        return {
            "experiment": self.experiment,
            "cells": self.cells,
            "answers": self.answers,
            "tokens of prompts": self.tokens,
            "tokens read": spent.read,
            "tokens written": spent.written,
            "answers a batch": self.rows,
            "Tflop": _three(spent.operations / 1e12),
            "TB moved": _three(spent.moved / 1e12),
            "hours": _three(self.hours),
        }

    @property
    def hours(self) -> float:
        """Of one process."""
        return self.expense.seconds / 3600

    def hours_of(self, jobs: int) -> float:
        """Of the longest of several jobs, each portion going to whoever has least, the largest first."""
        loads = [0.0] * jobs
        for seconds in sorted(self.portions, reverse=True):
            loads[loads.index(min(loads))] += seconds
        return max(loads) / 3600


@dataclass(frozen=True)
class StudyPlan(Displayed):
    """What a study takes on a machine.

    Attributes:
        model: as it was named.
        dtype: of its weights.
        machine: what it runs on.
        weights: bytes.
        memory: bytes that may be held beside them, `--memory`.
        jobs: that share the work; None for one process.
        parts: a row for each experiment by itself, and one for all together where there are several.
        notes: what was chosen, left out or assumed, one sentence each.
    """

    model: str
    dtype: str
    machine: Machine
    weights: int
    memory: int
    jobs: int | None
    parts: tuple[Planned, ...]
    notes: tuple[str, ...]

    @property
    def whole(self) -> Planned:
        """Of the whole study."""
        return self.parts[-1]

    @property
    def gpus(self) -> int | None:
        """How many devices hold weights, budget and what a runtime needs; None where their memory is not known."""
        held = self.machine.memory
        return None if held is None else -(-(self.weights + self.memory) // (held - SPARE))

    def summary(self) -> str:
        """Model, machine, cells and hours."""
        cells = many(self.whole.cells, "cell")
        return f"{self.model} on {self.machine.name}: {cells}, about {_three(self.whole.hours)} hours"

    def table(self) -> Table:
        """A row for each experiment, and for all."""
        rows = [one.row() for one in self.parts]
        meanings = dict(MEANINGS)
        if self.jobs is not None:
            meanings["hours a job"] = f"of the longest of {many(self.jobs, 'job')}"
            hours = [_three(one.hours_of(self.jobs)) for one in self.parts]
            rows = [{**row, "hours a job": one} for row, one in zip(rows, hours, strict=True)]
        return Table(tuple(rows[0]), [tuple(row.values()) for row in rows], meanings)

    def lines(self) -> list[str]:
        """What stands around the table in a terminal."""
        gpus = "" if self.gpus is None else f"; {many(self.gpus, 'device')} of {size(self.machine.memory or 0)}"
        return [
            f"{self.model}, {self.dtype}, on {self.machine.name}: weights {size(self.weights)}, beside them at most "
            f"{size(self.memory)} (--memory){gpus}",
            f"The work has {many(len(self.whole.portions), 'portion')}, which jobs can share.",
            *self.notes,
        ]


def _three(value: float) -> float:
    """A number in three digits."""
    return float(f"{value:.3g}")
