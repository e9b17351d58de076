"""The stored table of the embedded models, and how what is computed here compares with it.

The table is a saved `Zoo` that comes with the package. Models are matched by the digest of their weights, numbers by
their names: what was made of other weights is another model. How it fails: pure, but for reading the file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from analyses.study.points import Point
from analyses.study.zoo.results import Asked, Member, Zoo
from hybridlens.boundary import public
from hybridlens.display import Displayed, listed, many

TABLE = Path(__file__).parent / "stored.json"

SAME = 1e-6
"""Two values that differ by less are the same: that much is rounding."""


class _Recomputed(NamedTuple):
    """Fields of `Recomputed`."""

    numbers: int
    equal: int
    unlike: tuple[str, ...]


class Recomputed(Displayed, _Recomputed):
    """Numbers that were computed anew beside stored ones.

    Attributes:
        numbers: that both have.
        equal: of them.
        unlike: a line for each that is not.
    """

    __slots__ = ()

    def summary(self) -> str:
        """How many are equal, and which are not."""
        other = f"; unlike: {listed(self.unlike, 6)}" if self.unlike else ""
        return f"{self.equal} of {many(self.numbers, 'number')} as stored{other}"


@public
def stored_zoo() -> Zoo | None:
    """The table that comes with the package; None where it has none.

    Raises:
        InputError: it cannot be read.
    """
    return Zoo.load(TABLE) if TABLE.is_file() else None


def beside_stored(zoo: Zoo) -> tuple[Zoo, str]:
    """What was computed with the rest of the stored table, and what is to be said of both.

    Where some model is none of the table's, or there is no table, it is what was computed alone, and nothing is said.
    """
    stored = stored_zoo()
    if stored is None or not {one.weights for one in zoo.members} <= {one.weights for one in stored.members}:
        return zoo, ""
    whole = joined(zoo, stored)
    note = f"Computed here: {', '.join(zoo.names)} ({', '.join(zoo.parts)}); {recomputed(zoo, stored).summary()}."
    rest = whole.names != zoo.names or whole.parts != zoo.parts
    return whole, f"{note} The rest is the stored table." if rest else note


def recomputed(zoo: Zoo, stored: Zoo) -> Recomputed:
    """What was computed beside what is stored, of the same weights."""
    known = {member.weights: dict(_named(member)) for member in stored.members}
    numbers, unlike = 0, list[str]()
    for member in zoo.members:
        for key, point in _named(member):
            other = known.get(member.weights, {}).get(key)
            if other is None or other.value is None:
                continue
            numbers += 1
            if point.value is None or abs(point.value - other.value) > SAME * max(1.0, abs(other.value)):
                here = "not measured" if point.value is None else f"{point.value:.6g}"
                unlike.append(f"{member.name}, {key[1]}: {here}, stored {other.value:.6g}")
    return Recomputed(numbers, numbers - len(unlike), tuple(unlike))


def joined(zoo: Zoo, stored: Zoo) -> Zoo:
    """What was computed, with what only the stored table has of the same weights, and its other models, behind it."""
    by_weights = {member.weights: member for member in stored.members}
    members = [_joined(member, by_weights.pop(member.weights, None)) for member in zoo.members]
    here = {member.name for member in members}
    rest = [member for member in by_weights.values() if member.name not in here]
    parts = tuple(dict.fromkeys((*stored.parts, *zoo.parts)))
    return Zoo((*members, *rest), parts)


def _joined(member: Member, other: Member | None) -> Member:
    if other is None:
        return member
    mine = {one.part: one for one in member.asked}
    order = dict.fromkeys((*(one.part for one in other.asked), *mine))
    asked: list[Asked] = [mine.get(part) or other_part(other, part) for part in order]
    return replace(member, asked=tuple(asked), parameters=member.parameters or other.parameters)


def other_part(member: Member, part: str) -> Asked:
    """What a model was asked in one experiment."""
    return next(one for one in member.asked if one.part == part)


def _named(member: Member) -> list[tuple[tuple[str, str], Point]]:
    return [((part, point.quantity), point) for part, point in member.points()]
