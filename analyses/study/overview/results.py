"""`Overview`: the runs, zoos and other reports under a folder, and the folders that hold none that can be read.

How it fails: pure; what could not be read is an `Unread` with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hybridlens.display import Displayed, Piece, Table, count, listed, many


@dataclass(frozen=True)
class FoundRun(Displayed):
    """One run.

    Attributes:
        place: its folder, relative to that of the overview, with slashes.
        job: the command's name.
        model: the model's.
        status: "complete"; "running" while a process writes it; "stopped" where the same command goes on.
        command: as typed; empty where it was not recorded.
        started: UTC, as ISO 8601 has it.
        finished: likewise; None before it is.
        cells: prompts under conditions that it has to ask; None for an experiment that has none.
        done: of them.
        finding: the first sentences of its report, the most important first.
        report: whether its report.html is there.
    """

    place: str
    job: str
    model: str
    status: Literal["complete", "running", "stopped"]
    command: str
    started: str
    finished: str | None
    cells: int | None
    done: int | None
    finding: tuple[str, ...]
    report: bool

    @property
    def complete(self) -> bool:
        """Whether it is finished."""
        return self.status == "complete"

    @property
    def state(self) -> str:
        """How far it is, and what to do where that is not all the way; empty where it is complete."""
        again = f"the same command {'goes on' if not self.complete else 'writes it again'}"
        again += f": {self.command}" if self.command else ""
        if self.complete:
            return "" if self.report else f"its report.html is missing; {again}"
        held = "" if self.cells is None else f" with {count(self.done or 0)} of {many(self.cells, 'cell')} done"
        return f"running now{held}" if self.status == "running" else f"stopped{held}; {again}"

    def summary(self) -> str:
        """What was asked of which model, and how far that is, or its first sentence."""
        said = self.state or (self.finding[0] if self.finding else "complete")
        return f"{self.place}: {self.job} of {self.model}: {said}"


@dataclass(frozen=True)
class FoundZoo(Displayed):
    """Runs of many models that `hybridlens zoo` asked the same.

    Attributes:
        place: its folder, relative to that of the overview.
        runs: one for each model and experiment.
        answers: what the models say together, a sentence each; empty where the zoo is not finished.
        note: why there are no answers, or what to know of them; empty for nothing.
        report: whether its report.html is there.
    """

    place: str
    runs: tuple[FoundRun, ...]
    answers: tuple[str, ...]
    note: str
    report: bool

    @property
    def models(self) -> dict[str, tuple[FoundRun, ...]]:
        """Model -> its runs."""
        names = dict.fromkeys(run.model for run in self.runs)
        return {name: tuple(run for run in self.runs if run.model == name) for name in names}

    def summary(self) -> str:
        """How many runs of which models."""
        return f"{self.place}: {many(len(self.runs), 'run')} of {listed(self.models, 9)}"


@dataclass(frozen=True)
class FoundPage(Displayed):
    """A report that is no run's own: studies side by side, say.

    Attributes:
        place: its folder, relative to that of the overview.
        title: as the browser's window has it.
        says: its first sentence; empty where it has none.
    """

    place: str
    title: str
    says: str

    def summary(self) -> str:
        """Its title and first sentence."""
        return f"{self.place}: {self.title}{f': {self.says}' if self.says else ''}"


@dataclass(frozen=True)
class Unread(Displayed):
    """A folder from which nothing is shown.

    Attributes:
        place: relative to that of the overview.
        why: the reason, and what to do.
    """

    place: str
    why: str

    def summary(self) -> str:
        """Where, and why."""
        return f"{self.place}: {self.why}"


@dataclass(frozen=True)
class Overview(Displayed):
    """What stands under a folder.

    Attributes:
        folder: the folder.
        runs: those that belong to no zoo, by their places.
        zoos: runs of many models.
        pages: other reports.
        unread: folders from which nothing is shown.
    """

    folder: Path
    runs: tuple[FoundRun, ...]
    zoos: tuple[FoundZoo, ...]
    pages: tuple[FoundPage, ...]
    unread: tuple[Unread, ...]

    def every(self) -> Iterator[FoundRun]:
        """All runs, those of zoos too."""
        yield from self.runs
        for one in self.zoos:
            yield from one.runs

    @property
    def models(self) -> tuple[str, ...]:
        """Their names, each once."""
        return tuple(dict.fromkeys(run.model for run in self.every()))

    @property
    def unfinished(self) -> tuple[FoundRun, ...]:
        """The runs that are not complete, or have lost their report."""
        return tuple(run for run in self.every() if run.state)

    def summary(self) -> str:
        """How many runs of which models, how many of them not finished, and how many folders without one."""
        runs = tuple(self.every())
        said = f"{many(len(runs), 'run')} of {listed(self.models, 4)}"
        parts = [said, *([many(len(self.zoos), "zoo")] if self.zoos else [])]
        parts += [f"{count(len(self.unfinished))} not finished"] if self.unfinished else []
        parts += [f"{many(len(self.unread), 'folder')} not read"] if self.unread else []
        return "; ".join(parts)

    def table(self) -> Table:
        """A row for each run."""
        columns = ("place", "experiment", "model", "status", "started", "finished", "cells", "finding")
        rows = [
            (run.place, run.job, run.model, run.status, run.started, run.finished, run.cells, " ".join(run.finding))
            for run in self.every()
        ]
        return Table(columns, rows)

    def view(self) -> tuple[Piece, ...]:
        """The first sentence of each run; folders that were not read."""
        rows = [(run.place, run.model, run.state or next(iter(run.finding), "")) for run in self.every()]
        return (
            Table(("place", "model", "found"), rows),
            *([Table(("folder", "why it is not shown"), [(one.place, one.why) for one in self.unread])]
              if self.unread else []),
        )  # fmt: skip
