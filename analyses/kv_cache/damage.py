"""`DamageMap`: what is lost of a needle when memory is taken away at one place of its prompt after another.

How it fails: a file that holds no map raises `InputError`; a place whose keys had left the window before anything was
dropped is marked as not held, and its numbers are those of the intact state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from hybridlens.display import Displayed, Grid, Piece, Table, TokenText, many, number, visible
from hybridlens.display.markup import cut
from hybridlens.errors import InputError
from hybridlens.niah import Span
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

REGIONS = ("before", "needle", "after")


class _Retrieval(NamedTuple):
    """Fields of `Retrieval`."""

    logprob_a: Float[Tensor, "_row"]
    """Of needle A's first words that B's lacks, after the words that both have; natural logarithm, summed."""
    logprob_b: Float[Tensor, "_row"]
    """Of B's words in their place."""
    score_a: Float[Tensor, "_row"]
    """Points of the answer by A's rubric, 0 to 5."""
    score_b: Float[Tensor, "_row"]


class Retrieval(Displayed, _Retrieval):
    """How far each row still tells the needle; of one map, one is of a single row and another of many (``_row``)."""

    __slots__ = ()

    def table(self) -> Table:
        """A row a row of the state."""
        return Table.of(self._asdict(), {"row": None}, {"logprob_a": "nats", "logprob_b": "nats", "score_a": "0 to 5"})


@dataclass(frozen=True, eq=False)
class DamageMap(Plotted, Stored, text=True):
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

    def place_words(self, place: int) -> str:
        """A place as labels have it: "64–71 eat…Park"."""
        start, stop = self.places[place]
        first, last = visible(self.tokens[start]), visible(self.tokens[stop - 1])
        return f"{start} {first}" if stop - start == 1 else f"{start}–{stop - 1} {first}…{last}"

    def summary(self) -> str:
        """What was done, where, and what costs most."""
        damage = self.damage.masked_fill(~torch.tensor(self.held), -torch.inf)
        group, place = divmod(int(damage.argmax()), len(self.places))
        most = f"{self.groups[group]} at {cut(self.place_words(place), 40)}"
        size = f"{many(len(self.groups), 'group')} × {many(len(self.places), 'place')}"
        return f"{self.what}; {size}; most lost: {number(float(damage[group, place]), 3)} nats, {most}"

    def table(self) -> Table:
        """A row for each group and place: what was lost, and what is still told."""
        changed = {name: self.grid(values) for name, values in self.changed._asdict().items()}
        values = {"damage": self.damage, **changed}
        ends = {
            name: [[place[i] for place in self.places]] * len(self.groups) for i, name in enumerate(("start", "stop"))
        }
        held = [list(self.held)] * len(self.groups)
        axes = {"group": self.groups, "place": [self.place_words(i) for i in range(len(self.places))]}
        meanings = {"damage": "log-probability of needle A's words lost, in nats", "held": "whether anything was there"}
        return Table.of({**ends, "held": held, **values}, axes, meanings)

    def view(self) -> tuple[Piece, ...]:
        """What is lost at each place; places that held nothing are empty."""
        lost = self.damage.masked_fill(~torch.tensor(self.held), torch.nan)
        places = [self.place_words(i) for i in range(len(self.places))]
        tokens = TokenText(self.tokens, self._by_token(), "most lost at the token, in nats", self.spans, "The prompt")
        return (Grid(lost, self.groups, places, "layers and heads", "positions", "log-probability lost, nats"), tokens)

    def _by_token(self) -> list[float]:
        """The most that any group loses at each token; 0 where nothing was taken."""
        lost = [0.0] * len(self.tokens)
        for (start, stop), held, most in zip(self.places, self.held, self.damage.amax(dim=0).tolist(), strict=True):
            lost[start:stop] = [most if held else 0.0] * (stop - start)
        return lost

    def plot(self, limit: float | None = None) -> Plot:
        """What is lost at each place, the needle marked: the figure of the report.

        Args:
            limit: both ends of the scale, in nats; the largest value when left out.
        """
        from hybridlens.viz.plot import Plot
        from hybridlens.viz.positions import position_heatmap

        columns = [self.place_words(i) for i in range(len(self.places))]
        marked = [i for i in range(len(columns)) if touches(self, i)]
        values = self.damage.masked_fill(~torch.tensor(self.held), torch.nan).tolist()
        return Plot(position_heatmap(values, self.groups, columns, "", "nats lost", limit, marked))

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
