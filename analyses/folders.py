"""The folder of one computation: refused where it holds another one, taken up where it holds a part of this one.

How it fails: `ResultsError`, before anything is computed.
"""

from __future__ import annotations

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
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(f"'{folder}' cannot be used ({error.strerror}); name another --out folder") from error
    compared = manifest.compared()
    before = read_record(folder)
    if before is None and (folder / RECORD).exists():
        raise ResultsError(f"{folder / RECORD} is not a run of this version; name another --out folder")
    if before is not None:
        refuse_another_run(folder, before, manifest, compared)
        if before["status"] == "complete" and not more:
            return before
    record = started(before, manifest, compared, [], 0, 0)
    write_json(folder / RECORD, record)
    return record


def finish(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The record, marked as complete and written; the time is that of the first time it was."""
    record |= {"status": "complete", "finished": record["finished"] or now()}
    write_json(folder / RECORD, record)
    return record
