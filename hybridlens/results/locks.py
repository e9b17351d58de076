"""One process at a time writes a run's folder: it holds a lock on it, which the system takes back when it ends.

What is locked is a file in the folder, `LOCK`, that is there only while it is held: a lock on the folder itself would
be seen by no other machine on NFS, where only files that are open for writing have locks that all nodes know of. Who
gets a lock on a file that another process has removed meanwhile, as it let go of it, tries again.

How it fails: `locked` raises `ResultsError` where another process holds the folder. On Windows, and in a folder that
cannot be written, nothing is held back; nor on disks that know no such locks, which a warning says.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from hybridlens.errors import ResultsError
from hybridlens.results.provenance import usable

LOCK = ".lock"

MOMENT = 0.1
"""Seconds after which a held lock is tried for once more: someone may only have looked (`is_locked`)."""

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)
"""What disks say that know no locks."""

NO_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS)

GONE = (errno.ENOENT, errno.ESTALE)
"""What is said of a file that has been removed; `ESTALE` on NFS."""


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
    try:
        try:
            handle = _held(folder)
        except BlockingIOError:
            time.sleep(MOMENT)
            handle = _held(folder)
    except BlockingIOError as error:
        raise ResultsError(f"{folder} {refusal}") from error
    try:
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                (folder / LOCK).unlink()  # while it is held: whoever has it open sees that it is gone
            os.close(handle)


def is_locked(folder: Path) -> bool:
    """Whether a process is writing a folder; a lock that is taken to see it is let go of at once.

    Raises:
        ResultsError: the folder is not there, or the system refuses to look.
    """
    if sys.platform == "win32":
        return False
    import fcntl

    with usable(folder):
        folder.stat()
        try:
            handle = os.open(folder / LOCK, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        finally:
            os.close(handle)
    return False


def _held(folder: Path) -> int | None:
    """An open file that holds a folder; None where nothing can be held.

    Raises:
        BlockingIOError: another process holds it.
        ResultsError: the system refuses.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    while True:
        handle = _opened(folder)
        if handle is None:
            if is_locked(folder):
                raise BlockingIOError
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), (folder / LOCK).stat()):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError as error:
            if error.errno in NO_LOCKS:
                warnings.warn(
                    f"the disk of '{folder}' knows no locks ({error.strerror}): nothing keeps two processes from "
                    "writing there at once",
                    stacklevel=2,
                )
                return handle
            if error.errno not in GONE:
                os.close(handle)
                with usable(folder):
                    raise
        os.close(handle)  # whoever held it has removed it


def _opened(folder: Path) -> int | None:
    """The file that is locked, open for writing; None in a folder that cannot be written."""
    with usable(folder):
        try:
            return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno not in NO_WRITING:
                raise
            return None
