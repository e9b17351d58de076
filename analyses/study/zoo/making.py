"""Running what is not done yet: every experiment of every model as a command in a process of its own, several at once.

A finished run is known by a mark beside its folder, which holds a digest of its command, of the model's weights and
configuration, and of the run itself; it is not opened again. What is not finished is gone on with by the same command.
Processes have as many threads as there are cores for each.

How it fails: an experiment that a model rules out, by its sizes or by what it answers, is no failure: its refusal is
kept. One that fails leaves its output in a log; the others go on, and then `ResultsError` names it, as it does where
every experiment was refused. Where this process
is stopped, so are those it began, which keep what they have done.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from analyses.experiment.checkpoints import meta_lens
from analyses.experiment.running import Stopped
from analyses.study.zoo.parts import PARTS, Part
from hybridlens.boundary import public
from hybridlens.config import LensConfig
from hybridlens.errors import InputError, ResultsError
from hybridlens.loading import checkpoint
from hybridlens.results import hash_json, hash_weights
from hybridlens.results.folder import digest_of
from hybridlens.results.provenance import read_json, usable, write_json
from hybridlens.results.record import RECORD, read_record

POLL = 0.2
"""Seconds between looks at the processes."""

PATIENCE = 30.0
"""Seconds that a stopped process has to store what it has done."""

BESIDE = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
"""Files of a model that change what it is asked, or where its answers end."""

REFUSED = 2
"""Exit status of a command that says in one line what is wrong."""


class Subject(NamedTuple):
    """A model of the zoo.

    Attributes:
        name: its own, and of its folder of results.
        model: as commands take it.
        cfg: its sizes.
        digest: of its weights' files and its configuration.
        beside: of its tokenizer's files and what ends its answers.
    """

    name: str
    model: str
    cfg: LensConfig
    digest: str
    beside: str = ""


class Task(NamedTuple):
    """One experiment of one model that a process makes."""

    subject: Subject
    part: Part
    folder: Path
    words: list[str]

    @property
    def log(self) -> Path:
        """What the process prints."""
        return self.folder.with_suffix(".log")

    @property
    def mark(self) -> Path:
        """That it is finished, and of what."""
        return self.folder.with_suffix(".done")

    @property
    def said(self) -> str:
        """Which it is."""
        return f"{self.part.name} of {self.subject.name}"

    @property
    def digest(self) -> str:
        """Of what was asked of what, and of the run that is there."""
        record = read_record(self.folder)
        run = None if record is None or record.status != "complete" else [record.fingerprint, record.finished]
        place = self.words.index("--device") if "--device" in self.words else len(self.words)
        asked = self.words[:place] + self.words[place + 2 :]  # where it is run changes no result
        return hash_json([asked, self.subject.digest, self.subject.beside, run])

    def finished(self) -> bool:
        """Whether it was made, of this model, and is there as it was, file by file."""
        held = read_json(self.mark) if self.mark.is_file() else None
        if not isinstance(held, dict) or held.get("digest") != self.digest:
            return False
        record = read_record(self.folder)
        listed = {} if record is None else record.artefacts
        files = {self.folder / name: stated.digest for name, stated in listed.items()}
        return all(path.is_file() and digest_of(path) == digest for path, digest in files.items())

    def finish(self) -> None:
        """Say that it was made."""
        write_json(self.mark, {"digest": self.digest})


@public
def subjects_of(models: Sequence[str]) -> tuple[Subject, ...]:
    """The models by their names, which are the last parts of what commands take.

    Raises:
        InputError: two have one name, or a model's files are not at hand.
        HybridLensError: a model that cannot be opened.
    """
    found: dict[str, Subject] = {}
    for model in models:
        name = Path(model).name
        if name in found:
            raise InputError(f"{found[name].model} and {model} are both called {name}; rename a folder")
        files = checkpoint(model)
        weights = files.weights()
        if not files.at_hand(weights):
            raise InputError(f"the weights of {model} are not at hand; fetch them first, and name their folder")
        digest = hash_json([hash_weights(files.folder, weights), files.json("config.json")])
        beside = hash_json([files.json(file) for file in BESIDE])
        found[name] = Subject(name, model, meta_lens(files).cfg, digest, beside)
    return tuple(found.values())


def make(
    subjects: Sequence[Subject],
    parts: Sequence[str],
    out: Path,
    device: str,
    dtype: str,
    jobs: int | None,
    progress: Callable[[int, int], None],
) -> dict[tuple[str, str], str]:
    """Run what is not done yet, and wait for it.

    Args:
        subjects: the models.
        parts: names of `PARTS`.
        out: each model has a folder in it, each of its experiments a folder in that.
        device: of every process.
        dtype: likewise.
        jobs: processes at once; when None one a core this process may use, or one a GPU where they run on GPUs.
        progress: called with what is done and what there is in all.

    Returns:
        (model's name, part) -> the refusal of what a model rules out.

    Raises:
        ResultsError: some failed; what the others made is kept.
        Stopped: Ctrl-C or SIGTERM.
    """
    refused: dict[tuple[str, str], str] = {}
    tasks: list[Task] = []
    for name in parts:  # the longest first, of all models
        for subject in subjects:
            reason = PARTS[name].refusal(subject.model, subject.cfg)
            if reason:
                refused[subject.name, name] = reason
                continue
            folder = out / subject.name / name
            tasks.append(Task(subject, PARTS[name], folder, PARTS[name].words(subject.model, folder, device, dtype)))
    todo = [task for task in tasks if not task.finished()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = torch.cuda.device_count() if device == "auto" or device.startswith("cuda") else 0
    side_by_side = jobs or gpus or cores
    threads = max(1, cores // side_by_side)
    made = _work(todo, side_by_side, threads, out, lambda n: progress(len(tasks) - n, len(tasks)))
    if made and len(made) == len(tasks):
        raise ResultsError(f"every experiment was refused; {made[0][0].said}: {made[0][1]}")
    return refused | {(task.subject.name, task.part.name): line for task, line in made}


def _work(
    todo: Sequence[Task], jobs: int, threads: int, out: Path, left: Callable[[int], None]
) -> list[tuple[Task, str]]:
    """Have processes do all tasks, so many at once; returns those that were refused, with the line that says why.

    An experiment refuses what its model rules out before it touches its folder (`analyses.experiment.running`), and so
    a command that ends with a line and leaves no run has nothing to ask. It is tried again by the next session.
    """
    waiting, failed, refused = list(todo), list[str](), list[tuple[Task, str]]()
    running: list[tuple[Task, subprocess.Popen[bytes]]] = []
    left(len(todo))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                running.append((task, _begin(task, threads)))
            time.sleep(POLL)
            ended = [(task, process) for task, process in running if process.poll() is not None]
            for task, process in ended:
                running.remove((task, process))
                if process.returncode == REFUSED and not (task.folder / RECORD).exists():
                    refused.append((task, _last(task.log, REFUSED)))
                elif process.returncode:
                    failed.append(f"{task.said} ({_last(task.log, process.returncode)})")
                else:
                    task.finish()
                left(len(waiting) + len(running))
    except BaseException as stop:
        _stop([process for _, process in running])
        if isinstance(stop, KeyboardInterrupt):
            raise Stopped(out, stop) from None
        raise
    if failed:
        raise ResultsError(
            f"not finished: {'; '.join(failed)}; the rest is kept, and the same command tries these again"
        )
    return refused


def _begin(task: Task, threads: int) -> subprocess.Popen[bytes]:
    """A process that makes one, and writes what it says into the log."""
    with usable(task.folder.parent):
        task.folder.parent.mkdir(parents=True, exist_ok=True)
        log = task.log.open("wb")
    with log:
        return subprocess.Popen(
            [sys.executable, "-m", "analyses.cli", *task.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,  # so that Ctrl-C comes from here alone, once
        )


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stop processes as SIGTERM stops a command, and end those that do not."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last(log: Path, status: int) -> str:
    """What a process said last, for the line that says why."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = lines[-1].removeprefix("hybridlens: ") if lines else "it said nothing"
    ended = "" if status == REFUSED else f"ended by signal {-status}, " if status < 0 else f"exit status {status}, "
    return f"{ended}{said}; its output is {log}" if status != REFUSED else said
