"""`report.html` of curves of training: what the rules say, the rules, a panel for each quantity, and every number.

How it fails: pure; what was not measured has a dash in the tables and its reason below them, and a quantity that no run
has gets no panel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from analyses.experiment.text import columns
from analyses.study.points import Point
from analyses.study.training_curves.results import (
    CONTROLS,
    QUANTITIES,
    RunCurves,
    TrainingCurves,
    values,
)
from analyses.study.training_curves.rules import RULES, answers
from hybridlens.display import listed, many, number
from hybridlens.viz.article import Article
from hybridlens.viz.blocks import Chart, ChartGrid, Section, Table, Words
from hybridlens.viz.charts import Curve, step_chart
from hybridlens.viz.entries import Entry, percent
from hybridlens.viz.words import DASH, INTERVALS

SAME = (
    "Each checkpoint is asked the same prompts, so that steps are compared on equal ones and share what is peculiar to "
    "them. Curves are known at the kept steps only."
)


def article_of(found: TrainingCurves, record: Mapping[str, Any]) -> Article:
    """The page's contents.

    Args:
        found: the curves.
        record: the run's `run.json`.
    """
    checkpoints = sum(len(run.checkpoints) for run in found.runs)
    lengths = sorted({length for run in found.runs for length in run.lengths})
    going = [run for run in found.runs if run.checkpoints[-1].step < run.steps]
    notes = [
        f"{run.name} was measured up to step {run.checkpoints[-1].step} of {run.steps}: what is said of the end is of "
        "this step."
        for run in going
    ]
    return Article(
        subject="curves of training",
        over="When does attention take over? Checkpoints of training measured",
        origin=(
            many(len(found.runs), "run"),
            many(checkpoints, "checkpoint"),
            f"prompts of {listed(lengths)} tokens",
            f"seed {record.get('seed')}",
        ),
        finding=tuple(sentences(found)),
        notes=(*notes, SAME, INTERVALS),
        sections=(_rules(found), _panels(found), *(_numbers(run) for run in found.runs)),
    )


def sentences(found: TrainingCurves) -> Iterable[str]:
    """What every rule says of every run."""
    for run in found.runs:
        for answer in answers(run):
            yield f"{run.name}, {answer.question}: {answer.outcome}. {answer.sentence}"


def curves_table(found: TrainingCurves) -> Iterable[str]:
    """Every number for a terminal, run by run, and what the rules say."""
    for run in found.runs:
        names = [name for name in QUANTITIES if run.curve(name)]
        yield f"{run.name}: {run.architecture}, seed {run.seed}; shares in percent"
        rows = [["step", *names]]
        rows += [[str(one.step), *(_brief(one.of(name)) for name in names)] for one in run.checkpoints]
        yield columns([list(row) for row in zip(*rows, strict=True)])
    yield from sentences(found)


def _rules(found: TrainingCurves) -> Section:
    """Each question with its rule, and every run's answer."""
    said = {run.name: {answer.question: answer for answer in answers(run)} for run in found.runs}
    rows: list[tuple[Entry, ...]] = []
    for question, rule in RULES.items():
        each = [said[run.name][question] for run in found.runs]
        rows.append(((question, rule), *((one.outcome, one.sentence) for one in each)))
    return Section("rules", "What the curves say, by rule", (Table(("question and rule", *said), tuple(rows)),))


def _panels(found: TrainingCurves) -> Section:
    """A chart of each quantity that some run has; controls are drawn with what they are the control of."""
    charts: list[Chart] = []
    for name, quantity in QUANTITIES.items():
        curves = [Curve(run.name, values(run, name)) for run in found.runs if run.curve(name)]
        if curves and name not in CONTROLS.values():
            figure = step_chart(curves, name, quantity.share)
            charts.append(Chart(figure, f"{name} over the steps of training: {quantity.words}", name))
    words = (
        "A panel for each quantity and a line for each run; bands are 95 % intervals over prompts (of answers while "
        "training, over steps), dotted lines the same prompts with the needle left out. Strengths are read off the "
        "weights, recurrent layers taken for linear at their mean over filler text."
    )
    what = Table(("quantity", "what it is"), tuple((n, q.words) for n, q in QUANTITIES.items()), "What each is")
    return Section("curves", "Over the steps of training", (Words(words), ChartGrid(tuple(charts)), what))


def _numbers(run: RunCurves) -> Section:
    """Every number of one run, and why others are missing."""
    names = [name for name in QUANTITIES if run.curve(name)]
    rows = tuple((str(one.step), *(_entry(one.of(name)) for name in names)) for one in run.checkpoints)
    missing = {name: run.absent(name) for name in QUANTITIES if name not in names}
    lacking = (Table(("not measured", "why"), tuple(missing.items())),) if missing else ()
    blocks = (Table(("step", *names), rows, "Every number"), *lacking)
    title = f"{run.name}: {run.architecture}, seed {run.seed}, {many(len(run.checkpoints), 'checkpoint')}"
    return Section(f"run-{run.name}", title, blocks)


def _entry(point: Point) -> Entry:
    """A number above its interval and what it is of; a dash where there is none."""
    if point.value is None:
        return DASH
    if not QUANTITIES[point.quantity].share:
        return number(point.value, 3)
    if point.low is None or point.high is None:
        return percent(point.value)
    return percent(point.value), f"{100 * point.low:.1f} to {100 * point.high:.1f}, n\u00a0=\u00a0{point.n}"


def _brief(point: Point) -> str:
    """A number for a terminal."""
    if point.value is None:
        return DASH
    if not QUANTITIES[point.quantity].share:
        return number(point.value, 3)
    ends = "" if point.low is None or point.high is None else f" ({100 * point.low:.0f}–{100 * point.high:.0f})"
    return f"{100 * point.value:.0f}{ends}"
