"""A study's folder as it was left: its cells, its benchmark scores, what is known of its model, and its verdicts.

How it fails: `ResultsError` in one line for a folder without a run, of another experiment, that is not finished, or
whose files were changed since; nothing is written.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from analyses.study.benchmarks.results import BenchmarkResult, BenchmarkRow
from analyses.study.evidence import Evidence, ModelFacts
from analyses.study.groups import Base, selected
from analyses.study.under_both import UnderBoth, under_both
from analyses.study.verdict import Verdict, verdicts
from hybridlens.display import Displayed, many
from hybridlens.errors import InputError, ResultsError
from hybridlens.results import Cell, read_cells
from hybridlens.results.store import read_artefact, read_run_record

JOB = "reproduce"
SCORES = "benchmarks.json"


@dataclass(frozen=True)
class StoredStudy(Displayed):
    """One study.

    Attributes:
        name: the model's; its folder's besides where several studies are of one model.
        folder: where it is.
        record: its `run.json`.
        cells: all of it.
        rows: its benchmark scores; empty where none were run.
        facts: what verdicts have to know of the model.
    """

    name: str
    folder: Path
    record: Mapping[str, Any]
    cells: Sequence[Cell]
    rows: Sequence[BenchmarkRow]
    facts: ModelFacts

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """On the paper's claims, under its own semantics."""
        return verdicts(self.cells, self.rows, self.facts)

    @cached_property
    def both(self) -> list[UnderBoth]:
        """The claims under both semantics; empty where one was run."""
        return under_both(self.cells, self.verdicts, self.facts)

    @property
    def base(self) -> Base:
        """What it holds fixed."""
        return self.facts.base

    @cached_property
    def evidence(self) -> Evidence:
        """All that was measured, as claims ask for it."""
        return Evidence(self.cells, self.rows, self.facts)

    @property
    def parameters(self) -> int:
        """Of the model, experts that are not chosen included."""
        return int(self.record["facts"]["parameters"])

    def summary(self) -> str:
        """The model, and how many cells."""
        return f"{self.name}: {len(self.cells):,} cells, {self.base.n_heads} heads a layer"


def read_studies(folders: Sequence[Path]) -> list[StoredStudy]:
    """The studies of several folders, their names made distinct.

    Raises:
        InputError: fewer than two folders, or one twice.
        ResultsError: see the module.
    """
    if len(folders) < 2:
        raise InputError(f"{many(len(folders), 'folder')} given, expected those of at least two studies")
    places = Counter(folder.resolve() for folder in folders)
    twice = next((folder for folder in folders if places[folder.resolve()] > 1), None)
    if twice is not None:
        raise InputError(f"{twice} is given more than once; name each study's folder once")
    records = [_record(folder) for folder in folders]
    models = Counter(str(record["model"]) for record in records)
    names = [
        record["model"] if models[record["model"]] == 1 else f"{record['model']} ({folder})"
        for folder, record in zip(folders, records, strict=True)
    ]
    return [_study(folder, str(name), record) for folder, name, record in zip(folders, names, records, strict=True)]


def read_study(folder: Path) -> StoredStudy:
    """One study, under its model's name.

    Raises:
        ResultsError: see the module.
    """
    record = _record(folder)
    return _study(folder, str(record["model"]), record)


def _record(folder: Path) -> Mapping[str, Any]:
    """The record of a finished study."""
    record = read_run_record(folder).values()
    if record["job"] != JOB:
        raise ResultsError(f"{folder} holds a run of hybridlens {record['job']}, expected studies of hybridlens {JOB}")
    if record["status"] != "complete":
        done = f"{record['cells_done'] or 0} of {record['cells'] or 0} cells"
        raise ResultsError(
            f"{folder} holds a study that is not finished ({done}); end it with its own command: "
            f"{record['command'] or 'hybridlens reproduce'}"
        )
    return record


def _study(folder: Path, name: str, record: Mapping[str, Any]) -> StoredStudy:
    known, settings = record["facts"], record["sessions"][-1]["settings"]
    lengths = tuple(settings.get("lengths") or ())  # older records have none: all of theirs are the main grid's
    base = Base(int(known["n_heads"]), settings["semantics"], settings["boundary"], lengths=lengths)
    beside = bool(known.get("layers with states", True))  # older records have no such fact; their models had states
    cells = read_cells(folder)
    base = base._replace(jrt_lengths=jrt_lengths(cells, base))
    facts = ModelFacts(str(record["model"]), str(known["family"]), known["window"], base, beside)
    if len(cells) < (record["cells"] or 0):
        lost = many(record["cells"] - len(cells), "cell")
        command = record["command"] or "hybridlens reproduce"
        raise ResultsError(f"{folder} has lost {lost} of {record['cells']}; what made it mends it: {command}")
    scores = read_artefact(folder, SCORES, BenchmarkResult.load)
    rows = () if scores is None else scores.rows
    return StoredStudy(name, folder, record, cells, rows, facts)


def jrt_lengths(cells: Sequence[Cell], base: Base) -> tuple[tuple[int, int], ...]:
    """(length read once, length read twice) of equal contexts, as the cells show them; empty where they do not.

    The needle begins where its depth in the context says, so of all lengths read once that is the one with the same
    context whose needles begin nearest to those of a length read twice. Where two would have one partner, none has.
    """
    starts: dict[bool, dict[int, dict[float, int | None]]] = {False: {}, True: {}}
    for cell in selected(cells, base, "jrt", "reading", "answering"):
        if cell.depth is not None:
            starts[cell.jrt].setdefault(cell.length, {})[float(cell.depth)] = cell.needle_start
    pairs: list[tuple[int, int]] = []
    for long, places in sorted(starts[True].items()):

        def away(short: int, places: Mapping[float, int | None] = places) -> float:
            own = starts[False][short]
            both = [(own[depth], start) for depth, start in places.items() if depth in own]
            far = [abs(a - b) for a, b in both if a is not None and b is not None]
            return sum(far) / len(far) if far else math.inf

        if not starts[False]:
            return ()
        pairs.append((min(starts[False], key=away), long))
    return tuple(pairs) if len({short for short, _ in pairs}) == len(pairs) else ()
