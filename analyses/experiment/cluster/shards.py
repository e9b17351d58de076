"""What a job does: a share of the parts of one wave, or the last job, which puts all shares together.

Both are calls that submitit carries to where they run. The model is loaded once. Whatever is printed goes into the
shard's log, and how far it is into its report, twice a second at most. Where the queue wants the job's place, or its
time is up, submitit calls `checkpoint`, and the job is queued again as it is: what it has made stands in its folder.

A job begins by asking the plan whether it is still the one that is to do this: one that waited in the queue while
another was submitted in its place ends at once. Where ``--device auto`` leaves the device to the jobs, the first says
for all whether it is a GPU.

How it fails: what is raised is the report's last word, and submitit's. A job that would be queued again and again
before a single part is made is refused in one line.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from analyses.experiment.cluster.plan import LOG, MERGE, Report, place_of, read_plan, write_report
from analyses.experiment.options.base import Options
from analyses.experiment.parts import loaded, share
from analyses.experiment.running import Experiment, conduct
from hybridlens.errors import HybridLensError, InputError
from hybridlens.progress import hidden
from hybridlens.results import Folder
from hybridlens.results.files import JOURNAL
from hybridlens.results.record import read_record
from hybridlens.results.settled import settle_among

OFTEN = 0.5
"""Seconds between two reports, at least."""

NEARLY = 0.8
"""Of the time allowed: a job that has run for so long, in one piece or in several, and made no part, never will."""

DEATH_SIGNAL = 1
"""Linux's `PR_SET_PDEATHSIG`."""


@dataclass
class Task(ABC):
    """A job; called where it runs.

    Attributes:
        experiment: its class, as "module:Class".
        options: the experiment's.
        device: to load the model on.
        dtype: to load it in.
        folder: of the whole run.
        shards: how many jobs share the work.
        wave: which part of it this is of.
        token: of the submission.
        limit: seconds that the job may take; None for no end.
        began: when it was called.
        before: what its folder held then.
        spent: seconds that it has run, whenever it was called, since something was made.
        leaving: whether it is to be queued again.
    """

    experiment: str
    options: Options
    device: str
    dtype: str
    folder: Path
    shards: int
    wave: int
    token: str
    limit: float | None = None
    began: float = field(default=0.0, init=False)
    before: tuple[int, int] = field(default=(0, 0), init=False)
    spent: float = field(default=0.0, init=False)
    leaving: bool = field(default=False, init=False)

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the shard."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What the job is, in its log."""

    @property
    def place(self) -> Path:
        """The folder of its results."""
        return place_of(self.folder, self.name)

    @abstractmethod
    def work(self, experiment: Experiment[Any, Any], report: Report) -> None:
        """Do it, and tell."""

    def __call__(self) -> None:
        """Load the model and do the work."""
        _end_with_its_controller()
        self.began = now = time.time()
        self.leaving = False
        at = time.strftime("%Y-%m-%d %H:%M:%S")
        logs = place_of(self.folder, self.name)
        logs.mkdir(parents=True, exist_ok=True)
        report = Report(token=self.token, wave=self.wave, began=now, told=now)
        with _logged(logs / LOG):
            if self._replaced():
                print(f"{at} {self.words} was submitted again meanwhile: nothing is left to do here", flush=True)
                return
            with self._reported(report), hidden():
                print(f"{at} {self.words} begins", flush=True)
                self.before = _held(self.place)
                experiment = loaded(self.experiment).opened(self.options, self._device(), self.dtype)
                report.unit, report.began = experiment.unit, time.time()
                self.work(experiment, report)

    def checkpoint(self) -> Any:
        """What is queued again when the job has to make room: itself, with all that it has stored.

        Raises:
            InputError: it has had about all the time that it may take, in one piece or several, and made no part.
        """
        from submitit.helpers import DelayedSubmission

        made = _held(self.place) != self.before
        self.spent = 0.0 if made else self.spent + time.time() - self.began
        if self.limit is not None and self.spent >= NEARLY * self.limit:
            raise InputError(
                f"no part of {self.words.rstrip(',')} was done in {self.spent / 3600:.2g} hours; give the same command "
                "with more --time"
            )
        self.leaving = True
        return DelayedSubmission(self)

    def _replaced(self) -> bool:
        """Whether another job was submitted for this one's work, after it."""
        plan = read_plan(self.folder)
        placed = None if plan is None else plan.placed.get(self.name)
        return placed is not None and placed.token > self.token

    def _device(self) -> str:
        """Where to load the model: where it is left to the jobs, on a GPU in all of them or in none.

        Raises:
            InputError: the others have one, and this one has none.
        """
        if self.device != "auto":
            return self.device
        here = "cuda" if torch.cuda.is_available() else "cpu"
        kind = settle_among(self.folder, "device", str, lambda: here)
        if kind != here:
            if kind != "cpu":
                raise InputError(
                    "there is no GPU here, and other jobs of this run have one; ask for one with --gpus, or name a "
                    "--partition of nodes that have some"
                )
            print("--device auto: the CPU, as the first job of this run had no GPU", flush=True)
        return "cpu" if kind == "cpu" else "auto"

    def tell(self, report: Report, done: int, at_once: bool = False) -> None:
        """Report so many units done."""
        report.done = done
        if at_once or time.time() - report.told >= OFTEN:
            write_report(self.folder, self.name, report)

    @contextmanager
    def _reported(self, report: Report) -> Generator[None]:
        """A report from the first second, and how it ended."""
        write_report(self.folder, self.name, report)
        try:
            yield
        except BaseException as error:
            if self.leaving:  # submitit ends the job; or the queue refuses it, and whoever waits submits it again
                report.state = "queued"
                raise
            report.error, report.state = self._line(error), "failed"
            if not isinstance(error, HybridLensError):
                traceback.print_exc()
            print(report.error, file=sys.stderr, flush=True)
            raise
        else:
            report.state = "done"
        finally:
            write_report(self.folder, self.name, report)

    def _line(self, error: BaseException) -> str:
        """What ended it, on one line."""
        words = " ".join(str(error).split())
        if isinstance(error, HybridLensError):
            return words
        lacking = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in words.lower())
        advice = "; give the same command with less --memory" if lacking and hasattr(self.options, "memory") else ""
        return f"{type(error).__name__}: {words}"[:500] + advice


