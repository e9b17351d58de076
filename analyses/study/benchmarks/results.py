"""What a benchmark run gives: a score for every task, k and metric, and what it loses against all heads.

A `BenchmarkResult` is a value: it can be saved, loaded and shown without lm-eval. Scores of single documents are
kept where they lie between 0 and 1, and differences between two k are then taken document by document, with a
bootstrap interval over documents (`hybridlens.results.paired_difference`).

How it fails: `ResultsError` for a score that was not measured, `InputError` for a file that is no such result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from analyses.experiment.artefacts import Stored
from analyses.experiment.text import columns
from hybridlens.display import Displayed, Piece, Table, listed, many, number
from hybridlens.display.markup import cut
from hybridlens.errors import ResultsError, closest
from hybridlens.results import Interval, paired_difference
from hybridlens.viz.entries import Value
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

NORMAL = 1.959964
"""Standard errors on either side of a 95 % interval."""

SHARES = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "f1", "mcc", "mean"})
"""Metrics that are shares of 1, and are told in percent and points; others keep their unit."""


@dataclass(frozen=True)
class BenchmarkRow(Displayed):
    """One metric of one task under one k.

    Attributes:
        task: task or group, as lm-eval calls it; or a tag such as "glue", whose "mean" is the unweighted mean over
            its tasks, and of a task's metrics first where it has several.
        k: heads kept in each layer.
        metric: lm-eval's name, with its filter behind a comma where that is not "none".
        value: the score, as lm-eval gives it: a share of 1 for those in `SHARES`.
        stderr: its standard error, where lm-eval knows one.
        n: documents.
        higher_is_better: which way is good; None where lm-eval does not say.
        scores: of every document in order, where all lie between 0 and 1.
        truncated: requests of the task whose beginning was cut off to fit `max_length`.
    """

    task: str
    k: int
    metric: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool | None = None
    scores: tuple[float, ...] | None = None
    truncated: int = 0

    def summary(self) -> str:
        """The score, of what and under which k."""
        error = "" if self.stderr is None else f" ± {number(self.stderr, 2)}"
        return f"{self.task}, k = {self.k}: {self.metric} {number(self.value)}{error}, {many(self.n, 'document')}"

    @property
    def in_percent(self) -> bool:
        """Whether the value is a share of 1."""
        return self.metric.split(",")[0] in SHARES


class _Difference(NamedTuple):
    """Fields of `Difference`."""

    value: float
    interval: Interval | None
    """95 % over documents; None where there are no scores of single documents."""


class Difference(Displayed, _Difference):
    """What a task gains (loses, below 0) at one k against another; in points where the metric is a share."""

    __slots__ = ()


@dataclass(frozen=True)
class BenchmarkResult(Plotted, Stored, text=True):
    """Every score of a run.

    Attributes:
        model: what the results call the model.
        n_heads: heads of a layer; k = n_heads is the untouched model.
        rows: task by task in the order asked for, k by k, metric by metric; the first metric of a task comes first.
        arguments: name -> JSON value of everything that can change a score.
        environment: versions and the machine (`hybridlens.results.environment`). Recorded only.
    """

    model: str
    n_heads: int
    rows: tuple[BenchmarkRow, ...]
    arguments: Mapping[str, Any]
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task, group and tag with a score."""
        return tuple(dict.fromkeys(row.task for row in self.rows))

    @property
    def ks(self) -> tuple[int, ...]:
        """Every k, in the order of the rows."""
        return tuple(dict.fromkeys(row.k for row in self.rows))

    def metrics(self, task: str) -> tuple[str, ...]:
        """The metrics of a task, the main one first.

        Raises:
            ResultsError: the task was not run.
        """
        found = tuple(dict.fromkeys(row.metric for row in self.rows if row.task == task))
        if not found:
            known = ", ".join(self.tasks)
            raise ResultsError(f"task {task!r} was not run{closest(task, self.tasks)}; there is {known}")
        return found

    def of(self, task: str, k: int, metric: str | None = None) -> BenchmarkRow:
        """One score; of the task's main metric unless another is named.

        Raises:
            ResultsError: it was not measured.
        """
        wanted = self.metrics(task)[0] if metric is None else metric
        for row in self.rows:
            if (row.task, row.k, row.metric) == (task, k, wanted):
                return row
        known = ", ".join(self.metrics(task))
        raise ResultsError(f"{task} has no {wanted!r} at k = {k}; there is {known} at k in {list(self.ks)}")

    def difference(self, task: str, k: int, metric: str | None = None, reference: int | None = None) -> Difference:
        """A score at k minus that at `reference`, all heads unless given, with its interval.

        Raises:
            ResultsError: one of the two was not measured.
        """
        here = self.of(task, k, metric)
        there = self.of(task, self.n_heads if reference is None else reference, metric)
        unit = 100.0 if here.in_percent else 1.0
        interval = None
        if here.scores is not None and there.scores is not None:
            low, high = paired_difference(here.scores, there.scores)
            interval = Interval(unit * low, unit * high)
        return Difference(unit * (here.value - there.value), interval)

    def summary(self) -> str:
        """Which tasks at which k."""
        tasks = f"{many(len(self.tasks), 'task')}: {listed(self.tasks, 5)}"
        return f"{cut(self.model, 40)}, {tasks}; k = {listed(self.ks)} of {self.n_heads} heads kept"

    def table(self) -> Table:
        """A row a score."""
        columns = ("task", "k", "metric", "value", "stderr", "n", "higher_is_better", "truncated")
        rows = [tuple(getattr(row, name) for name in columns) for row in self.rows]
        return Table(columns, rows, {"k": "heads kept in each layer", "n": "documents"}, ("value",))

    def view(self) -> tuple[Piece, ...]:
        """A line a task and metric, with what is lost against all heads."""
        header, *rows = self.lines()
        return (Table(tuple(header), [tuple(row) for row in rows], note="scores in %, with standard errors"),)

    def points(self, task: str) -> dict[int, Value]:
        """k -> the main metric of a task with its 95 % interval; empty where it is no share of 1."""
        metric = self.metrics(task)[0]
        rows = [row for row in self.rows if (row.task, row.metric) == (task, metric) and row.in_percent]
        found: dict[int, Value] = {}
        for row in sorted(rows, key=lambda row: row.k):
            wide = math.nan if row.stderr is None else NORMAL * row.stderr
            found[row.k] = Value(row.value, row.value - wide, row.value + wide, row.n)
        return found

    def plot(self, tasks: Sequence[str] | None = None) -> Plot:
        """Scores against heads kept, with 1.96 standard errors.

        Args:
            tasks: at most six; the first six whose main metric is a share of 1 when left out.

        Raises:
            ResultsError: a task was not run.
            InputError: more than six.
        """
        from hybridlens.viz.charts import Curve, line_chart
        from hybridlens.viz.plot import Plot

        found = {task: self.points(task) for task in (self.tasks if tasks is None else tasks)}
        curves = [Curve(task, points) for task, points in found.items() if points]
        return Plot(line_chart(curves[:6] if tasks is None else curves, self.n_heads, "score, %", whole=False))

    def lines(self) -> list[list[str]]:
        """A header and a line for every task and metric: its score at each k, and the differences to all heads."""
        fewer = [k for k in self.ks if k != self.n_heads] if self.n_heads in self.ks else []
        lines = [["task", "metric", "n", *(f"k = {k}" for k in self.ks), *(f"{k} less {self.n_heads}" for k in fewer)]]
        for task in self.tasks:
            for metric in self.metrics(task):
                found = {row.k: row for row in self.rows if (row.task, row.metric) == (task, metric)}
                if set(found) != set(self.ks):
                    continue
                line = [task, metric, str(found[self.ks[0]].n)]
                line += [_score(found[k]) for k in self.ks]
                line += [_change(self.difference(task, k, metric)) for k in fewer]
                lines.append(line)
        return lines

    def __str__(self) -> str:
        """The table as text, with what was cut off under it."""
        cut = {row.task: row.truncated for row in self.rows if row.truncated}
        notes = [f"{task}: the beginning of {n} requests was cut off to fit max_length" for task, n in cut.items()]
        return "\n".join([f"{self.model}: scores in %, with standard errors", columns(self.lines(), left=2), *notes])


