"""Jobs as submitit has them: an array of Slurm's, or processes of this machine.

Submitit writes the batch script, carries the call, hears the queue's signals and queues a job again
(`Task.checkpoint`). Whether a job is still there is asked of Slurm by `squeue`, since `sacct`, which submitit asks,
needs accounting, which not every cluster has; of processes by their number.

How it fails: without submitit, or where the cluster refuses a job, `InputError` with one line. A queue that does not
answer tells nothing: every job counts as being there until it does.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    """

    most: int | None = None
    wait = 5.0

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
        """Those of some jobs that wait, run or were cancelled, with the cluster's word for what they do."""


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
        }
        with _refused("Slurm"):
            executor = _submitit().AutoExecutor(self.folder, "slurm", slurm_max_num_timeout=REQUEUES)
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
        """See `Jobs`; a cancelled job is known for some minutes."""
        if not jobs:
            return {}
        arrays = ",".join(dict.fromkeys(job.partition("_")[0] for job in jobs))
        try:
            asked = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={arrays}", "--format=%i|%T"]
            answer = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return dict.fromkeys(jobs, "unknown")
        if answer.returncode and "Invalid job id" not in answer.stderr:
            return dict.fromkeys(jobs, "unknown")
        states = dict(line.strip().split("|") for line in answer.stdout.splitlines() if "|" in line)
        return {job: states[job].lower() for job in jobs if states.get(job, "") in STILL}


STILL = frozenset(
    ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
     "PREEMPTED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT", "CANCELLED")
)  # fmt: skip
"""Slurm's words for a job that will go on by itself, and for one that someone has taken away."""


class LocalJobs(Jobs):
    """Processes of this machine, which go on where the one that submits them is stopped."""

    wait = 0.5

    def __init__(self, config: ClusterConfig, folder: Path, title: str, device: str) -> None:
        super().__init__(config, folder, title, device)
        self.most = min(config.array_parallelism or config.shards, config.shards)
        self._running: dict[int, Any] = {}

    def submit(self, tasks: Sequence[Call]) -> list[str]:
        """See `Jobs`; each has GPUs of its own while there are enough, and shares them where there are more jobs."""
        there = _gpus()
        gpus = self.config.gpus_for(self.device, lambda: bool(there))
        names: list[str] = []
        for task in tasks:
            self._running = {slot: job for slot, job in self._running.items() if not job.done()}
            slot = next(slot for slot in range(len(self._running) + 1) if slot not in self._running)
            with _refused("this machine"), _unheard():
                executor = _submitit().LocalExecutor(self.folder, max_num_timeout=REQUEUES)
                executor.update_parameters(
                    timeout_min=YEAR if self.limit is None else self.limit / 60,
                    signal_delay_s=self.delay,
                    gpus_per_node=gpus,
                    visible_gpus=tuple(n % max(1, there) for n in range(slot * gpus, (slot + 1) * gpus)),
                )
                job = executor.submit(task)
            self._running[slot] = job
            names.append(job.job_id)
        return names

    def alive(self, jobs: Sequence[str]) -> Mapping[str, str]:
        """See `Jobs`."""
        mine = {job.job_id for job in self._running.values() if not job.done()}  # `done` lets go of what has ended
        return {job: "running" for job in jobs if job in mine or _runs(int(job))}


def jobs_of(config: ClusterConfig, folder: Path, title: str, device: str) -> Jobs:
    """Where the jobs of a cluster are."""
    return (SlurmJobs if config.cluster == "slurm" else LocalJobs)(config, folder, title, device)


def need(config: ClusterConfig) -> None:
    """Refuse what cannot be used.

    Raises:
        InputError: submitit, or Slurm, is not installed.
    """
    _submitit()
    if config.cluster == "slurm" and shutil.which("sbatch") is None:
        raise InputError(
            "--cluster slurm given, but there is no sbatch here; run it where jobs are submitted, or --cluster local"
        )


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            "--cluster needs submitit, which is not installed; pip install 'hybridlens[cluster]'"
        ) from error
    return submitit


@contextmanager
def _refused(where: str) -> Generator[None]:
    """What a cluster refuses, as one line."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        yield
    except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else type(error).__name__)
        raise InputError(f"{where} refuses the jobs ({said}); see --partition, --time, --mem and --gpus") from error


@contextmanager
def _unheard() -> Generator[None]:
    """What is started inside does not hear Ctrl-C, nor that the terminal is closed."""
    here = threading.current_thread() is threading.main_thread()
    heard = (signal.SIGINT, signal.SIGHUP) if here and sys.platform != "win32" else ()
    before = [signal.signal(number, signal.SIG_IGN) for number in heard]
    try:
        yield
    finally:
        for number, handler in zip(heard, before, strict=True):
            signal.signal(number, handler)


def _gpus() -> int:
    """How many GPUs this machine has."""
    import torch

    return torch.cuda.device_count()


def _runs(process: int) -> bool:
    """Whether a process of submitit's has this number; not for one that starts, whose words are not there yet."""
    try:
        os.kill(process, 0)
        words = Path(f"/proc/{process}/cmdline")
        return not Path("/proc/self").exists() or b"submitit" in words.read_bytes()
    except OSError:
        return False
