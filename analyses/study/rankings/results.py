"""What a comparison of rankings found, as typed values: curves, areas, heads needed, agreement, general ability.

A comparison has one row for each ranking: first the paper's method at run time, where it was run, then the static
rankings in the order given, then "random", the mean over random draws. All rows are of the same prompts, so that
any two can be compared prompt by prompt.

The paper's method has no order to keep: its row is the k heads of lowest entropy in each layer, chosen anew at every
query, at the numbers of heads that are k for every layer. At the others its values are NaN, and against it every
ranking is taken at its counts alone.

How it fails: intervals are over prompts (`hybridlens.results.statistics`), not over models. Those of "random" hold
the draws fixed; how far draws differ is in `draw_area`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.heads.ranking import HeadRanking, check_name
from analyses.study.rankings.agreement import kendall, spearman
from analyses.study.rankings.curves import Needed, Value, accuracies, area, area_difference, areas, needed
from analyses.study.rankings.deciding import Decision, decide
from hybridlens import niah
from hybridlens.display import Curve as Lines
from hybridlens.display import Grid, Piece, Table, listed, many, number
from hybridlens.display.markup import cut
from hybridlens.errors import ResultsError
from hybridlens.results import Cell, CellKey
from hybridlens.viz.charts import Curve, band_chart
from hybridlens.viz.entries import Value as Point
from hybridlens.viz.layout import COLORS
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

BANDS = "accuracy, % of the highest score<br>bands: 95 % interval over prompts"
"""Of the axis of accuracies."""

RUN_TIME = "entropy at run time"
"""The row of the paper's method."""

RANDOM = "random"
"""The row of the mean over random draws, which are named "random 0", "random 1", …"""


@dataclass(frozen=True)
class Ability(Plotted, Stored, text=True):
    """What is left of the rest, by ranking and count.

    Attributes:
        loss: mean cross-entropy of the next token over held-out filler, in nats; NaN at `RUN_TIME`, and everywhere
            where it was not taken.
        task_counts: the numbers of heads kept at which tasks were run.
        tasks: accuracy by task, 0 … 1; NaN at `RUN_TIME` and at random rankings.
    """

    loss: Float[Tensor, "ranking count"]
    task_counts: tuple[int, ...]
    tasks: Mapping[str, Float[Tensor, "ranking task_count"]]

    def summary(self) -> str:
        """Losses and tasks of how many rankings."""
        rankings, counts = self.loss.shape
        tasks = f"{listed(self.tasks, 6)} at {listed(self.task_counts, 6)} heads" if self.tasks else "no task"
        return f"{many(rankings, 'ranking')} at {many(counts, 'count')} of heads kept; {tasks}"

    def table(self) -> Table:
        """A row for each ranking and place among the counts, by their places: the loss, then each task's accuracy."""
        axes: dict[str, None] = dict.fromkeys(("ranking", "count"))
        loss = Table.of({"value": self.loss}, axes)
        rows: list[tuple[str | int | float | None, ...]] = [("loss", *row) for row in loss.rows]
        for task, values in self.tasks.items():
            rows += [(task, *row) for row in Table.of({"value": values}, axes).rows]
        meanings = {"count": "the place among the counts; of tasks, among task_counts", "value": "nats; tasks: 0 to 1"}
        return Table(("what", *loss.columns), rows, meanings)

    def view(self) -> tuple[Piece, ...]:
        """The loss of every ranking at every count."""
        rows, columns = ([str(i) for i in range(n)] for n in self.loss.shape)
        words = "rankings", "counts of heads kept", "loss of held-out filler, nats a token"
        return (Grid(self.loss, rows, columns, *words),)