@dataclass(frozen=True)
class Rows(Stored, text=True):
    """The scores of one task under one k, as a file."""

    rows: tuple[BenchmarkRow, ...]


def mean_row(task: str, k: int, parts: Sequence[Sequence[BenchmarkRow]]) -> BenchmarkRow:
    """The score of a tag: the unweighted mean over its tasks of the mean over each task's metrics.

    Args:
        task: the tag's name.
        k: heads kept.
        parts: the rows of each of its tasks at k.
    """
    values = [sum(row.value for row in rows) / len(rows) for rows in parts]
    stderr = None
    if all(len(rows) == 1 and rows[0].stderr is not None for rows in parts):
        stderr = sum((rows[0].stderr or 0.0) ** 2 for rows in parts) ** 0.5 / len(parts)
    n, cut = sum(rows[0].n for rows in parts), sum(rows[0].truncated for rows in parts)
    return BenchmarkRow(task, k, "mean", sum(values) / len(values), stderr, n, True, None, cut)


def _score(row: BenchmarkRow) -> str:
    unit, digits = (100.0, 1) if row.in_percent else (1.0, 3)
    error = "" if row.stderr is None else f" ±{unit * row.stderr:.{digits}f}"
    return f"{unit * row.value:.{digits}f}{error}"


def _change(change: Difference) -> str:
    interval = "" if change.interval is None else f" ({change.interval.low:+.1f} to {change.interval.high:+.1f})"
    return f"{change.value:+.1f}{interval}"
