"""`DamageMap`: what is lost of a needle when memory is taken away at one place of its prompt after another.

How it fails: a file that holds no map raises `InputError`; a place whose keys had left the window before anything was
dropped is marked as not held, and its numbers are those of the intact state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from hybridlens.errors import InputError
from hybridlens.niah import Span

REGIONS = ("before", "needle", "after")


class Retrieval(NamedTuple):
    """How far each row still tells the needle; of one map, one is of a single row and another of many (``_row``)."""

    logprob_a: Float[Tensor, "_row"]
    """Of needle A's first words that B's lacks, after the words that both have; natural logarithm, summed."""
    logprob_b: Float[Tensor, "_row"]
    """Of B's words in their place."""
    score_a: Float[Tensor, "_row"]
    """Points of the answer by A's rubric, 0 to 5."""
    score_b: Float[Tensor, "_row"]


@dataclass(frozen=True, eq=False)
class DamageMap(Stored, text=True):
    """Retrieval after a change at each place, by group of layers and heads.

    Attributes:
        what: what was done, in words.
        model: the model's signature.
        pair: of which needles.
        spans: the needle's half-open token ranges.
        tokens: the prompt's tokens as text, for axes.
        groups: which layers and heads were changed, in words.
        places: half-open ranges of positions: dropped, or after whose last one the state was changed.
        held: whether the cache held anything there.
        intact: what nothing done gives; one row.
        changed: what each change gives; row ``group * len(places) + place``.

    Raises:
        InputError: parts of other lengths.
    """

    what: str
    model: str
    pair: str
    spans: tuple[Span, ...]
    tokens: tuple[str, ...]
    groups: tuple[str, ...]
    places: tuple[Span, ...]
    held: tuple[bool, ...]
    intact: Retrieval
    changed: Retrieval

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        rows = len(self.groups) * len(self.places)
        sizes = [len(column) for column in (*self.intact, *self.changed)]
        if len(self.held) != len(self.places) or sizes != [1] * 4 + [rows] * 4:
            raise InputError(f"columns of {sizes} rows given with {len(self.held)} marks, expected 1 and {rows} rows")

    @property
    def damage(self) -> Float[Tensor, "group place"]:
        """Log-probability of needle A's words lost, in nats."""
        return self.intact.logprob_a - self.grid(self.changed.logprob_a)

    @property
    def score(self) -> Float[Tensor, "group place"]:
        """Points of the answer by A's rubric, 0 to 5."""
        return self.grid(self.changed.score_a)

    def grid(self, values: Float[Tensor, "row"]) -> Float[Tensor, "group place"]:
        """One of `changed` by group and place."""
        return values.reshape(len(self.groups), len(self.places))

    def regions(self) -> dict[str, dict[str, float]]:
        """Mean damage in nats by group and region: before the needle, at it, after it; held places only.

        A range that touches a needle counts as the needle's; a region without places is left out.
        """
        columns: dict[str, list[int]] = {}
        for i, (_, stop) in enumerate(self.places):
            region = "needle" if touches(self, i) else "before" if stop <= self.spans[0][0] else "after"
            if self.held[i]:
                columns.setdefault(region, []).append(i)
        return {
            name: {region: float(row[columns[region]].mean()) for region in REGIONS if region in columns}
            for name, row in zip(self.groups, self.damage, strict=True)
        }


def touches(found: DamageMap, place: int) -> bool:
    """Whether a place of a map holds a part of the needle."""
    start, stop = found.places[place]
    return any(start < end and begin < stop for begin, end in found.spans)
