"""What the paper's figures are, as values: typed results that `analyses.study.views` makes from cells.

Accuracies are shares of the highest score, 0 … 1, with 95 % bootstrap intervals over prompts and the chance level
beside them. Every tensor says along which axes it lies, and its holder names what stands along each.

How it fails: NaN stands where no cell was run; `n` is 0 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from analyses.study.measured import (
    MEANINGS,
    Accuracies,
    Condition,
    Differences,
    beside,
    curves_of,
    heads_kept,
    tips_words,
)
from hybridlens.display import Curve, Displayed, Grid, Piece, Table, listed, many
from hybridlens.display.markup import cut
from hybridlens.results import Cell, TippingInterval
from hybridlens.viz import charts as chart
from hybridlens.viz.plotted import Plotted
from hybridlens.viz.words import PHASE_TITLES

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

READINGS = ("keep", "omit", "only", "binary", "null")
"""Rows of table 1: what is done to attention weights while the prompt is read."""

ANSWERINGS = ("keep", "omit", "only", "binary")
"""Columns of table 1: the same while the model answers."""

NEAR = 1e-4
"""Below this gap between the two best logits, rounding may decide a token."""


@dataclass(frozen=True)
class Fig2(Plotted):
    """Accuracy against heads kept (figure 2).

    Attributes:
        phases: names along ``phase``: "generation", "prefill", those that were run.
        ks: heads kept, along ``k``, ascending.
        accuracy: [phase, k].
        tipping: for each phase the largest k at which accuracy falls under half of the full model's; None
            where it never does.
        intervals: for each phase where the tipping point lies when prompts are drawn again; None where some
            prompt was not run at every k.
    """

    phases: tuple[str, ...]
    ks: tuple[int, ...]
    accuracy: Accuracies
    tipping: tuple[int | None, ...]
    intervals: tuple[TippingInterval | None, ...]

    def summary(self) -> str:
        """Which phases and k, and where accuracy tips."""
        tips = tips_words(self.phases, self.tipping)
        return f"accuracy at k = {listed(self.ks)}; tipping point: {tips}"

    def table(self) -> Table:
        """A row for each phase and k."""
        return Table.of(self.accuracy.columns(), {"phase": self.phases, "k": self.ks}, MEANINGS)

    def view(self) -> tuple[Piece, ...]:
        """Accuracy against heads kept."""
        lines = dict(zip(self.phases, self.accuracy.mean.tolist(), strict=True))
        return (Curve(self.ks, lines, "heads kept in every layer, k", "accuracy, 0 to 1"), self.table())

    def curves(self, names: Sequence[str]) -> list[chart.Curve]:
        """A line for each phase, under names, with its tipping point."""
        return curves_of(names, self.ks, self.accuracy, self.tipping)

    def plot(self, n_heads: int | None = None) -> Plot:
        """Accuracy against heads kept, with intervals and chance: the figure of the report.

        Args:
            n_heads: heads of a layer, so that the axis can name the untouched model.
        """
        from hybridlens.viz.plot import Plot

        return Plot(chart.line_chart(self.curves([PHASE_TITLES[p] for p in self.phases]), n_heads, chart.ACCURACY))


@dataclass(frozen=True)
class JrtResult(Plotted):
    """Accuracy with context and question given once and twice, generation version (figure 3, left).

    Attributes:
        ks: heads kept, along ``k``, ascending; the last is the full model where it was run.
        lengths: (length given once, length of the same context given twice), the pairs that are compared.
        accuracy: [reading, k]: first read once, at those lengths only, then read twice.
        gain: [k], read twice minus read once, by pair of lengths and depth.
        above_half: [k], read twice, minus half of the full model's on the same prompts; below 0 means that
            retrieval is lost.
    """

    ks: tuple[int, ...]
    lengths: tuple[tuple[int, int], ...]
    accuracy: Accuracies
    gain: Differences
    above_half: Differences

    def summary(self) -> str:
        """Which k, and what reading twice gains at the fewest heads."""
        return f"read once and twice at k = {listed(self.ks)}; gain at k = {self.ks[0]} {float(self.gain.mean[0]):+.1%}"

    def table(self) -> Table:
        """A row for each reading and k; what reading twice gains stands with it."""
        values = {**self.accuracy.columns(), **beside(self.gain, "gain"), **beside(self.above_half, "above_half")}
        return Table.of(values, {"reading": READ, "k": self.ks}, MEANINGS)

    def view(self) -> tuple[Piece, ...]:
        """Accuracy against heads kept, and what reading twice gains."""
        lines = dict(zip(READ, self.accuracy.mean.tolist(), strict=True))
        return (Curve(self.ks, lines, "heads kept in every layer, k", "accuracy, 0 to 1"), self.table())

    def plot(self) -> Plot:
        """Accuracy read once and twice, with intervals: the figure of the report."""
        from hybridlens.viz.plot import Plot

        bars = dict(zip(READ, self.accuracy.values(), strict=True))
        title = "attention heads kept in every layer"
        return Plot(chart.bar_chart(heads_kept(self.ks), bars, title, chart.ACCURACY))


READ: tuple[str, str] = ("read once", "read twice")
"""Names along ``reading`` of a `JrtResult`."""


@dataclass(frozen=True)
class Table1(Plotted):
    """Accuracy under every combination of manipulations (table 1).

    Attributes:
        readings: names along ``reading``, the table's rows.
        answerings: names along ``answering``, its columns.
        accuracy: [reading, answering].
        against_keep: [reading, answering], minus Keep-Keep on the same prompts.
    """

    readings: tuple[str, ...]
    answerings: tuple[str, ...]
    accuracy: Accuracies
    against_keep: Differences

    def summary(self) -> str:
        """Which manipulations, and the accuracy without any."""
        keep = float(self.accuracy.mean[0, 0])
        return f"reading {listed(self.readings)} × answering {listed(self.answerings)}; both kept {keep:.1%}"

    def table(self) -> Table:
        """A row for each combination: accuracy, and that less the accuracy with both kept."""
        against = {f"against_keep_{name}": value for name, value in self.against_keep.columns().items()}
        axes = {"reading": self.readings, "answering": self.answerings}
        return Table.of({**self.accuracy.columns(), **against}, axes, MEANINGS)

    def view(self) -> tuple[Piece, ...]:
        """Accuracy of every combination."""
        words = "what is done while the prompt is read", "while the model answers"
        return (Grid(self.accuracy.mean, self.readings, self.answerings, *words, "accuracy, 0 to 1"),)


@dataclass(frozen=True)
class Maps(Plotted):
    """Retrieval maps: the score at every length and depth, for each condition (figures 4 to 7 and 10).

    Attributes:
        conditions: along ``condition``.
        lengths: tokens, along ``length``, ascending.
        depths: percent, along ``depth``, ascending; 0 is the start of the context.
        score: score ÷ highest, [condition, length, depth]; NaN where no cell was run.
        chance: the control's, [condition, length]; NaN likewise.
    """

    conditions: tuple[Condition, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    score: Float32[Tensor, "condition length depth"]
    chance: Float32[Tensor, "condition length"]

    def summary(self) -> str:
        """How many maps of how many prompts."""
        grid = f"{many(len(self.lengths), 'length')} × {many(len(self.depths), 'depth')}"
        return f"{many(len(self.conditions), 'condition')}, {grid}; mean score {float(self.score.nanmean()):.1%}"

    def table(self) -> Table:
        """A row for each condition, length and depth; the controls stand with depth None."""
        rows: list[tuple[str | int | float | None, ...]] = []
        for i, condition in enumerate(self.conditions):
            for j, length in enumerate(self.lengths):
                scores = zip((*self.depths, None), [*self.score[i, j].tolist(), float(self.chance[i, j])], strict=True)
                rows += [(*condition, length, depth, score) for depth, score in scores]
        columns = (*Condition._fields, "length", "depth", "score")
        return Table(columns, rows, {"score": "share of the highest", "depth": "percent; none in a control"})

    def view(self) -> tuple[Piece, ...]:
        """The maps of the first and the last condition."""
        depths, lengths = [f"{depth:g} %" for depth in self.depths], [str(length) for length in self.lengths]
        words = "depths of the needle", "lengths in tokens", "score, 0 to 1"
        return tuple(
            Grid(self.score[i].T, depths, lengths, *words, self.conditions[i].words)
            for i in sorted({0, len(self.conditions) - 1})
            if self.conditions
        )

    def plot(self, condition: int = 0) -> Plot:
        """The map of one condition, by its place, with the controls below.

        Args:
            condition: which of `conditions`.
        """
        from hybridlens.viz.figures import map_figure
        from hybridlens.viz.plot import Plot

        scores = [*self.score[condition].T.tolist(), self.chance[condition].tolist()]
        percent = [[None if value != value else 100 * value for value in row] for row in scores]
        return Plot(map_figure(self.lengths, [*self.depths, None], percent))


@dataclass(frozen=True)
class NeedlesResult(Plotted):
    """Accuracy for several needles, generation version.

    Attributes:
        needles: names along ``needle``, the study's own first.
        ks: heads kept, along ``k``, ascending.
        accuracy: [needle, k], intervals over prompts.
        across: [k], mean over needles, interval over needles: how another set of them might come out.
    """

    needles: tuple[str, ...]
    ks: tuple[int, ...]
    accuracy: Accuracies
    across: Accuracies

    def summary(self) -> str:
        """How many needles, and the mean at the most heads."""
        mean = self.across.value(-1).mean
        return f"{many(len(self.needles), 'needle')} at k = {listed(self.ks)}; mean at the last {mean:.1%}"

    def table(self) -> Table:
        """A row for each needle and k; the mean over needles is needle None."""
        rows = [
            (name, k, *(value[i, j].item() for value in self.accuracy.columns().values()))
            for i, name in enumerate(self.needles)
            for j, k in enumerate(self.ks)
        ]
        columns = self.across.columns()
        rows += [(None, k, *(value[j].item() for value in columns.values())) for j, k in enumerate(self.ks)]
        return Table(("needle", "k", *columns), rows, MEANINGS)

    def view(self) -> tuple[Piece, ...]:
        """Accuracy by needle and heads kept, and the mean."""
        values = torch.cat([self.accuracy.mean, self.across.mean[None]])
        words = "needles", "heads kept in every layer", "accuracy, 0 to 1"
        return (Grid(values, [*self.needles, "mean"], heads_kept(self.ks), *words),)


@dataclass(frozen=True)
class Contrast(Plotted):
    """Accuracy against heads kept under two values of one setting, on the same prompts.

    Attributes:
        setting: "scope" or "boundary".
        values: the two, along ``value``; the study's own first.
        ks: heads kept, along ``k``, ascending.
        accuracy: [value, k], over the prompts run under both.
        difference: [k], second minus first.
        tipping: for each value, as in `Fig2`.
    """

    setting: str
    values: tuple[str, str]
    ks: tuple[int, ...]
    accuracy: Accuracies
    difference: Differences
    tipping: tuple[int | None, int | None]

    def summary(self) -> str:
        """Which setting, and where accuracy tips under both values."""
        return f"{self.setting}: {' | '.join(self.values)}; tipping point: {tips_words(self.values, self.tipping)}"

    def table(self) -> Table:
        """A row for each value and k; the second less the first stands with the second."""
        values = {**self.accuracy.columns(), **beside(self.difference, "difference")}
        return Table.of(values, {self.setting: self.values, "k": self.ks}, MEANINGS)

    def view(self) -> tuple[Piece, ...]:
        """Accuracy under both values."""
        lines = dict(zip(self.values, self.accuracy.mean.tolist(), strict=True))
        return (Curve(self.ks, lines, "heads kept, k", "accuracy, 0 to 1"), self.table())

    def curves(self, names: Sequence[str]) -> list[chart.Curve]:
        """A line for each value, under names, with its tipping point."""
        return curves_of(names, self.ks, self.accuracy, self.tipping)

    def plot(self, n_heads: int | None = None) -> Plot:
        """Accuracy against heads kept under both values.

        Args:
            n_heads: heads of a layer, so that the axis can name the untouched model.
        """
        from hybridlens.viz.plot import Plot

        return Plot(chart.line_chart(self.curves(self.values), n_heads, chart.ACCURACY))


class _Differing(NamedTuple):
    """Fields of `Differing`."""

    clean: Cell
    published: Cell


class Differing(Displayed, _Differing):
    """A cell whose text or score is another under the other semantics."""

    __slots__ = ()

    def summary(self) -> str:
        """Both answers."""
        texts = " | ".join(repr(cut(cell.text.strip(), 60)) for cell in self)
        return f"k = {self.clean.k}, length {self.clean.length}: {texts}"


@dataclass(frozen=True)
class SemanticsDifference(Plotted):
    """What changes between clean and published semantics, cell by cell.

    Attributes:
        conditions: along ``condition``.
        accuracy: [semantics, condition], clean first, over the cells that were run under both.
        difference: [condition], published minus clean.
        n_cells: cells compared, controls included.
        n_text: of them, with another text.
        n_score: of them, with another score.
        differing: those with another text or score, in the order of the clean cells.
    """

    conditions: tuple[Condition, ...]
    accuracy: Accuracies
    difference: Differences
    n_cells: int
    n_text: int
    n_score: int
    differing: tuple[Differing, ...]

    def parted(self) -> tuple[int, ...]:
        """Places of the conditions whose difference is told from 0, the largest first."""
        values = [self.difference.value(i) for i in range(len(self.conditions))]
        found = [i for i, value in enumerate(values) if value.low > 0 or value.high < 0]
        return tuple(sorted(found, key=lambda i: -abs(values[i].mean)))

    def summary(self) -> str:
        """How many cells have another text or score."""
        return (
            f"{many(self.n_cells, 'cell')} under clean and published semantics: {self.n_text:,} have another text, "
            f"{self.n_score:,} another score"
        )

    def table(self) -> Table:
        """A row for each semantics and condition; published less clean stands with published."""
        names = [condition.words for condition in self.conditions]
        values = {**self.accuracy.columns(), **beside(self.difference, "difference")}
        return Table.of(values, {"semantics": ("clean", "published"), "condition": names}, MEANINGS)

    def view(self) -> tuple[Piece, ...]:
        """Accuracy under both, by condition, and the second less the first."""
        names = [condition.words for condition in self.conditions]
        values = torch.cat([self.accuracy.mean, self.difference.mean[None]])
        rows = ["clean", "published", "published minus clean"]
        return (Grid(values.T, names, rows, "conditions", "semantics", "accuracy, 0 to 1"),)
