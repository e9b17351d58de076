"""The page and the table of studies side by side.

How it fails: a folder that holds a run is refused as the place of the page, which would replace that run's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analyses.experiment.text import columns, percent_interval
from analyses.study.comparing.paired import SideBySide
from analyses.study.comparing.results import ClaimRow, Comparison
from analyses.study.comparing.unlike import PROMPTED, differing
from analyses.study.groups import Estimate
from analyses.study.verdict import HYPOTHESES, UNTESTED, Verdict
from hybridlens.display import listed, many
from hybridlens.errors import InputError
from hybridlens.results.provenance import environment, usable
from hybridlens.results.record import RECORD, now
from hybridlens.viz.article import Article, write_article
from hybridlens.viz.blocks import Block, Hypothesis, Section, Table, VerdictRow, Verdicts, Words
from hybridlens.viz.entries import Entry, signed
from hybridlens.viz.words import DASH

HEADS = "heads a layer"


def comparison_table(found: Comparison) -> str:
    """The claims across models, then every claim that some study tested, those first on which the studies part."""
    lines = [columns([[one.hypothesis, one.outcome, _why(one)] for one in found.across], left=3)]
    tested = [row for row in found.claims if any(one.said for one in row.verdicts)]
    rows = [["", *found.names, ""]]
    for row in tested:
        outcomes = [
            (one.said or DASH) + (f", {other}" if other and one.said not in other else "")
            for one, other in zip(row.verdicts, row.others, strict=True)
        ]
        rows.append([row.verdicts[0].hypothesis, *outcomes, _row_words(row)])
    parted = sum(row.parts for row in found.claims)
    first = "claim" if parted == 1 else many(parted, "claim")
    said = [f"the studies part on the first {first} of the table"] if parted else []
    return "\n".join([*lines, "", columns(rows, left=len(rows[0])), *said, *found.notes])


def refuse_a_run(folder: Path) -> None:
    """Refuse to write a comparison where a run is.

    Raises:
        InputError: the folder holds a run, or is a file.
    """
    if (folder / RECORD).exists():
        raise InputError(f"--out {folder} holds a run, whose report would be lost; name another folder")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file; name a folder to write the report into")


def write_comparison(found: Comparison, folder: Path, command: str = "") -> Path:
    """Write the page; returns its path.

    Args:
        found: what it shows.
        folder: made when it does not exist.
        command: what was typed.

    Raises:
        InputError: see `refuse_a_run`.
        ResultsError: it cannot be written.
    """
    refuse_a_run(folder)
    with usable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    record = {
        "model": f"{many(len(found.studies), 'study', 'studies')} side by side",
        "command": command,
        "created": now(),
        "finished": now(),
        "growing": {f"weights of {one.name}, SHA-256": one.record["weights_hash"] for one in found.studies},
        "sessions": [{"settings": {}, "environment": environment()}],
    }
    return write_article(folder, comparison_page(found), record)


def comparison_page(found: Comparison) -> Article:
    """The page's contents: what becomes of the claims across models first, then where studies part."""
    return Article(
        subject="several studies",
        over="The paper's claims in several models",
        origin=tuple(found.names),
        finding=_finding(found),
        notes=found.notes,
        sections=(
            Section("across", "Claims across models", (_across(found.across),)),
            Section("claims", "Claims side by side", tuple(_claims(found))),
            Section("accuracy", "Accuracy side by side", tuple(_accuracies(found))),
            Section("studies", "The studies", (_studies(found),)),
        ),
    )


def _finding(found: Comparison) -> tuple[str, ...]:
    said = [f"“{one.claim.rstrip('.')}”: {one.outcome}{_because(one)}." for one in found.across]
    parted = [row for row in found.claims if row.parts]
    names = list(found.names)
    for row in parted:
        sides = {
            outcome: listed([n for n, one in zip(names, row.verdicts, strict=True) if one.outcome == outcome], 6)
            for outcome in ("holds", "fails")
        }
        claim = row.verdicts[0].claim.rstrip(".")
        said.append(f"“{claim}” holds in {sides['holds']} and fails in {sides['fails']}.")
    if not parted:
        said.append("On no claim that can be compared do the studies part: none holds in one and fails in another.")
    return tuple(said)


