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
from typing import Any

from hybridlens.errors import ResultsError
from hybridlens.results.cells import CellKey
from hybridlens.results.provenance import environment, hash_json, read_json, write_json

RECORD = "run.json"
FORMAT = 4
HIGHEST = "the rubric's highest score"
PROMPTS = "the prompts (their hash)"


@dataclass(frozen=True)
class Manifest:
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

    def compared(self, expected: Mapping[CellKey, str] | None = None) -> dict[str, Any]:
        """Name, as the user knows it -> JSON value, of everything that has to be equal to go on.

        Args:
            expected: key -> prompt hash of the run's cells, which are compared unless the run may grow.
        """
        named = {f"--{name.replace('_', '-')}": value for name, value in self.arguments.items()}
        values: dict[str, Any] = {
            "the job": self.job,
            "--model": self.model,
            **named,
            "--seed": self.seed,
            HIGHEST: float(self.max_score),
            "the model's config (its hash)": self.config_hash,
            "the model's weights (their hash)": self.weights_hash,
        }
        if expected is not None and self.growing is None:
            values[PROMPTS] = hash_prompts(expected)
        return plain(values)


def plain(value: Any) -> Any:
    """A JSON value as it is after having been written and read."""
    return json.loads(json.dumps(value))


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def hash_prompts(expected: Mapping[CellKey, str]) -> str:
    """Digest of the grid: which cells, of which prompts, whatever their order."""
    rows = [
        [*key._replace(depth=None if key.depth is None else float(key.depth)), prompt]
        for key, prompt in expected.items()
    ]
    return hash_json(sorted(rows, key=json.dumps))


def read_record(folder: Path) -> dict[str, Any] | None:
    """`run.json`, or None when it is missing, damaged, or not one that this module wrote."""
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return None
    return record if record.pop("digest", None) == hash_json(record) else None


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write `run.json` with its digest.

    Raises:
        ResultsError: it cannot be written.
    """
    write_json(folder / RECORD, {**record, "digest": hash_json(plain(dict(record)))})


def refuse_another_run(folder: Path, record: dict[str, Any], manifest: Manifest, compared: dict[str, Any]) -> None:
    """Raise when the folder's run differs, naming the first difference and how many there are."""
    before: dict[str, Any] = dict(record["compared"])
    if manifest.growing is not None:
        shared = {n: v for n, v in (record.get("growing") or {}).items() if n in manifest.growing}
        before, compared = before | shared, compared | {n: plain(manifest.growing[n]) for n in shared}
    absent = "not given"
    names = [n for n in dict.fromkeys([*compared, *before]) if before.get(n, absent) != compared.get(n, absent)]
    if not names:
        return
    name = names[0]
    theirs, ours = before.get(name, absent), compared.get(name, absent)
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


def started(record: Mapping[str, Any] | None, manifest: Manifest, compared: Mapping[str, Any]) -> dict[str, Any]:
    """`run.json` at the start of a session: a new one, or the old one with this session added to it."""
    time = now()
    old: Mapping[str, Any] = record or {"created": time, "sessions": [], "damaged": [], "growing": {}, "artefacts": {}}
    session = {
        "started": time,
        "command": manifest.command,
        "settings": dict(manifest.settings),
        "environment": environment(),
    }
    values = {name: value for name, value in asdict(manifest).items() if name != "settings"}
    if manifest.growing is not None:
        values["growing"] = {**(old["growing"] or {}), **manifest.growing}
    return {
        "format": FORMAT,
        "fingerprint": fingerprint_of(compared),
        "status": "running",
        "created": old["created"],
        "finished": None,
        **plain(values),
        "compared": dict(compared),
        "sessions": [*old["sessions"], plain(session)],
        "damaged": list(old["damaged"]),
        "artefacts": dict(old["artefacts"]),
    }


def fingerprint_of(compared: object) -> str:
    """The digest that a run's cells and artefacts are signed with."""
    return hash_json([FORMAT, compared])