@dataclass(frozen=True, eq=False)
class RankingComparison(Plotted):
    """Rankings side by side.

    Attributes:
        model: what results call the model.
        scope: "model": counts are heads of the model; "layer": of each layer.
        phase: "both" or "generation": when the other heads were silent.
        names: the rows.
        sources: what each row is, in words.
        counts: heads kept, from none to all.
        scores: each prompt's score as a share of the highest, 0 … 1; NaN where not run.
        accuracy: mean over prompts.
        low: lower end of its 95 % interval over prompts.
        high: upper end.
        area: under each curve, 0 … 1.
        heads_needed: the fewest from which on accuracy stays at or above half of the untouched model's.
        reference: the row that the others are compared with.
        above_reference: each row's area less the reference's, over the same prompts, at common counts.
        draws: names of the random rankings; () where there was none.
        draw_accuracy: their accuracies.
        draw_area: their areas.
        ranked: the static rankings that were given.
        spearman: rank correlations between these.
        kendall: likewise, tau-b.
        decision: what can be told of which ranking keeps most.
        ability: general ability.
        notes: what was chosen on the way, a sentence each.
    """

    model: str
    scope: str
    phase: str
    names: tuple[str, ...]
    sources: tuple[str, ...]
    counts: tuple[int, ...]
    scores: Float[Tensor, "ranking prompt count"]
    accuracy: Float[Tensor, "ranking count"]
    low: Float[Tensor, "ranking count"]
    high: Float[Tensor, "ranking count"]
    area: tuple[Value, ...]
    heads_needed: tuple[Needed, ...]
    reference: str
    above_reference: tuple[Value, ...]
    draws: tuple[str, ...]
    draw_accuracy: Float[Tensor, "draw count"]
    draw_area: Float[Tensor, "draw"]
    ranked: tuple[str, ...]
    spearman: Float[Tensor, "ranked ranked"]
    kendall: Float[Tensor, "ranked ranked"]
    decision: Decision
    ability: Ability
    notes: tuple[str, ...]

    @property
    def full(self) -> float:
        """Accuracy of the untouched model, 0 … 1."""
        return float(self.accuracy[0, -1])

    def place(self, name: str) -> int:
        """The row of a name.

        Raises:
            UnknownNameError: there is none.
        """
        check_name(name, self.names, "was not compared")
        return self.names.index(name)

    def difference(self, name: str, other: str) -> Value:
        """By how much the area of one is above the other's, over the same prompts, with its interval.

        Raises:
            UnknownNameError: one of them was not compared.
        """
        return area_difference(self.scores[self.place(name)], self.scores[self.place(other)], self.counts)

    def by_area(self) -> list[str]:
        """The rows, largest area first."""
        return sorted(self.names, key=lambda name: -self.area[self.place(name)].value)

    @property
    def fixed(self) -> list[str]:
        """The rows that every figure shows: the reference and the random level."""
        return [name for name in (self.reference, RANDOM) if name in self.names]

    def shown(self) -> list[str]:
        """The rows of a figure that has room for six: the largest areas, the reference and the random level."""
        free = [name for name in self.by_area() if name not in self.fixed][: len(COLORS) - len(self.fixed)]
        return sorted([*free, *self.fixed], key=self.by_area().index)

    def curve(self, name: str) -> Curve:
        """Accuracy against heads kept of one row, with its intervals; errors as those of `row`."""
        row, n = self.place(name), self.scores.shape[1]
        columns = zip(self.counts, self.accuracy[row], self.low[row], self.high[row], strict=True)
        points = {count: Point(float(mean), float(low), float(high), n) for count, mean, low, high in columns}
        return Curve(name, points)

    def summary(self) -> str:
        """How many rankings over how many prompts, and the largest areas."""
        best = ", ".join(
            f"{cut(name, 30)} {number(self.area[self.place(name)].value, 2)}" for name in self.by_area()[:2]
        )
        return f"{many(len(self.names), 'ranking')}, {many(self.scores.shape[1], 'prompt')}; largest areas: {best}"

    def table(self) -> Table:
        """A row for each ranking and number of heads kept."""
        values = {"accuracy": self.accuracy, "low": self.low, "high": self.high, "loss": self.ability.loss}
        meanings = {"accuracy": "share of the highest score", "loss": "of held-out filler, nats a token"}
        return Table.of(values, {"ranking": self.names, "heads_kept": self.counts}, meanings)

    def view(self) -> tuple[Piece, ...]:
        """Area and heads needed of each ranking, largest area first, and accuracy against heads kept."""
        rows: list[tuple[str | int | float, ...]] = []
        for name in self.by_area():
            row = self.place(name)
            rows.append((name, *self.area[row], *self.heads_needed[row], self.sources[row]))
        columns = ("ranking", "area", "low", "high", "heads needed", "fewest", "most", "source")
        meanings = {"area": "under accuracy, 0 to 1, with its 95 % interval", "heads needed": "that keep half"}
        lines = {name: self.accuracy[self.place(name)].tolist() for name in self.shown()}
        drawn = Lines(self.counts, lines, "heads kept", "accuracy, 0 to 1")
        return (Table(columns, rows, meanings, ("area",)), drawn)

    def plot(self, names: Sequence[str] | None = None) -> Plot:
        """Accuracy against heads kept, bands over the 95 % intervals: the figure of the report.

        Args:
            names: at most six rows; those of `shown` when left out.

        Raises:
            UnknownNameError: there is no such row.
            InputError: more than six.
        """
        from hybridlens.viz.plot import Plot

        kept = "attention heads kept" + (", of the model" if self.scope == "model" else " in every layer")
        curves = [self.curve(name) for name in (self.shown() if names is None else names)]
        return Plot(band_chart(curves, self.counts[-1], BANDS, kept))


def is_draw(name: str) -> bool:
    """Whether a ranking is one of several random draws, by its name."""
    return name.startswith(f"{RANDOM} ")


