"""Jobs as submitit has them: an array of Slurm's, or processes of this machine.

Submitit writes the batch script, carries the call, hears the queue's signals and queues a job again
(`Task.checkpoint`). Whether a job is still there is asked of Slurm by `squeue`, since `sacct`, which submitit asks,
needs accounting, which not every cluster has; of processes by their number.

A job imports what the process that submits it does: not what lies in the folder that it starts in, such as a user's
own folder of the name of one of our packages.

How it fails: without submitit, or where the cluster refuses a job, `InputError` with one line. A queue that does not
answer tells nothing: every job counts as being there until it does.
"""

from __future__ import annotations

import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analyses.experiment.cluster.surroundings import outside, own_gpus, python_words, refused, runs, submitit, unheard
from analyses.experiment.options.cluster import ClusterConfig
from hybridlens.errors import InputError
from hybridlens.results.provenance import SHARDS

HOURS = 12.0
"""That a job of Slurm's may take, where nothing is said."""

YEAR = 60 * 24 * 365
"""Minutes: no end."""

DELAY = 90
"""Seconds between the signal that a job's time is up and its end, at most."""

REQUEUES = 10_000
"""How often submitit queues a job again; `Task.checkpoint` ends what is futile."""

Call = Callable[[], object]
"""A `Task`, or any other call that can be pickled."""


class Jobs(ABC):
    """Where jobs are submitted, and asked after.

    Attributes:
        most: how many this process lets run at a time; None where the cluster sees to it.
        wait: seconds between two looks.
        grace: seconds until one that is gone without a word is believed to be: its last word may not be seen yet.
    """

    most: int | None = None
    wait = 5.0
    grace = 60.0

    def __init__(self, config: ClusterConfig, folder: Path, title: str, device: str) -> None:
        self.config = config
        self.folder = folder / SHARDS / "jobs"
        self.title = title
        self.device = device

    @property
    def limit(self) -> float | None:
        """Seconds that a job may take."""
        return None if self.config.time is None else 3600 * self.config.time

    @property
    def delay(self) -> int:
        """Seconds between the signal and the end."""
        return int(min(DELAY, (self.limit or YEAR) / 4))

    @abstractmethod
    def submit(self, tasks: Sequence[Call]) -> list[str]:
        """Submit tasks; returns their names.

        Raises:
            InputError: submitit is missing, or the cluster refuses.
        """

    @abstractmethod
    def alive(self, jobs: Sequence[str]) -> Mapping[str, str]:
        """Those of some jobs that wait or run, or were ended for good (`AWAY`), with the cluster's word for it."""


class SlurmJobs(Jobs):
    """An array of Slurm's."""

    def __init__(self, config: ClusterConfig, folder: Path, title: str, device: str) -> None:
        if config.time is None:
            config = config.model_copy(update={"time": HOURS})
        super().__init__(config, folder, title, device)

    def submit(self, tasks: Sequence[Call]) -> list[str]:
        """See `Jobs`."""
        config = self.config
        given: dict[str, Any] = {
            "timeout_min": max(1, round((self.limit or 0) / 60)),
            "slurm_signal_delay_s": self.delay,
            "slurm_array_parallelism": config.array_parallelism or len(tasks),
            "name": self.title,
            "slurm_partition": config.partition,
            "gpus_per_node": config.gpus_for(self.device, self.has_gpus) or None,
            "mem_gb": None if config.mem is None else config.mem / 2**30,
            "slurm_additional_parameters": {"requeue": True},  # also where a site has it otherwise
        }
        with refused("Slurm"), outside():
            executor = submitit().AutoExecutor(
                self.folder, "slurm", slurm_max_num_timeout=REQUEUES, slurm_python=python_words()
            )
            executor.update_parameters(**{name: value for name, value in given.items() if value is not None})
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
            return [job.job_id for job in jobs]

    def has_gpus(self) -> bool:
        """Whether Slurm knows of GPUs in the partition; False where it does not answer."""
        of = [] if self.config.partition is None else [f"--partition={self.config.partition}"]
        try:
            asked = ["sinfo", "--noheader", "--format=%G", *of]
            return "gpu" in subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            return False

    def alive(self, jobs: Sequence[str]) -> Mapping[str, str]:
        """See `Jobs`; one that was ended is known for some minutes. Of one that waits, why, if that says something."""
        if not jobs:
            return {}
        arrays = ",".join(dict.fromkeys(job.partition("_")[0] for job in jobs))
        try:
            asked = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={arrays}", "--format=%i|%T|%r"]
            answer = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return dict.fromkeys(jobs, "unknown")
        if answer.returncode and "Invalid job id" not in answer.stderr:
            return dict.fromkeys(jobs, "unknown")
        found: dict[str, str] = {}
        for line in answer.stdout.splitlines():
            job, state, reason = (*line.strip().split("|", 2), "", "")[:3]
            if state and state not in ENDED:
                waits = state in ("PENDING", "REQUEUE_HOLD", "SPECIAL_EXIT") and reason not in USUAL
                found[job] = f"{state.lower()} ({reason})" if waits else state.lower()
        return {job: found[job] for job in jobs if job in found}


