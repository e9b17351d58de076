"""Settings that are settled once for a whole run, by the process that needs them first, and are the same ever after.

What is asked of the machine, as memory is, may be answered otherwise at another time or on another node. A run keeps
the first answer in its `run.json`. Shards, of which any may be the first and none may write there, agree by a file
beside them, which only one of them can make; the run itself takes it over.

How it fails: a file of this kind that is damaged raises `ResultsError`; it is not settled anew beside shards that have
read it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hybridlens.errors import ResultsError
from hybridlens.results.provenance import SHARDS, read_json, usable, write_json
from hybridlens.results.record import read_record

AGREED = "settled-"
"""What the names of shards' files begin with."""


def settled(folder: Path, name: str) -> int | None:
    """What a run has settled a setting to; None where it has not.

    Raises:
        ResultsError: see the module.
    """
    record = read_record(folder)
    held = None if record is None else record.settled.get(name)
    return _agreed(_file(folder, name)) if held is None else held


def settle_among(folder: Path, name: str, find: Callable[[], int]) -> int:
    """What the shards of a run have settled a setting to, by the first of them that asks.

    Args:
        folder: of the whole run.
        name: of the setting.
        find: what it is where neither a shard nor the run itself has settled it.

    Raises:
        ResultsError: see the module; or the system refuses.
    """
    path = _file(folder, name)
    held = _agreed(path)
    if held is None:
        held = settled(folder, name)
        _make_first(path, find() if held is None else held)
        held = _agreed(path)
    assert held is not None
    return held


def forget(folder: Path) -> None:
    """Remove what shards have agreed on; the shards of a new plan go by what the run itself has settled."""
    with usable(folder):
        for path in (folder / SHARDS).glob(f"{AGREED}*.json"):
            path.unlink(missing_ok=True)


def _file(folder: Path, name: str) -> Path:
    return folder / SHARDS / f"{AGREED}{name}.json"


def _agreed(path: Path) -> int | None:
    """What a file says; None where there is none."""
    held: Any = read_json(path)
    if isinstance(held, int) and held > 0:
        return held
    if path.exists():
        raise ResultsError(f"{path} is damaged; remove it, and give the same command again")
    return None


def _make_first(path: Path, value: int) -> None:
    """Write a file, whole, unless there is one."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    with usable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_json(part, value)
            try:
                os.link(part, path)
            except FileExistsError:
                pass
            except OSError:  # a disk without links
                with suppress(FileExistsError), path.open("xb") as file:
                    file.write(part.read_bytes())
        finally:
            part.unlink(missing_ok=True)
