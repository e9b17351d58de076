"""The process that submits jobs and waits for them, wave by wave, and then for the one that puts all together.

It loads no model. What it knows stands in the plan and in the jobs' reports, so that it may be stopped at any time:
jobs go on, and the same command joins them, submits those again that failed, and goes on waiting. While it waits, a
job that ended without a word (killed, or its node lost) is submitted again, unless it does so again and again with
nothing done; one that was cancelled, had too little memory, or failed with an error, is not.

A submission stands in the plan before it is made, so that a job which nobody heard of any more, since this process was
killed as it submitted it, finds itself replaced (`Task`).

How it fails: `ResultsError` with what the shards failed of; `Left` where it is stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from analyses.experiment.cluster.jobs import AWAY, Jobs, jobs_of, need, shards_of
from analyses.experiment.cluster.plan import (
    MERGE,
    PLAN,
    Placed,
    Plan,
    Report,
    asked,
    new_token,
    place_of,
    read_plan,
    read_report,
    write_plan,
)
from analyses.experiment.cluster.shards import Merge, Shard, Task
from analyses.experiment.options.base import Options
from analyses.experiment.options.cluster import ClusterConfig
from analyses.experiment.parts import loaded
from hybridlens.errors import InputError, ResultsError
from hybridlens.results.locks import locked
from hybridlens.results.provenance import SHARDS, usable
from hybridlens.results.record import read_record
from hybridlens.results.settled import forget
from hybridlens.viz.article import REPORT

FUTILE = 2
"""Jobs of a shard that end without a word and without anything done, before it counts as failed."""

Say = Callable[[str], object]


class Left(KeyboardInterrupt):
    """The process that waits was stopped; its words say what goes on."""

    def __init__(self, folder: Path, running: int, cause: KeyboardInterrupt) -> None:
        many = "1 submitted job goes on" if running == 1 else f"{running} submitted jobs go on"
        super().__init__(
            f"stopped waiting; {many}: hybridlens status {folder} shows how far, and the same command waits again"
        )
        self.status = int(getattr(cause, "status", 130))


def submit(
    experiment: str,
    options: Options,
    folder: Path,
    device: str,
    dtype: str,
    config: ClusterConfig,
    say: Say,
) -> None:
    """Have an experiment made by jobs, into a folder, and say what it found; nothing where it is finished.

    Args:
        experiment: its class, as "module:Class".
        options: the experiment's.
        folder: of the results.
        device: for each job.
        dtype: likewise.
        config: where jobs run, and how many.
        say: given what the command prints, line by line.

    Raises:
        InputError: submitit is missing, no such device or dtype exists anywhere, or the cluster refuses.
        ResultsError: the folder's jobs are another command's, someone else waits for them, or some have failed.
        Left: Ctrl-C or SIGTERM.
    """
    wanted = asked(options, device, dtype)
    if finished(folder, wanted, options.command):
        say(f"finished, nothing to submit: {folder}")
        return
    need(config)
    _check_names(device, dtype)
    kind = loaded(experiment)
    with usable(folder):
        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    with locked(folder / SHARDS, "already has a process that submits its jobs; wait for it, or stop it"):
        for part in (folder / SHARDS).glob(f".{PLAN}.*.part"):  # which a process that was killed has left
            part.unlink(missing_ok=True)
        plan = read_plan(folder)
        if plan is None or plan.complete:
            forget(folder)
            plan = Plan(
                asked=wanted, experiment=experiment, job=kind.job, model=options.model, command=options.command,
                cluster=str(config.cluster), shards=shards_of(config, device), waves=kind.waves_of(options),
            )  # fmt: skip
        elif plan.asked != wanted:
            raise ResultsError(
                f"{folder / SHARDS} holds unfinished jobs of another command ({plan.command}); finish that, or remove "
                "the folder, or give another --out folder"
            )
        elif plan.cluster != config.cluster:
            raise InputError(
                f"--cluster {config.cluster} given, but the jobs of {folder} are on {plan.cluster}; give that"
            )
        elif config.jobs not in (None, plan.shards):
            say(f"--jobs {config.jobs} given, but the work was divided among {plan.shards} before, and stays so")
        write_plan(folder, plan)
        jobs = jobs_of(config, folder, f"hybridlens {plan.job}", device)
        given = (experiment, options, device, dtype, folder.absolute(), plan.shards)

        def task(name: str, token: str) -> Task:
            here = (*given, plan.wave, token, jobs.limit)
            return Merge(*here) if name == MERGE else Shard(*here, shard=int(name))

        Waiting(plan, folder, jobs, task, say).run()


def finished(folder: Path, wanted: str, command: str) -> bool:
    """Whether a folder holds the whole of what is asked for, made by jobs or by one process."""
    record, plan = read_record(folder), read_plan(folder)
    if record is None or record.status != "complete":
        return False
    if plan is not None and plan.asked == wanted:
        return plan.complete
    return bool(command) and any(session.command == command for session in record.sessions)


def _check_names(device: str, dtype: str) -> None:
    """Refuse now what every job would refuse, maybe after hours in a queue.

    Raises:
        InputError: a device that no machine has.
        UnknownNameError: a dtype that there is not.
    """
    import torch

    from hybridlens.devices import DEVICES
    from hybridlens.loading import resolve_dtype

    if dtype != "auto":
        resolve_dtype(dtype)
    try:
        torch.device("cpu" if device == "auto" else device)
    except RuntimeError as error:
        raise InputError(f"--device {device!r} given, expected {DEVICES} or auto") from error


class Waiting:
    """Submits what is not there, and waits until all is done.

    Args:
        plan: what is shared.
        folder: of the results.
        jobs: where they are submitted.
        task: makes the task of a shard, from its name and a token.
        say: given each line for the user.

    Attributes:
        words: what the cluster said of the jobs of the present wave when it was asked last.
        mine: tokens of what this process has submitted.
        gone: tokens of those that have ended without a word, and when that was first seen.
        told: tokens of those whose failure was told.
    """

    def __init__(self, plan: Plan, folder: Path, jobs: Jobs, task: Callable[[str, str], Task], say: Say) -> None:
        self.plan = plan
        self.folder = folder
        self.jobs = jobs
        self.task = task
        self.say = say
        self.words: Mapping[str, str] = {}
        self.mine: set[str] = set()
        self.gone: dict[str, float] = {}
        self.told: set[str] = set()

    def run(self) -> None:
        """Wave by wave, then the last job; errors as `submit`."""
        plan = self.plan
        while True:
            with self._left():
                self._wave()
            if plan.wave >= plan.waves:
                break
            plan.wave += 1
            write_plan(self.folder, plan)
        report = read_report(self.folder, MERGE)
        forget(self.folder)
        plan.complete = True
        write_plan(self.folder, plan)
        for line in [] if report is None else report.said:
            self.say(line)
        self.say(f"report: {self.folder / REPORT}")

    def _wave(self) -> None:
        """All jobs of the present wave."""
        names = self.plan.names()
        while True:
            found = self._look(names)
            if all(state == "done" for state in found.values()):
                return
            going = [name for name, state in found.items() if state == "alive"]
            lacking = [name for name, state in found.items() if state in ("absent", "killed")]
            room = len(lacking) if self.jobs.most is None else max(0, self.jobs.most - len(going))
            failed = [name for name in names if found[name] == "failed"]
            if lacking[:room]:
                self._submit(lacking[:room])
            elif not going:
                raise ResultsError(self._failures(failed))
            for name in failed:
                if self.plan.placed[name].token not in self.told:
                    self.told.add(self.plan.placed[name].token)
                    self.say(f"shard {name} failed, the others go on: {self._failure(name)}")
            time.sleep(self.jobs.wait)

    def _look(self, names: list[str]) -> dict[str, str]:
        """What each is: done, alive, absent, killed (to be submitted again) or failed."""
        placed = self.plan.present()
        self.words = self.jobs.alive(self.plan.jobs())
        return {name: self._state(placed.get(name), read_report(self.folder, name), self.words) for name in names}

    def _state(self, placed: Placed | None, report: Report | None, alive: Mapping[str, str]) -> str:
        if placed is None:
            return "absent"
        told = report is not None and report.token == placed.token
        if told and report is not None and report.state == "done":
            return "done"
        word = alive.get(placed.job)
        if word is not None and word not in AWAY:
            self.gone.pop(placed.token, None)
            return "alive"
        if placed.token not in self.mine:  # an earlier process submitted it: the same command tries again
            return "absent"
        if word in AWAY or (told and report is not None and report.state == "failed"):
            return "failed"
        if time.monotonic() - self.gone.setdefault(placed.token, time.monotonic()) < self.jobs.grace:
            return "alive"
        gained = told and report is not None and report.done > placed.done
        return "killed" if gained or placed.futile < FUTILE else "failed"

    def _submit(self, names: list[str]) -> None:
        placed: list[Placed] = []
        for name in names:
            with usable(self.folder):
                place_of(self.folder, name).mkdir(parents=True, exist_ok=True)
            report, before = read_report(self.folder, name), self.plan.placed.get(name)
            here = report is not None and report.wave == self.plan.wave
            done = report.done if here and report is not None else 0
            again = before is not None and before.token in self.mine and done <= before.done
            futile = before.futile + 1 if again and before is not None else 0
            placed.append(Placed(job="", token=new_token(), wave=self.plan.wave, done=done, futile=futile))
        self.plan.placed |= dict(zip(names, placed, strict=True))
        write_plan(self.folder, self.plan)
        made = self.jobs.submit([self.task(name, one.token) for name, one in zip(names, placed, strict=True)])
        for one, job in zip(placed, made, strict=True):
            one.job = job
            self.mine.add(one.token)
        write_plan(self.folder, self.plan)
        what = "the job that puts all together" if names == [MERGE] else f"shards {', '.join(names)}"
        self.say(f"submitted: {what} (job {', '.join(made)}); hybridlens status {self.folder} shows how far they are")

    def _failures(self, names: list[str]) -> str:
        """What failed, in one line."""
        found = [f"{name}: {self._failure(name)}" for name in names]
        same = {line.partition(": ")[2] for line in found}
        shown = same.pop() if len(same) == 1 else "; ".join(found[:3])
        logs = place_of(self.folder, names[0] if len(names) == 1 else "*") / "log"
        return (
            f"{len(names)} of {len(self.plan.names())} jobs failed ({shown}); see {logs}, and give the same command to "
            "submit them again"
        )

    def _failure(self, name: str) -> str:
        """What one failed of."""
        report, placed = read_report(self.folder, name), self.plan.placed[name]
        if report is not None and report.token == placed.token and report.error:
            return report.error
        return AWAY.get(self.words.get(placed.job, ""), "ended without a word: killed, or its node lost")

    @contextmanager
    def _left(self) -> Generator[None]:
        try:
            yield
        except KeyboardInterrupt as stop:
            alive = self.jobs.alive(self.plan.jobs())
            running = sum(word not in AWAY for word in alive.values())
            raise Left(self.folder, running, stop) from None