@dataclass
class Shard(Task):
    """A share of a wave's parts.

    Attributes:
        shard: which, from 0.
    """

    shard: int = 0

    @property
    def name(self) -> str:
        """Its number."""
        return str(self.shard)

    @property
    def words(self) -> str:
        """See `Task`."""
        return f"shard {self.name} of {self.shards}, wave {self.wave + 1},"

    def work(self, experiment: Experiment[Any, Any], report: Report) -> None:
        """See `Task`; what the run has, and the waves before made in any shard, is there beforehand.

        Raises:
            ResultsError: the run's folder, or the shard's, holds another run.
        """
        manifest, expected = experiment.manifest(), experiment.expected()
        Folder(self.folder, manifest, expected)  # refuses another run
        with Folder.open(place_of(self.folder, self.name), manifest, expected, self.folder) as folder:
            folder.adopt(self.folder)
            for shard in range(self.shards):
                if shard != self.shard:
                    folder.adopt(place_of(self.folder, str(shard)), cells=False)
            mine = share(experiment.parts(folder, self.wave), self.shard, self.shards)
            report.total = sum(part.units for part in mine)
            report.began = time.time()
            self.tell(report, 0, at_once=True)
            done, made = 0, False
            for part in mine:
                before = _held(self.place)
                part.make(lambda more, done=done: self.tell(report, done + more))
                done += part.units
                made = made or _held(self.place) != before
                if not made:  # an earlier job had made it
                    report.done_before, report.began = done, time.time()
                self.tell(report, done, at_once=True)
                print(f"{time.strftime('%H:%M:%S')} {part.name}: {done} of {report.total}", flush=True)
            for line in folder.record["remarks"]:
                print(line, flush=True)


@dataclass
class Merge(Task):
    """The last job: the ordinary command, over what the shards made."""

    @property
    def name(self) -> str:
        """As of all last jobs."""
        return MERGE

    @property
    def words(self) -> str:
        """See `Task`."""
        return "putting the results together"

    @property
    def place(self) -> Path:
        """See `Task`."""
        return self.folder

    def work(self, experiment: Experiment[Any, Any], report: Report) -> None:
        """See `Task`."""

        def progress(done: int, total: int) -> None:
            report.total = total
            self.tell(report, done)

        shards = [place_of(self.folder, str(shard)) for shard in range(self.shards)]
        outcome = conduct(experiment, self.folder, progress, shards)
        damaged = [f"damaged and made again: {line}" for line in outcome.damaged]
        report.done = report.total
        report.said = [*damaged, *outcome.record["remarks"], *experiment.table(outcome.result)]
        print("\n".join(report.said), flush=True)


def _held(folder: Path) -> tuple[int, int]:
    """What tells whether something was stored: the number of artefacts, and bytes of cells."""
    record, cells = read_record(folder), folder / JOURNAL
    return 0 if record is None else len(record.artefacts), cells.stat().st_size if cells.exists() else 0


def _end_with_its_controller() -> None:
    """Have a process of this machine end with submitit's that started it: its number is the one that people know."""
    controller = os.environ.get("SUBMITIT_LOCAL_JOB_ID")
    if controller is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != int(controller):  # it has ended before
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _logged(path: Path) -> Generator[None]:
    """Have everything that the process prints go to a file, from whatever library."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(stream) for stream in (1, 2)]
    try:
        with path.open("a", encoding="utf-8", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
            yield
    finally:
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
