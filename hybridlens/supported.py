"""What was checked of each family, and what came out: the table that `hybridlens families` shows.

The numbers are those of the tests: ``make families-table`` runs their checks (`tests/family_checks.py`) and writes
``supported.json`` beside this module; the tests fail where the file says something else than they find. Nothing in it
is written by hand.

How it fails: an installation without the file, or a damaged one, raises `ResultsError`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from hybridlens.errors import ResultsError

FILE = Path(__file__).with_name("supported.json")

COLUMNS = (
    "logits", "chunks", "ragged", "decode points", "state edits", "gradients", "hidden attention", "weights",
    "circuits", "patching", "crossover", "kernels",
)  # fmt: skip
"""What is checked, in order."""

Word: TypeAlias = Literal["works", "none", "fails"]


class Verdict(NamedTuple):
    """What one check of a family found."""

    word: Word
    """"works"; "none" where the family lacks what the check is about; "fails"."""
    error: float | None = None
    """The largest, relative to the largest expected value, in float32; None where nothing was compared."""
    reason: str = ""
    """Why there is nothing to check, or what fails."""
    by: str = ""
    """Of "kernels": which scan it is that a kernel can run, as `hybridlens.recurrences.kernels.choice` names it."""


class FamilyRow(NamedTuple):
    """What the checks found of one family."""

    family: str
    """Its name in `hybridlens.families`."""
    architecture: str
    """Class name of its causal language model in transformers."""
    checks: Mapping[str, Verdict]
    """By column."""

    @property
    def largest_error(self) -> float | None:
        """Of all of its checks; None where none compared anything."""
        return max((verdict.error for verdict in self.checks.values() if verdict.error is not None), default=None)


class Supported(NamedTuple):
    """The whole table."""

    transformers: str
    """The version of transformers that the families were checked against."""
    rows: tuple[FamilyRow, ...]

    def failing(self) -> list[str]:
        """What fails, a line a reason: "kernels: no kernel is called for mamba2; … (mamba2, falcon_h1)"."""
        by_reason: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            for column, verdict in row.checks.items():
                if verdict.word == "fails":
                    by_reason.setdefault((column, verdict.reason), []).append(row.family)
        return [f"{column}: {reason} ({', '.join(families)})" for (column, reason), families in by_reason.items()]

    def json(self) -> str:
        """The file's text: families in order, a line a check, errors with two digits."""
        families: list[str] = []
        for row in self.rows:
            lines = (f"   {json.dumps(column)}: {json.dumps(_written(row.checks[column]))}" for column in COLUMNS)
            head = f' {json.dumps(row.family)}: {{"architecture": {json.dumps(row.architecture)}, "checks": {{'
            families.append(head + "\n" + ",\n".join(lines) + "}}")
        listed = ",\n".join(families)
        return f'{{"transformers": {json.dumps(self.transformers)}, "families": {{\n{listed}}}}}\n'


def supported(file: Path = FILE) -> Supported:
    """The table, from its file.

    Args:
        file: where it is.

    Raises:
        ResultsError: there is no such file, or it holds anything else.
    """
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        rows = [
            FamilyRow(name, row["architecture"], {column: _read(row["checks"][column]) for column in COLUMNS})
            for name, row in held["families"].items()
        ]
        return Supported(str(held["transformers"]), tuple(rows))
    except FileNotFoundError as error:
        raise ResultsError(f"'{file}' is missing; install hybridlens again with its package data") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"'{file}' is damaged ({error!r:.80}); install hybridlens again") from error


def _written(verdict: Verdict) -> dict[str, Any]:
    found: dict[str, Any] = {"word": verdict.word}
    if verdict.error is not None:
        found["error"] = float(f"{verdict.error:.1e}")
    said = {"reason": verdict.reason, "by": verdict.by}
    return found | {name: text for name, text in said.items() if text}


def _read(held: Mapping[str, Any]) -> Verdict:
    if held["word"] not in get_args(Word):
        raise ValueError(f"word {held['word']!r}")
    return Verdict(held["word"], held.get("error"), held.get("reason", ""), held.get("by", ""))
