"""Portions of a sweep: the cells that are read and answered together, the same however many processes share the work.

Rounding depends on what runs in a batch, and a near tie on rounding. So that a cell does not depend on where and when
it is answered, the whole grid is cut into portions once and for all; each is read, answered and stored whole, by one
process, and is begun again from nothing where that was killed. One process answers all portions one after another;
shards of a cluster answer some each (`analyses.experiment.cluster`).

A portion holds whole families, the prompts read under one treatment, whose shared beginnings are read once. Small
families are put together until they fill a batch; one that fills several is cut by the lengths of its prompts, which
share little more than the trunk.

How it fails: it does not. Batches depend on the model's sizes, the memory and the rows allowed, and so do portions;
the memory is settled once for a run (`analyses.experiment.room`). Cells are equal to the last bit between runs that
settled the same, on machines that compute the same; else to rounding.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

from hybridlens.decoding import Boundary
from hybridlens.engine import Job
from hybridlens.results import CellKey

WIDE = 2
"""A family of more than so many batches is cut."""


class Work(NamedTuple):
    """Cells that share one answer."""

    job: Job
    boundary: Boundary
    keys: tuple[CellKey, ...]


def portions(work: Sequence[Work], rows: int) -> list[list[Work]]:
    """The portions of some work, in the order in which they are answered; each of one boundary.

    Args:
        work: of a whole grid.
        rows: how many answers make a batch.
    """
    families: dict[Hashable, list[Work]] = {}
    for piece in work:
        families.setdefault((piece.boundary, piece.job.reading), []).append(piece)
    made: list[list[Work]] = []
    for family in families.values():
        for group in _cut(family, rows):
            last = made[-1] if made else None
            if last and last[0].boundary == group[0].boundary and len(last) + len(group) <= rows:
                last += group
            else:
                made.append(group)
    return made


def _cut(family: list[Work], rows: int) -> Iterator[list[Work]]:
    """A family whole, or where it is wide the answers to prompts of each number of tokens."""
    if len(family) <= WIDE * rows:
        yield family
        return
    lengths: dict[int, list[Work]] = {}
    for piece in family:
        lengths.setdefault(len(piece.job.tokens), []).append(piece)
    yield from lengths.values()
