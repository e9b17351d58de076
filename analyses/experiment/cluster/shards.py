"""What a job does: a share of the parts of one wave, or the last job, which puts all shares together.

Both are calls that submitit carries to where they run. The model is loaded once. Whatever is printed goes into the
shard's log, and how far it is into its report, twice a second at most. Where the queue wants the job's place, or its
time is up, submitit calls `checkpoint`, and the job is queued again as it is: what it has made stands in its folder.

How it fails: what is raised is the report's last word, and submitit's. A job whose time was up before a single part was
made would be queued for ever: that is refused in one line.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analyses.experiment.cluster.plan import LOG, MERGE, Report, place_of, write_report
from analyses.experiment.options.base import Options
from analyses.experiment.parts import loaded, share
from analyses.experiment.running import Experiment, conduct
from hybridlens.errors import HybridLensError, InputError
from hybridlens.progress import hidden
from hybridlens.results import Folder
from hybridlens.results.files import JOURNAL

OFTEN = 0.5
"""Seconds between two reports, at least."""

NEARLY = 0.8
"""Of the time allowed: a job that has run for so long was stopped because its time was up."""


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
    made: int = field(default=0, init=False)
    began: float = field(default=0.0, init=False)

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the shard."""

    @property
    def words(self) -> str:
        """What the job is, in its log."""
        return f"shard {self.name} of {self.shards}, wave {self.wave + 1},"

    @abstractmethod
    def work(self, experiment: Experiment[Any, Any], report: Report) -> None:
        """Do it, and tell."""

    def __call__(self) -> None:
        """Load the model and do the work."""
        self.began = now = time.time()
        self.made = 0
        place_of(self.folder, self.name).mkdir(parents=True, exist_ok=True)
        report = Report(token=self.token, wave=self.wave, began=now, told=now)
        with _logged(place_of(self.folder, self.name) / LOG), self._reported(report), hidden():
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self.words} begins", flush=True)
            experiment = loaded(self.experiment).opened(self.options, self.device, self.dtype)
            report.unit, report.began = experiment.unit, time.time()
            self.work(experiment, report)

    def checkpoint(self) -> Any:
        """What is queued again when the job has to make room: itself, with all that it has stored.

        Raises:
            InputError: its time was up, and no part was made.
        """
        from submitit.helpers import DelayedSubmission

        ran = time.time() - self.began
        if self.limit is not None and not self.made and ran >= NEARLY * self.limit:
            raise InputError(
                f"no part of shard {self.name} was done in {ran / 3600:.2g} hours; give more --time, or smaller parts "
                "(--batch-size)"
            )
        return DelayedSubmission(self)

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
        except SystemExit:  # submitit's, after `checkpoint`
            report.state = "queued"
            raise
        except BaseException as error:
            lines = " ".join(str(error).split())
            report.error = lines if isinstance(error, HybridLensError) else f"{type(error).__name__}: {lines}"[:500]
            report.state = "failed"
            if not isinstance(error, HybridLensError):
                traceback.print_exc()
            print(report.error, file=sys.stderr, flush=True)
            raise
        else:
            report.state = "done"
        finally:
            write_report(self.folder, self.name, report)


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
            done = 0
            for part in mine:
                before = _held(folder)
                part.make(lambda more, done=done: self.tell(report, done + more))
                done += part.units
                if _held(folder) != before:
                    self.made += 1
                elif not self.made:  # an earlier job had made it
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

    def work(self, experiment: Experiment[Any, Any], report: Report) -> None:
        """See `Task`."""

        def progress(done: int, total: int) -> None:
            self.made += done > report.done
            report.total = total
            self.tell(report, done)

        shards = [place_of(self.folder, str(shard)) for shard in range(self.shards)]
        outcome = conduct(experiment, self.folder, progress, shards)
        damaged = [f"damaged and made again: {line}" for line in outcome.damaged]
        report.done = report.total
        report.said = [*damaged, *outcome.record["remarks"], *experiment.table(outcome.result)]
        print("\n".join(report.said), flush=True)


def _held(folder: Folder) -> tuple[int, int]:
    """What tells whether something was stored: the number of artefacts, and bytes of cells."""
    cells = folder.path / JOURNAL
    return len(folder.record["artefacts"]), cells.stat().st_size if cells.exists() else 0


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
