"""The folder of one computation: refused where it holds another one, taken up where it holds a part of this one.

How it fails: `ResultsError`, before anything is computed where it can be known then.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybridlens.errors import ResultsError
from hybridlens.results.provenance import write_json
from hybridlens.results.record import RECORD, Manifest, now, read_record, refuse_another_run, started


def opened(folder: Path, manifest: Manifest, more: bool = False) -> dict[str, Any]:
    """The folder's record: that of the finished run it holds, or one of a run that begins or goes on now.

    Args:
        folder: made when it does not exist.
        manifest: what the run is.
        more: whether something may be added to a finished run, which then goes on.

    Raises:
        ResultsError: the folder holds another run, or cannot be used.
    """
    made(folder)
    compared = manifest.compared()
    with _used(folder / RECORD):
        before = read_record(folder)
        unknown = before is None and (folder / RECORD).exists()
    if unknown:
        raise ResultsError(f"{folder / RECORD} is not a run of this version; name another --out folder")
    if before is not None:
        refuse_another_run(folder, before, manifest, compared)
        if before["status"] == "complete" and not more:
            return before
    record = started(before, manifest, compared, [], 0, 0)
    with _used(folder / RECORD):
        write_json(folder / RECORD, record)
    return record


def made(folder: Path) -> Path:
    """A folder for results, made with those above it when it does not exist; returns it.

    Raises:
        ResultsError: it cannot be made, or is a file.
    """
    with _used(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def finish(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The record, marked as complete and written; the time is that of the first time it was.

    Raises:
        ResultsError: it cannot be written.
    """
    record |= {"status": "complete", "finished": record["finished"] or now()}
    with _used(folder / RECORD):
        write_json(folder / RECORD, record)
    return record


@contextmanager
def _used(path: Path) -> Generator[None]:
    """What the system refuses about a path, in one line."""
    try:
        yield
    except OSError as error:
        raise ResultsError(f"'{path}' cannot be used ({error.strerror}); name another --out folder") from error
