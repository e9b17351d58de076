"""`DamageMap`: what is lost of a needle when memory is taken away at one place of its prompt after another.

How it fails: a file that holds no map raises `ResultsError`; a place whose keys had left the window before anything was
dropped is marked as not held, and its numbers are those of the intact state.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.kv_cache.crossover_results import read_json
from hybridlens.errors import ResultsError
from hybridlens.niah import Span
from hybridlens.results import write_json

FORMAT = "hybridlens damage map 1"
REGIONS = ("before", "needle", "after")


class Retrieval(NamedTuple):
    """How far each row still tells the needle."""

    logprob_a: Float[Tensor, "row"]
    """Of needle A's first words that B's lacks, after the words that both have; natural logarithm, summed."""
    logprob_b: Float[Tensor, "row"]
    """Of B's words in their place."""
    score_a: Float[Tensor, "row"]
    """Points of the answer by A's rubric, 0 to 5."""
    score_b: Float[Tensor, "row"]


@dataclass(frozen=True, eq=False)
class DamageMap:
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
        where = [self._region(place) if held else None for place, held in zip(self.places, self.held, strict=True)]
        found: dict[str, dict[str, float]] = {}
        for name, row in zip(self.groups, self.damage, strict=True):
            found[name] = {
                region: float(row[[i for i, at in enumerate(where) if at == region]].mean())
                for region in REGIONS
                if region in where
            }
        return found

    def _region(self, place: Span) -> str:
        if any(place[0] < stop and start < place[1] for start, stop in self.spans):
            return "needle"
        return "before" if place[1] <= self.spans[0][0] else "after"

    def save(self, path: Path) -> Path:
        """Write the map as JSON, atomically; returns `path`.

        Raises:
            ResultsError: the file cannot be written.
        """
        value = {
            "format": FORMAT, "what": self.what, "model": self.model, "pair": self.pair,
            "spans": [list(span) for span in self.spans], "tokens": list(self.tokens), "groups": list(self.groups),
            "places": [list(place) for place in self.places], "held": list(self.held),
            "intact": _listed(self.intact), "changed": _listed(self.changed),
        }  # fmt: skip
        try:
            return write_json(path, value)
        except OSError as error:
            raise ResultsError(f"'{path}' cannot be written ({error.strerror}); name another file") from error

    @classmethod
    def load(cls, path: Path) -> DamageMap:
        """Read a map that `save` wrote.

        Raises:
            ResultsError: the file cannot be read, or holds no map.
        """
        value = read_json(path, FORMAT, "damage map")
        try:
            found = cls(
                str(value["what"]),
                str(value["model"]),
                str(value["pair"]),
                tuple((int(a), int(b)) for a, b in value["spans"]),
                tuple(map(str, value["tokens"])),
                tuple(map(str, value["groups"])),
                tuple((int(a), int(b)) for a, b in value["places"]),
                tuple(map(bool, value["held"])),
                Retrieval(*(torch.tensor(value["intact"][name]) for name in Retrieval._fields)),
                Retrieval(*(torch.tensor(value["changed"][name]) for name in Retrieval._fields)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ResultsError(f"'{path}' is a damaged map ({error}); make it again") from error
        rows = len(found.groups) * len(found.places)
        sizes = [tuple(column.shape) for column in (*found.intact, *found.changed)]
        if len(found.held) != len(found.places) or sizes != [(1,)] * 4 + [(rows,)] * 4:
            raise ResultsError(f"'{path}' is a damaged map (parts of other lengths); make it again")
        return found


def _listed(values: Retrieval) -> dict[str, list[float]]:
    return {name: getattr(values, name).tolist() for name in Retrieval._fields}
