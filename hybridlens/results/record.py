"""What a run is, as `run.json` keeps it, and how two runs are told apart.

A run is the values that can change what it gives: arguments, seed, config, weights, rubric and prompts. Their digest
is the run's fingerprint, which every stored cell and artefact is signed with. The record itself carries a digest, so
that a changed digit in it is seen. How it fails: `refuse_another_run` raises `ResultsError` with the first value that
differs; a record that is damaged, or of another version, is none.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, dataclasses

from hybridlens.boundary import public
from hybridlens.display import Displayed
from hybridlens.errors import ResultsError
from hybridlens.results.cells import CellKey
from hybridlens.results.provenance import Environment, environment, hash_json, read_json, write_json

RECORD = "run.json"
FORMAT = 4


@public
@dataclass(frozen=True, kw_only=True)
class Manifest(Displayed):
    """What a run is. Two runs whose compared values are equal are the same run and share a folder.

    Attributes:
        model: name or path of the model.
        arguments: argument name -> JSON value, everything that can change a result. Compared.
        seed: the run's seed. Compared.
        max_score: the most points the rubric gives. Compared.
        config_hash: digest of the model's config. Compared.
        weights_hash: digest of the model's weights. Compared.
        job: the command's name. Compared.
        command: the command line as typed. Recorded only.
        settings: argument name -> JSON value that changes no result (batch size, device). Recorded only.
        facts: name -> JSON value about the model; "n_heads" is used by the report. Recorded only.
        growing: None for a run of one grid, whose prompts are compared. A study of several experiments gives name ->
            JSON value of what only some of its cells depend on (a needle with its rubric, say): later sessions may
            bring other cells and other names, but no other value for a name.
    """

    model: str
    arguments: Mapping[str, Any]
    seed: int
    max_score: float | int
    config_hash: str
    weights_hash: str
    job: str = "niah"
    command: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    growing: Mapping[str, Any] | None = None


class Session(BaseModel):
    """One run of the command."""

    started: str
    command: str
    settings: dict[str, Any]
    environment: Environment


class Listed(BaseModel):
    """An artefact: the digests of all that it depends on, and of its bytes."""

    depends: str
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Record(Manifest):
    """What `run.json` holds: what the run is, how far it has come, and what else its folder holds.

    `compared` is what has to be equal to go on, by the names that the user knows; `damaged` has a line for everything
    that was found damaged and made again; `settled` has the settings that were fixed once for the whole run, and
    `remarks` a line for what a reader of the results has to know of how they were made; `cells` is None for a run
    without. `finding` has the first sentences of the report. Times are in UTC.
    """

    format: int = FORMAT
    fingerprint: str
    status: Literal["running", "interrupted", "complete"] = "running"
    created: str
    finished: str | None = None
    compared: dict[str, Any]
    sessions: list[Session]
    damaged: list[str]
    artefacts: dict[str, Listed]
    settled: dict[str, int] = field(default_factory=dict[str, int])
    remarks: list[str] = field(default_factory=list[str])
    cells: int | None = None
    cells_done: int | None = None
    finding: list[str] = field(default_factory=list[str])

    def values(self) -> dict[str, Any]:
        """As JSON values, which reports read; settings are the sessions'."""
        return _RECORD.dump_python(self, mode="json", exclude={"settings"})


_RECORD = TypeAdapter(Record)


def plain(value: Any) -> Any:
    """A JSON value as it is after having been written and read."""
    return json.loads(json.dumps(value))


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def compared_values(manifest: Manifest, expected: Mapping[CellKey, str] | None = None) -> dict[str, Any]:
    """Name, as the user knows it -> JSON value, of everything that has to be equal to go on.

    Args:
        manifest: what the run is.
        expected: key -> prompt hash of the run's cells, which are compared unless the run may grow.
    """
    values: dict[str, Any] = {
        "the job": manifest.job,
        "--model": manifest.model,
        **{f"--{name.replace('_', '-')}": value for name, value in manifest.arguments.items()},
        "--seed": manifest.seed,
        "the rubric's highest score": float(manifest.max_score),
        "the model's config (its hash)": manifest.config_hash,
        "the model's weights (their hash)": manifest.weights_hash,
    }
    if expected is not None and manifest.growing is None:
        rows = [
            [*key._replace(depth=None if key.depth is None else float(key.depth)), prompt]
            for key, prompt in expected.items()
        ]
        values["the prompts (their hash)"] = hash_json(sorted(rows, key=json.dumps))
    return plain(values)


def read_record(folder: Path) -> Record | None:
    """`run.json`, or None when it is missing, damaged, or not one that this module wrote."""
    held = read_json(folder / RECORD)
    if not isinstance(held, dict) or held.get("format") != FORMAT or held.pop("digest", None) != hash_json(held):
        return None
    try:
        return Record(**held)
    except ValidationError:
        return None


def write_record(folder: Path, record: Record) -> None:
    """Write `run.json` with its digest.

    Raises:
        ResultsError: it cannot be written.
    """
    values = record.values()
    write_json(folder / RECORD, {**values, "digest": hash_json(values)})


def refuse_another_run(folder: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise when the folder's run differs, naming the first difference and how many there are.

    Args:
        folder: where it is.
        before: name -> JSON value of what its run is.
        after: the same of this one.
    """
    absent = "not given"
    names = [n for n in dict.fromkeys([*after, *before]) if before.get(n, absent) != after.get(n, absent)]
    if not names:
        return
    name = names[0]
    theirs, ours = before.get(name, absent), after.get(name, absent)
    others = f" ({', '.join(names[1:])} differ too)" if len(names) > 1 else ""
    raise ResultsError(
        f"{folder} holds a run with {name} {_brief(theirs, ours)}, and this one has {_brief(ours, theirs)}"
        f"{others}; give the same arguments to go on, or another --out folder"
    )


def _brief(value: object, other: object) -> str:
    """A value on one line; a long one is cut around the first place where it differs from `other`."""
    text, against = json.dumps(value, ensure_ascii=False), json.dumps(other, ensure_ascii=False)
    if len(text) <= 120:
        return text
    same = next((i for i, pair in enumerate(zip(text, against, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, same - 40)
    cut = text[start : start + 110]
    return ("…" if start else "") + cut + ("…" if start + 110 < len(text) else "")


def started(old: Record | None, manifest: Manifest, compared: dict[str, Any]) -> Record:
    """The record at the start of a session: a new one, or the old one with this session added to it."""
    time = now()
    session = Session(
        started=time,
        command=manifest.command,
        settings=plain(dict(manifest.settings)),
        environment=Environment(**environment()),
    )
    values = asdict(manifest) | {"settings": {}}
    if old is not None and manifest.growing is not None:
        values["growing"] = {**(old.growing or {}), **manifest.growing}
    return Record(
        **plain(values),
        fingerprint=fingerprint_of(compared),
        created=time if old is None else old.created,
        compared=compared,
        sessions=[*(old.sessions if old else ()), session],
        damaged=list(old.damaged) if old else [],
        artefacts=dict(old.artefacts) if old else {},
        settled=dict(old.settled) if old else {},
        remarks=list(old.remarks) if old else [],
    )


def fingerprint_of(compared: object) -> str:
    """The digest that a run's cells and artefacts are signed with."""
    return hash_json([FORMAT, compared])