ENDED = frozenset(("BOOT_FAIL", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "PREEMPTED", "TIMEOUT"))
"""Slurm's words for a job that is over; whatever else it may say of one, now or one day, the job is still there."""

AWAY = {
    "cancelled": "someone has cancelled it",
    "out_of_memory": "it took more main memory than it had, and was killed; give the same command with more --mem",
}
"""Words for a job that was ended for good, and what a person is told: it is not submitted again unless asked for."""

USUAL = ("", "None", "Priority", "Resources")
"""Why jobs wait where all is well."""


class LocalJobs(Jobs):
    """Processes of this machine, which go on where the one that submits them is stopped."""

    wait = 0.5
    grace = 0.0

    def __init__(self, config: ClusterConfig, folder: Path, title: str, device: str) -> None:
        super().__init__(config, folder, title, device)
        self.most = min(config.array_parallelism or config.shards, config.shards)
        self._running: dict[int, Any] = {}

    def submit(self, tasks: Sequence[Call]) -> list[str]:
        """See `Jobs`; each has GPUs of its own while there are enough, and shares them where there are more jobs."""
        there = own_gpus()
        gpus = self.config.gpus_for(self.device, lambda: bool(there))
        if 0 < len(there) < gpus:
            raise InputError(f"--gpus {gpus} given, expected at most {len(there)}: this machine has no more")
        there = there or tuple(range(gpus))
        names: list[str] = []
        for task in tasks:
            self._running = {slot: job for slot, job in self._running.items() if not job.done()}
            slot = next(slot for slot in range(len(self._running) + 1) if slot not in self._running)
            with refused("this machine"), unheard():
                executor = submitit().LocalExecutor(self.folder, max_num_timeout=REQUEUES, python=python_words())
                executor.update_parameters(
                    timeout_min=YEAR if self.limit is None else self.limit / 60,
                    signal_delay_s=self.delay,
                    gpus_per_node=gpus,
                    visible_gpus=tuple(there[n % len(there)] for n in range(slot * gpus, (slot + 1) * gpus)),
                )
                job = executor.submit(task)
            self._running[slot] = job
            names.append(job.job_id)
        return names

    def alive(self, jobs: Sequence[str]) -> Mapping[str, str]:
        """See `Jobs`."""
        mine = {job.job_id for job in self._running.values() if not job.done()}  # `done` lets go of what has ended
        return {job: "running" for job in jobs if job in mine or runs(int(job), self.folder)}


def jobs_of(config: ClusterConfig, folder: Path, title: str, device: str) -> Jobs:
    """Where the jobs of a cluster are."""
    return (SlurmJobs if config.cluster == "slurm" else LocalJobs)(config, folder, title, device)


def shards_of(config: ClusterConfig, device: str) -> int:
    """How many jobs share the work: of this machine no more than have GPUs of their own, unless it is said."""
    if config.jobs is not None or config.cluster == "slurm" or device == "cpu":
        return config.shards
    there = own_gpus()
    each = config.gpus_for(device, lambda: bool(there))
    return max(1, min(config.shards, len(there) // each)) if each and there else config.shards


def need(config: ClusterConfig) -> None:
    """Refuse what cannot be used.

    Raises:
        InputError: submitit, or Slurm, is not installed.
    """
    submitit()
    lacking = next((name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None), None)
    if config.cluster == "slurm" and lacking is not None:
        raise InputError(
            f"--cluster slurm given, but there is no {lacking} here; run it where jobs are submitted, or "
            "--cluster local"
        )
