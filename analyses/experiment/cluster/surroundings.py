"""What jobs are started in, and how: submitit, the Python that they run, their signals, environment and GPUs.

How it fails: `InputError` in one line for what is missing here, or what the cluster refuses.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import analyses
from hybridlens.errors import InputError


def submitit() -> Any:
    """The library.

    Raises:
        InputError: it is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            "--cluster needs submitit, which is not installed; pip install 'hybridlens[cluster]'"
        ) from error
    return submitit


@contextmanager
def refused(where: str) -> Generator[None]:
    """What a cluster refuses, as one line."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        yield
    except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else type(error).__name__)
        raise InputError(f"{where} refuses the jobs ({said}); see --partition, --time, --mem and --gpus") from error


@contextmanager
def unheard() -> Generator[None]:
    """What is started inside does not hear Ctrl-C, nor that the terminal is closed."""
    here = threading.current_thread() is threading.main_thread()
    heard = (signal.SIGINT, signal.SIGHUP) if here and sys.platform != "win32" else ()
    before = [signal.signal(number, signal.SIG_IGN) for number in heard]
    try:
        yield
    finally:
        for number, handler in zip(heard, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def outside() -> Generator[None]:
    """Without what a job of Slurm's is told of itself: jobs that it submits would take that for theirs."""
    inside = "SLURM_JOB_ID" in os.environ
    told = [name for name in os.environ if inside and name.startswith("SLURM_") and name != "SLURM_CONF"]
    kept = {name: os.environ.pop(name) for name in told}
    try:
        yield
    finally:
        os.environ.update(kept)


def python_words() -> str:
    """How a job starts Python: with the folder that it starts in among those it imports from only if we lie there."""
    ours = Path(str(analyses.__file__)).parents[1]
    return shlex.quote(sys.executable) + ("" if ours.samefile(Path.cwd()) else " -P")


def own_gpus() -> tuple[int, ...]:
    """The numbers of the GPUs that this process may use.

    Raises:
        InputError: they are told otherwise than by numbers, which submitit cannot pass on.
    """
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None or not count:
        return tuple(range(count))
    words = [word.strip() for word in named.split(",")][:count]
    if not all(word.isdecimal() for word in words):
        raise InputError(f"CUDA_VISIBLE_DEVICES is {named!r}, expected numbers: --cluster local gives each job some")
    return tuple(map(int, words))


def runs(process: int, folder: Path) -> bool:
    """Whether a process of submitit's for this folder has this number.

    Not for one that starts, whose words are not there yet.
    """
    try:
        os.kill(process, 0)
        if not Path("/proc/self").exists():
            return True
        *_, module, place, _ = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        return module == b"submitit.local._local" and folder.samefile(os.fsdecode(place))
    except (OSError, ValueError):
        return False