def _because(one: Verdict) -> str:
    if one.outcome == UNTESTED:
        return f" ({one.reason})"
    return "" if one.measured == DASH else f" ({one.measured})"


def _why(one: Verdict) -> str:
    return f"{one.claim} ({one.reason or one.measured})"


def _row_words(row: ClaimRow) -> str:
    claim = row.verdicts[0].claim
    return f"{claim} (not comparable: {'; '.join(row.unlike)})" if row.unlike else claim


def _across(verdicts: Sequence[Verdict]) -> Block:
    rows: dict[str, list[VerdictRow]] = {}
    for one in verdicts:
        row = VerdictRow(one.claim, one.paper, tuple(one.measured.split("; ")), one.outcome, one.rule, one.reason)
        rows.setdefault(one.hypothesis, []).append(row)
    return Verdicts(tuple(Hypothesis(name, HYPOTHESES[name], tuple(claims)) for name, claims in rows.items()))


def _claims(found: Comparison) -> list[Block]:
    rows: list[tuple[Entry, ...]] = []
    for row in found.claims:
        claim: Entry = row.verdicts[0].claim
        if row.unlike:
            claim = (row.verdicts[0].claim, f"not comparable: {'; '.join(row.unlike)}")
        cells = [(one.outcome, _detail(one, other)) for one, other in zip(row.verdicts, row.others, strict=True)]
        rows.append((claim, *cells))
    words = (
        "Each claim as it is judged in each study, those first that hold in one and fail in another. Where settings "
        "differ that change what is measured, the row says so and is not counted as parting."
    )
    return [Words(words), Table(("claim", *found.names), tuple(rows))]


def _detail(one: Verdict, other: str) -> str:
    parts = [one.reason, "" if one.measured == DASH else one.measured, other]
    return ". ".join(part for part in parts if part)


def _accuracies(found: Comparison) -> list[Block]:
    if not found.accuracies:
        return [Words("No condition was run in two of the studies.")]
    clash = differing(found.studies, PROMPTED)
    words = (
        "Accuracy in percent of the highest score, with 95 % intervals over prompts; below it, how far it lies from "
        "the first study's: on the prompts that both have, or, where there are none, as of independent prompts."
    )
    note = [Words(f"Not comparable: the studies differ in {listed(clash, 8)}.", note=True)] if clash else []
    rows = tuple(_accuracy(row) for row in found.accuracies)
    return [Words(words), *note, Table(("condition", *found.names), rows)]


def _accuracy(row: SideBySide) -> tuple[Entry, ...]:
    cells: list[Entry] = []
    for mean, change in zip(row.accuracies, row.differences, strict=True):
        if mean is None:
            cells.append(DASH)
            continue
        said = f"n = {mean.n}"
        if change is not None:
            how = f"on {many(change.estimate.n, 'prompt')} of both" if change.paired else "other prompts"
            said += f"; {_points(change.estimate)}, {how}"
        cells.append((percent_interval(*mean[:3]), said))
    return row.condition, *cells


def _points(found: Estimate) -> str:
    return f"{signed(100 * found.mean)} points ({signed(100 * found.low, 100 * found.high)})"


def _studies(found: Comparison) -> Block:
    header = ("study", "family", HEADS, "parameters", "semantics", "cells", "command")
    rows = tuple(
        (
            (one.name, str(one.folder)), one.facts.family, str(one.base.n_heads), f"{one.parameters:,}",
            one.base.semantics, f"{len(one.cells):,}", str(one.record["command"] or DASH),
        )
        for one in found.studies
    )  # fmt: skip
    return Table(header, rows)
