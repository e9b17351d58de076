"""What comparing studies gives: each claim of each study side by side, and the claims that only several can decide.

How it fails: see `analyses.study.comparing.reading`; what is incomparable is said in its row, which then parts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from analyses.study.comparing.across import RULES, across
from analyses.study.comparing.paired import SideBySide, side_by_side
from analyses.study.comparing.reading import StoredStudy, read_studies
from analyses.study.comparing.unlike import notes, unlike
from analyses.study.under_both import other_than
from analyses.study.verdict import CLAIMS, Verdict
from hybridlens.boundary import public
from hybridlens.display import Displayed, Piece, Table, listed, many
from hybridlens.errors import InputError

DECIDED = {"holds", "fails"}


class _ClaimRow(NamedTuple):
    """Fields of `ClaimRow`."""

    id: str
    verdicts: tuple[Verdict, ...]
    others: tuple[str, ...]
    unlike: tuple[str, ...]


class ClaimRow(Displayed, _ClaimRow):
    """One claim in every study.

    Attributes:
        id: the claim's.
        verdicts: one for each study, under its own semantics.
        others: for each study what became of the claim under its other semantics ("published: fails"), "" where that
            was not run.
        unlike: settings that make the studies incomparable here; empty where there are none.
    """

    __slots__ = ()

    @property
    def parts(self) -> bool:
        """Whether the claim holds in one study and fails in another that can be compared with it."""
        return not self.unlike and {one.outcome for one in self.verdicts} >= DECIDED

    def summary(self) -> str:
        """The outcomes in the order of the studies."""
        return f"{self.id}: {listed([one.outcome for one in self.verdicts], 8)}"


@dataclass(frozen=True)
class Comparison(Displayed):
    """Several studies side by side.

    Attributes:
        studies: as they were read, in the order given.
        across: the claims that need several models.
        claims: every other claim: those first on which the studies part, then those that some study decides.
        accuracies: conditions of figure 2 and table 1 that two studies or more have.
        notes: what a reader has to know of all rows.
    """

    studies: tuple[StoredStudy, ...]
    across: tuple[Verdict, ...]
    claims: tuple[ClaimRow, ...]
    accuracies: tuple[SideBySide, ...]
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the studies."""
        return tuple(study.name for study in self.studies)

    def summary(self) -> str:
        """Which studies, what became of the claims across models, and on how many they part."""
        parted = sum(row.parts for row in self.claims)
        decided = listed([f"{one.id} {one.outcome}" for one in self.across], 4)
        return f"{listed(self.names, 6)}: {decided}; {many(parted, 'claim parts', 'claims part')} them"

    def table(self) -> Table:
        """A row for each claim and study."""
        columns = ("claim", "study", "outcome", "other semantics", "measured", "reason", "unlike")
        rows = [
            (row.id, name, one.outcome, other or None, one.measured, one.reason, "; ".join(row.unlike))
            for row in self.claims
            for name, one, other in zip(self.names, row.verdicts, row.others, strict=True)
        ]
        rows += [(one.id, "all", one.outcome, None, one.measured, one.reason, "") for one in self.across]
        return Table(columns, rows)

    def view(self) -> tuple[Piece, ...]:
        """The claims across models; every other claim with its outcomes side by side."""
        wide = [
            (row.id, *(one.said or None for one in row.verdicts), "; ".join(row.unlike))
            for row in self.claims
            if any(one.said for one in row.verdicts)
        ]
        over = [(one.id, one.claim, one.outcome, one.measured, one.reason) for one in self.across]
        return (
            Table(("claim", "in words", "outcome", "measured", "reason"), over, title="Across models"),
            Table(("claim", *self.names, "unlike"), wide, title="Side by side"),
        )


@public
def compare_studies(folders: Sequence[str | Path]) -> Comparison:
    """Studies side by side, from their stored results alone.

    Args:
        folders: of finished `hybridlens reproduce` runs, at least two.

    Raises:
        InputError: fewer than two folders, or one twice.
        ResultsError: a folder that holds no such run, an unfinished or a damaged one.
    """
    if isinstance(folders, str):
        raise InputError(f"{folders!r} given, expected a list of folders, two or more")
    return comparison_of(read_studies([Path(folder) for folder in folders]))


def comparison_of(studies: Sequence[StoredStudy]) -> Comparison:
    """Studies side by side that are read already."""
    rows = [_row(studies, i) for i, claim in enumerate(CLAIMS) if claim.id not in RULES]
    return Comparison(
        studies=tuple(studies),
        across=tuple(across(studies)),
        claims=tuple(sorted(rows, key=_order)),
        accuracies=tuple(side_by_side(studies)),
        notes=notes(studies),
    )


def _row(studies: Sequence[StoredStudy], claim: int) -> ClaimRow:
    name = CLAIMS[claim].id
    away = [(other_than(study.base.semantics), {one.own.id: one.other.said for one in study.both}) for study in studies]
    others = tuple(f"{semantics}: {said[name]}" if said.get(name) else "" for semantics, said in away)
    return ClaimRow(name, tuple(study.verdicts[claim] for study in studies), others, unlike(studies, name))


def _order(row: ClaimRow) -> Any:
    return not row.parts, not any(one.outcome in DECIDED for one in row.verdicts)