def keys_of(name: str, counts: Sequence[int], base: CellKey, layers: int) -> dict[int, CellKey]:
    """The cells of one row at one prompt, by the number of heads kept.

    Args:
        name: `RUN_TIME`, or a ranking's.
        counts: heads kept.
        base: a cell of the comparison's scope at that prompt.
        layers: attention layers that share a count: those of the model with scope "model", else 1.
    """
    if name != RUN_TIME:
        return {n: base._replace(k=n, ranking=name) for n in counts}
    return {n: base._replace(k=n // layers, ranking="", scope="layer") for n in counts if n % layers == 0}


def scores_of(
    cells: Mapping[CellKey, Cell], name: str, counts: Sequence[int], bases: Sequence[CellKey], layers: int
) -> Float[Tensor, "prompt count"]:
    """The scores of one row (`keys_of`) at the prompts of `bases`, 0 … 1, NaN at counts that it does not have.

    Raises:
        ResultsError: a cell is missing.
    """
    found = torch.full((len(bases), len(counts)), float("nan"))
    for row, base in enumerate(bases):
        for n, key in keys_of(name, counts, base, layers).items():
            if key not in cells:
                raise ResultsError(f"the cell ({key.words()}) is missing; run the comparison to its end")
            found[row, counts.index(n)] = float(cells[key].score) / niah.MAX_SCORE
    return found


def decision_of(
    cells: Mapping[CellKey, Cell],
    bases: Sequence[CellKey],
    rankings: Mapping[str, HeadRanking],
    counts: Sequence[int],
    layers: int,
    run_time: bool,
    precision: float,
    looks: Sequence[int] | None = None,
) -> Decision:
    """What the cells of one look, and of those before, can tell of the rankings; arguments as `comparison`, `decide`.

    Random draws are a level and not compared; where there is nothing else, one of them stands alone. Rankings of one
    order share their scores, and so are equal for sure.

    Raises:
        ResultsError: a cell is missing.
    """
    names = [name for name in rows_of(rankings, run_time) if name != RANDOM] or list(rankings)[:1]
    rows: dict[str, Float[Tensor, "prompt count"]] = {}
    alike: dict[object, str] = {}
    for name in names:
        first = alike.setdefault(tuple(rankings[name].order) if name in rankings else name, name)
        rows[name] = scores_of(cells, name, counts, bases, layers) if first == name else rows[first]
    return decide(rows, counts, precision, looks)


def comparison(
    cells: Mapping[CellKey, Cell],
    bases: Sequence[CellKey],
    rankings: Mapping[str, HeadRanking],
    counts: Sequence[int],
    layers: int,
    run_time: bool,
    phase: str,
    decision: Decision,
    ability: Ability,
    notes: Sequence[str] = (),
) -> RankingComparison:
    """Put the cells of a comparison together.

    Args:
        cells: of every row, count and prompt.
        bases: a cell of the comparison's scope at each prompt.
        rankings: those given and random draws, by name.
        counts: heads kept, ascending from none to all.
        layers: see `keys_of`.
        run_time: whether the paper's method was run.
        phase: "both" or "generation".
        decision: of the same cells (`decision_of`).
        ability: general ability, for the rows in order.
        notes: what was chosen on the way.

    Raises:
        ResultsError: a cell is missing, or there is no ranking.
    """
    found = {name: scores_of(cells, name, counts, bases, layers) for name in rankings}
    ranked = tuple(name for name in rankings if not is_draw(name))
    draws = tuple(name for name in rankings if is_draw(name))
    rows = {RUN_TIME: scores_of(cells, RUN_TIME, counts, bases, layers)} if run_time else {}
    rows |= {name: found[name] for name in ranked}
    if draws:
        rows[RANDOM] = torch.stack([found[name] for name in draws]).mean(0)
    if not rows:
        raise ResultsError("no ranking was given, expected at least one to compare")
    names = rows_of(rankings, run_time)
    scores = torch.stack([rows[name] for name in names])
    accuracy, low, high = torch.stack([accuracies(row) for row in scores], dim=1)
    static = [rankings[name] for name in ranked]
    none = torch.zeros(0, 0)
    return RankingComparison(
        model=bases[0].model,
        scope=bases[0].scope,
        phase=phase,
        names=names,
        sources=tuple(_source(name, rankings, len(draws)) for name in names),
        counts=tuple(counts),
        scores=scores,
        accuracy=accuracy,
        low=low,
        high=high,
        area=tuple(area(row, counts) for row in scores),
        heads_needed=tuple(needed(row, counts) for row in scores),
        reference=names[0],
        above_reference=tuple(area_difference(row, scores[0], counts) for row in scores),
        draws=draws,
        draw_accuracy=torch.stack([found[name].mean(0) for name in draws]) if draws else torch.zeros(0, len(counts)),
        draw_area=torch.tensor([float(areas(found[name], counts).mean()) for name in draws]),
        ranked=ranked,
        spearman=spearman(static) if static else none,
        kendall=kendall(static) if static else none,
        decision=decision,
        ability=ability,
        notes=tuple(notes),
    )


def rows_of(rankings: Mapping[str, HeadRanking], run_time: bool) -> tuple[str, ...]:
    """The names of a comparison's rows, in order."""
    first = (RUN_TIME,) if run_time else ()
    last = (RANDOM,) if any(map(is_draw, rankings)) else ()
    return (*first, *(name for name in rankings if not is_draw(name)), *last)


def _source(name: str, rankings: Mapping[str, HeadRanking], draws: int) -> str:
    """What a row is, in words."""
    if name == RUN_TIME:
        return "the heads of lowest attention entropy in each layer, chosen anew at every query, in bits (the paper's)"
    if name == RANDOM:
        return f"the mean over {draws} random orders of the heads"
    return rankings[name].source
