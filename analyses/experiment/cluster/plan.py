"""What is shared among jobs, and how far each is: two kinds of small files, each with one writer.

How it fails: a file that is missing or damaged is none: what it told of is planned, or run, again.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from analyses.experiment.options.base import Options
from hybridlens.results import hash_json, write_json
from hybridlens.results.provenance import SHARDS, read_json

PLAN = "plan.json"
PROGRESS = "progress.json"
LOG = "log"
MERGE = "merge"
"""The job that puts the shards' work together."""

Held = TypeVar("Held", bound=BaseModel)


class Placed(BaseModel):
    """A job that was submitted."""

    job: str
    """The cluster's name of it; empty while it is being submitted."""
    token: str
    """Of this submission, which its reports bear; greater than those of the submissions before it."""
    wave: int
    done: int = 0
    """Units that its shard had done before."""
    futile: int = 0
    """Submissions before it that ended without a word, and without a unit done."""


class Plan(BaseModel):
    """What is shared, and among whom."""

    format: Literal[1] = 1
    asked: str
    """Digest of the experiment's options that a result or the division of the work depends on."""
    experiment: str
    job: str
    model: str
    command: str
    cluster: str
    shards: int
    waves: int
    wave: int = 0
    """The one being made; as many as there are when only the results are left to be put together."""
    complete: bool = False
    placed: dict[str, Placed] = {}
    """The latest job of each shard, by its name: its number, or `MERGE`."""

    def names(self) -> list[str]:
        """The jobs of the present wave."""
        return [MERGE] if self.wave >= self.waves else [str(shard) for shard in range(self.shards)]

    def present(self) -> dict[str, Placed]:
        """The latest job of each shard that has one in the present wave."""
        found = {name: self.placed.get(name) for name in self.names()}
        return {name: one for name, one in found.items() if one is not None and one.wave == self.wave}

    def jobs(self) -> list[str]:
        """The cluster's names of these."""
        return [one.job for one in self.present().values() if one.job]


class Report(BaseModel):
    """How far a job is."""

    token: str
    wave: int
    state: Literal["running", "queued", "done", "failed"] = "running"
    unit: str = "unit"
    total: int = 0
    done: int = 0
    done_before: int = 0
    """Units that an earlier job had done."""
    began: float
    """When its first part was begun, in seconds since 1970."""
    told: float
    """When this was written."""
    error: str = ""
    """The last line of what ended it."""
    said: list[str] = []
    """What the command prints, of the last job."""

    @property
    def pace(self) -> float | None:
        """Seconds a unit, None where none is done."""
        made = self.done - self.done_before
        return (self.told - self.began) / made if made > 0 else None


def place_of(folder: Path, name: str) -> Path:
    """The folder of a shard."""
    return folder / SHARDS / name


def new_token() -> str:
    """A token for a submission, greater than those of earlier ones."""
    return f"{time.time_ns():016x}-{uuid.uuid4().hex}"


def asked(options: Options, device: str, dtype: str) -> str:
    """A digest of all that an experiment is asked for, but for the memory, by which work that was begun is not cut."""
    values = options.model_dump(
        mode="json", exclude={"command", "memory"}, fallback=lambda v: getattr(v, "hash", None) or repr(v)
    )
    return hash_json([type(options).__name__, values, device, dtype])[:32]


def read_plan(folder: Path) -> Plan | None:
    """What is shared of a folder's run; None where nothing is."""
    return _read(Plan, folder / SHARDS / PLAN)


def write_plan(folder: Path, plan: Plan) -> None:
    """Write it, atomically."""
    write_json(folder / SHARDS / PLAN, plan.model_dump(mode="json"))


def read_report(folder: Path, name: str) -> Report | None:
    """How far a shard is; None where it has not said."""
    return _read(Report, place_of(folder, name) / PROGRESS)


def write_report(folder: Path, name: str, report: Report) -> None:
    """Write it, atomically."""
    report.told = time.time()
    write_json(place_of(folder, name) / PROGRESS, report.model_dump(mode="json"))


def _read(kind: type[Held], path: Path) -> Held | None:
    held: Any = read_json(path)
    try:
        return kind.model_validate(held)
    except ValidationError:
        return None
