"""Settings that are settled once for a whole run, by the process that needs them first, and are the same ever after.

What is asked of the machine, as memory is, may be answered otherwise at another time or on another node. A run keeps
the first answer in its `run.json`. Shards, of which any may be the first and none may write there, agree by a file
beside them, which only one of them can make; the run itself takes it over, and as long as the file is there nothing
else counts: shards that go on later divide the work as those before them did.

How it fails: a file of this kind that is damaged raises `ResultsError`; it is not settled anew beside shards that have
read it.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from hybridlens.errors import ResultsError
from hybridlens.results.provenance import SHARDS, read_json, usable, write_json
from hybridlens.results.record import read_record

AGREED = "settled-"
"""What the names of shards' files begin with."""

MOMENTS = 30
"""Tenths of a second that a file is waited for which another process is writing, on a disk without links."""

Value = TypeVar("Value", int, str)


def settled(folder: Path, name: str) -> int | None:
    """What a run has settled a setting to; None where it has not.

    Raises:
        ResultsError: see the module.
    """
    found = agreed(folder, name, int)
    if found is not None:
        return found
    record = read_record(folder)
    return None if record is None else record.settled.get(name)


def settle_among(folder: Path, name: str, kind: type[Value], find: Callable[[], Value]) -> Value:
    """What the shards of a run have settled a setting to, by the first of them that asks.

    Args:
        folder: of the whole run.
        name: of the setting.
        kind: of its value.
        find: what it is where no shard has settled it.

    Raises:
        ResultsError: see the module; or the system refuses.
    """
    held = agreed(folder, name, kind)
    if held is None:
        _make_first(_file(folder, name), find())
        held = agreed(folder, name, kind)
    assert held is not None
    return held


def agreed(folder: Path, name: str, kind: type[Value]) -> Value | None:
    """What shards have agreed on; None where they have not, or no longer need to.

    Raises:
        ResultsError: see the module.
    """
    path = _file(folder, name)
    for _ in range(MOMENTS):
        held: Any = read_json(path)
        if isinstance(held, kind) and held:
            return held
        if not path.exists():
            return None
        time.sleep(0.1)
    raise ResultsError(f"{path} is damaged; remove it, and give the same command again")


def forget(folder: Path) -> None:
    """Remove what shards have agreed on, when their work is done or divided anew; a run's own record keeps it."""
    with usable(folder):
        for path in (folder / SHARDS).glob(f"{AGREED}*.json"):
            path.unlink(missing_ok=True)


def _file(folder: Path, name: str) -> Path:
    return folder / SHARDS / f"{AGREED}{name}.json"


def _make_first(path: Path, value: int | str) -> None:
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
