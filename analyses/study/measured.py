"""Conditions, and accuracies and differences under them: the tensors that every result of a study holds.

How it fails: NaN stands where no cell was run; `n` is 0 there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from hybridlens.display import Displayed, Table, many
from hybridlens.results import Cell
from hybridlens.results.cells import MODES, PHASES
from hybridlens.viz import charts
from hybridlens.viz.entries import Value


class _Condition(NamedTuple):
    """Fields of `Condition`."""

    phase: str
    k: int
    reading: str = "keep"
    answering: str = "keep"


class Condition(Displayed, _Condition):
    """What is done to attention: the part of a cell's key that is not its prompt."""

    __slots__ = ()

    @property
    def words(self) -> str:
        """What is done, in a few words."""
        changed = "" if (self.reading, self.answering) == ("keep", "keep") else f", {self.reading} | {self.answering}"
        return f"{self.phase}, k = {self.k}{changed}"

    def summary(self) -> str:
        """What is done."""
        return self.words

    @classmethod
    def of(cls, cell: Cell) -> Condition:
        """What a cell does to attention."""
        return cls(cell.phase, cell.k, cell.reading, cell.answering)

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Sorts conditions: by version, k ascending, then in the order of table 1."""
        return PHASES.index(self.phase), self.k, MODES.index(self.reading), MODES.index(self.answering)


class OfConditions(Displayed):
    """Means with intervals under conditions."""

    mean: Float32[Tensor, "*condition"]
    low: Float32[Tensor, "*condition"]
    high: Float32[Tensor, "*condition"]
    n: Int64[Tensor, "*condition"]

    def columns(self) -> dict[str, Tensor]:
        """The tensors by name, for the tables of their holders."""
        return {field.name: getattr(self, field.name) for field in fields(cast(Any, self))}

    def value(self, *place: int) -> Value:
        """One entry, as figures and tables of reports take it."""
        chance = self.columns().get("chance")
        means, lows, highs = (float(tensor[place]) for tensor in (self.mean, self.low, self.high))
        return Value(means, lows, highs, int(self.n[place]), math.nan if chance is None else float(chance[place]))

    def values(self) -> tuple[tuple[Value, ...], ...]:
        """Every entry along two axes."""
        rows, columns = self.mean.shape
        return tuple(tuple(self.value(i, j) for j in range(columns)) for i in range(rows))

    def summary(self) -> str:
        """How many conditions, and the ends of their means."""
        known = self.mean[~self.mean.isnan()]
        ends = "none was run" if not known.numel() else f"means {known.min():.1%} to {known.max():.1%}"
        return f"{many(self.mean.numel(), 'condition')} [{', '.join(map(str, self.mean.shape))}]; {ends}"

    def table(self) -> Table:
        """A row a condition, by its place along each axis."""
        if not self.mean.ndim:
            return Table(tuple(self.columns()), [tuple(value.item() for value in self.columns().values())], MEANINGS)
        return Table.of(self.columns(), {f"axis {i}": None for i in range(self.mean.ndim)}, MEANINGS)


MEANINGS = {
    "mean": "as a share of the highest score",
    "low": "lower end of its 95 % interval over prompts",
    "high": "upper end",
    "chance": "the same mean with the needle left out",
    "n": "prompts",
    "n_control": "prompts with the needle left out",
}
"""Column of a table -> what it says."""


def heads_kept(ks: Sequence[int]) -> list[str]:
    """Numbers of heads kept as axes name them."""
    return [f"k = {k}" for k in ks]


def tips_words(names: Sequence[str], tipping: Sequence[int | None]) -> str:
    """Tipping points in words."""
    return ", ".join(f"{name} {'none' if k is None else f'k = {k}'}" for name, k in zip(names, tipping, strict=True))


@dataclass(frozen=True)
class Accuracies(OfConditions):
    """Accuracy under conditions; every tensor has one entry for each, along the axes that its holder names.

    Attributes:
        mean: mean score ÷ highest score, 0 … 1; NaN where no cell was run.
        low: lower end of its 95 % interval over prompts; NaN likewise.
        high: upper end.
        chance: the same mean over the controls; NaN where none was run.
        n: prompts with a needle.
        n_control: controls.
    """

    mean: Float32[Tensor, "*condition"]
    low: Float32[Tensor, "*condition"]
    high: Float32[Tensor, "*condition"]
    chance: Float32[Tensor, "*condition"]
    n: Int64[Tensor, "*condition"]
    n_control: Int64[Tensor, "*condition"]


@dataclass(frozen=True)
class Differences(OfConditions):
    """Accuracy under conditions minus that under others, over the same places of the grid.

    Attributes:
        mean: mean of the differences, -1 … 1; NaN where no place was run under both.
        low: lower end of its 95 % interval over places, each drawn with both its scores.
        high: upper end.
        n: places compared: prompts of equal length and depth.
    """

    mean: Float32[Tensor, "*condition"]
    low: Float32[Tensor, "*condition"]
    high: Float32[Tensor, "*condition"]
    n: Int64[Tensor, "*condition"]


def beside(found: Differences, name: str) -> dict[str, Float32[Tensor, "value condition"]]:
    """Differences as columns of a table whose first axis has the two values compared: they stand with the second."""
    named = {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    return {key: torch.stack([torch.full_like(value, torch.nan), value]) for key, value in named.items()}


def curves_of(
    names: Sequence[str], ks: Sequence[int], found: Accuracies, tipping: Sequence[int | None]
) -> list[charts.Curve]:
    """A line for each place along the first axis."""
    parts = zip(names, found.values(), tipping, strict=True)
    return [charts.Curve(name, dict(zip(ks, row, strict=True)), tip) for name, row, tip in parts]
