"""The section of a study's report with benchmark scores: lm-eval's tasks against heads kept, as figures and tables.

Tasks that are part of a group that was run as well are folded away. Scores that are no share of 1 stand in the
table only.

How it fails: pure; a score that is missing at some k is a dash.
"""

from __future__ import annotations

from collections.abc import Sequence

from analyses.study.benchmarks.results import BenchmarkResult, BenchmarkRow
from analyses.study.evidence import GLUE_TASKS
from analyses.study.sections import AS_IT_IS, kept
from hybridlens.viz.blocks import Block, Chart, Section, Table, Words
from hybridlens.viz.charts import Curve, line_chart
from hybridlens.viz.entries import Entry, signed
from hybridlens.viz.words import DASH

_PER_CHART = 5


def benchmarks(rows: Sequence[BenchmarkRow], model: str, n_heads: int) -> Section:
    """Scores of lm-eval's tasks against heads kept; parts of a group are folded away."""
    result = BenchmarkResult(model, n_heads, tuple(rows), {})
    groups = {task: _group_of(task, result.tasks) for task in result.tasks}
    main, parts = ([task for task in groups if (groups[task] is None) == whole] for whole in (True, False))
    drawn = [Curve(task, points) for task in main if (points := result.points(task))]
    y_title = "score, %<br>bars: 1.96 standard errors"
    words = (
        "Scores of lm-eval's tasks when heads are silenced in every forward pass (the prefill version). "
        "± is the standard error; differences to all heads are taken document by document where that is possible."
    )
    if not n_heads:
        words = f"Scores of lm-eval's tasks; ± is the standard error. {AS_IT_IS}"
    blocks: list[Block] = [Words(words)]
    for start in range(0, len(drawn) if n_heads else 0, _PER_CHART):
        curves = drawn[start : start + _PER_CHART]
        shares = all(point.mean >= 0 for curve in curves for point in curve.points.values())  # not so of correlations
        figure = line_chart(curves, n_heads, y_title, whole=shares)
        blocks.append(Chart(figure, "benchmark scores against heads kept; numbers in the table below"))
    blocks.append(_benchmark_table(result, main))
    if parts:
        named = dict.fromkeys(group for group in groups.values() if group is not None)
        blocks.append(_benchmark_table(result, parts, f"The {len(parts)} tasks of {', '.join(named)}"))
    return Section("benchmarks", "Benchmarks", tuple(blocks))


def _benchmark_table(result: BenchmarkResult, tasks: Sequence[str], summary: str = "") -> Table:
    fewer = [k for k in result.ks if k != result.n_heads] if result.n_heads in result.ks else []
    found = {(row.task, row.metric, row.k): row for row in result.rows}
    rows: list[tuple[Entry, ...]] = []
    for task in tasks:
        for metric in result.metrics(task):
            here = {k: found.get((task, metric, k)) for k in result.ks}
            n = next(row.n for row in here.values() if row is not None)
            line: list[Entry] = [(task, f"{metric}, n\u00a0=\u00a0{n}"), *(_score(row) for row in here.values())]
            both = [k for k in fewer if here[k] is not None and here[result.n_heads] is not None]
            line += [_change(result, task, k, metric) if k in both else DASH for k in fewer]
            rows.append(tuple(line))
    header = ("task", *(kept(k, result.n_heads) for k in result.ks), *(f"{kept(k)} minus all heads" for k in fewer))
    return Table(header, tuple(rows), summary)


def _score(row: BenchmarkRow | None) -> Entry:
    if row is None:
        return DASH
    unit, digits, sign = (100.0, 1, "\u00a0%") if row.in_percent else (1.0, 3, "")
    error = "" if row.stderr is None else f"±\u00a0{unit * row.stderr:.{digits}f}"
    return f"{unit * row.value:.{digits}f}{sign}", error


def _change(result: BenchmarkResult, task: str, k: int, metric: str) -> Entry:
    found = result.difference(task, k, metric)
    return signed(found.value), "" if found.interval is None else signed(*found.interval)


def _group_of(task: str, tasks: Sequence[str]) -> str | None:
    """The group among `tasks` that a task is part of; None where it stands for itself."""
    if task in GLUE_TASKS and "glue" in tasks:
        return "glue"
    return next((group for group in tasks if task.startswith(f"{group}_")), None)
