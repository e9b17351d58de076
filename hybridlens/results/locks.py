"""One process at a time writes a run's folder: it holds a lock on it, which the system takes back when it ends.

How it fails: `locked` raises `ResultsError` where another process holds the folder. On Windows, and on disks that know
no such locks, nothing is held back.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from hybridlens.errors import ResultsError
from hybridlens.results.provenance import usable

MOMENT = 0.1
"""Seconds after which a held lock is tried for once more: someone may only have looked (`is_locked`)."""


@contextmanager
def locked(
    folder: Path, refusal: str = "is being written by another process; wait for it, or give another --out folder"
) -> Generator[None]:
    """Hold a folder for this process; a process that ends lets go of it.

    Args:
        folder: that exists.
        refusal: what is said of one that another process holds.

    Raises:
        ResultsError: another process holds it.
    """
    with usable(folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        if sys.platform != "win32":
            import fcntl

            try:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(MOMENT)
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ResultsError(f"{folder} {refusal}") from error
        yield
    finally:
        os.close(handle)


def is_locked(folder: Path) -> bool:
    """Whether a process is writing a folder; a lock that is taken to see it is let go of at once.

    Raises:
        ResultsError: the folder is not there, or the system refuses to look.
    """
    try:
        with locked(folder):
            return False
    except ResultsError as error:
        if isinstance(error.__cause__, BlockingIOError):
            return True
        raise
