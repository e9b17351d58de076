"""The report of a study: the paper's claims with their verdicts, then every experiment that ran.

Views, verdicts and benchmark scores become the plain values of `hybridlens.viz.article`. An experiment counts as run
when this session or an earlier one of the same folder asked for it, and the folder holds its cells. `niah_page` is
figure 2 alone, with one needle.

How it fails: an experiment that was asked for and whose cells are missing leaves one line that says so in place of
its section.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from analyses.experiment.text import columns, percent_interval
from analyses.study.benchmark_section import benchmarks
from analyses.study.benchmarks.results import BenchmarkResult, BenchmarkRow
from analyses.study.experiments import EXPERIMENTS, Study
from analyses.study.explorer import BOUNDARY_WORDS, explorer, tied
from analyses.study.finding import as_it_is, finding
from analyses.study.groups import Base
from analyses.study.sections import SECTIONS
from analyses.study.under_both import UnderBoth, other_than, splits
from analyses.study.verdict import Verdict
from analyses.study.verdict_section import parted_first, verdict_section
from analyses.study.views import NEAR, near_ties
from hybridlens.display import Displayed, Piece, listed, many
from hybridlens.display import Table as Rows
from hybridlens.errors import ResultsError
from hybridlens.niah import MAX_SCORE
from hybridlens.results import Cell, CellKey, accuracy_points, ks_of, phases_of
from hybridlens.results import finding as found_of
from hybridlens.viz import PatternFigure
from hybridlens.viz.article import Article
from hybridlens.viz.blocks import Patterns, Section, Table, Words
from hybridlens.viz.words import END, INTERVALS, START, headline

_LEFT_OUT = "left out"


class _Judged(NamedTuple):
    """Fields of `Judged`."""

    study: Study
    cells: list[Cell]
    benchmarks: Sequence[BenchmarkRow] = ()
    verdicts: Sequence[Verdict] = ()
    notes: Sequence[str] = ()
    both: Sequence[UnderBoth] = ()


class Judged(Displayed, _Judged):
    """What a study found.

    Attributes:
        study: what ran.
        cells: all of the study, of one model.
        benchmarks: their scores; empty where none were run.
        verdicts: on the paper's claims.
        notes: what was chosen, left out, or spent, one sentence each. One that begins with the name of an
            experiment and a colon stands in its section.
        both: the claims under clean and under published semantics, those that differ first; empty where one was run.
    """

    __slots__ = ()

    def summary(self) -> str:
        """How much was answered, and what became of the claims."""
        outcomes = [verdict.outcome for verdict in self.verdicts]
        counts = ", ".join(f"{outcomes.count(name)} {name}" for name in dict.fromkeys(outcomes)) or "no verdicts"
        parted = sum(one.differs for one in self.both)
        part = f"; {many(parted, 'claim parts', 'claims part')} by semantics" if parted else ""
        return f"{many(len(self.cells), 'cell')} of {listed(self.study.experiments, 8)}; {counts}{part}"

    def table(self) -> Rows:
        """A row a cell: where it stands, its score and its answer."""
        columns = (*CellKey._fields, "score", "text")
        return Rows(columns, [tuple(getattr(cell, name) for name in columns) for cell in self.cells])

    def view(self) -> tuple[Piece, ...]:
        """What became of each claim, and what becomes of it under the other semantics where that was run."""
        names = ("id", "claim", "paper", "measured", "outcome", "reason")
        away = {one.own.id: one for one in self.both}
        other = (other_than(self.study.base.semantics),) if away else ()
        rows = [
            (*(getattr(one, name) for name in names), *([away[one.id].other.outcome] if away else []))
            for one in parted_first(self.verdicts, away)
        ]
        return (Rows((*names, *other), rows),)


def page_of(found: Judged, record: Mapping[str, Any], ran: Collection[str]) -> Article:
    """The page's contents; verdicts and benchmarks have a section where there are some.

    Args:
        found: what it shows.
        record: the study's `run.json`.
        ran: experiments that this and earlier sessions asked for.
    """
    study, cells, benchmark_rows, verdicts, notes, both = found
    model = str(record["model"])
    notes = list(dict.fromkeys(notes))
    kinds = {note: note.partition(": ")[0] for note in notes}
    told = {
        name: [Words(note.removeprefix(f"{name}: "), note=True) for note in notes if kinds[note] == name]
        for name in EXPERIMENTS
    }
    rest = [note for note in notes if kinds[note] not in (*EXPERIMENTS, _LEFT_OUT)]
    split = splits(cells, study.base) if both else []
    judged = [verdict_section(verdicts, both, split)] if verdicts else []
    sections = list(judged) if cells else []
    for name in SECTIONS:
        if name in ran:
            sections.append(_section(name, cells, study.base, told[name]))
        if name == "table1":
            if cells:
                sections.append(_answers(cells, study.base, told["maps"]))
            if benchmark_rows:
                sections.append(benchmarks(benchmark_rows, model, study.base.n_heads))
    if not cells:
        sections += judged
    if cells:
        sections += [_ties(cells), _costs(cells, rest)]
    return Article(
        subject="the paper's experiments",
        over=f"Retrieval and attention in {_kind(record, study.base)}: the paper's experiments",
        origin=_origin(cells, record, study.base),
        finding=finding(cells, benchmark_rows, verdicts, study.base, model, both),
        notes=(*(note for note in notes if kinds[note] == _LEFT_OUT), *([INTERVALS] if cells else [])),
        sections=tuple(sections),
    )


def niah_page(
    cells: Sequence[Cell],
    record: Mapping[str, Any],
    base: Base,
    patterns: Sequence[PatternFigure],
    notes: Sequence[str],
) -> Article:
    """The page of figure 2 with one needle.

    Args:
        cells: of one model.
        record: the run's `run.json`.
        base: what the cells have in common.
        patterns: of the heads that look at the needle.
        notes: what a reader has to know, one sentence each.

    Raises:
        ResultsError: no cell holds a needle.
    """
    model = str(record["model"])
    if not base.n_heads:
        notes = (*notes, "No attention: nothing to silence, and no head that looks at the needle.")
    phases = [phase for phase in phases_of(cells) if ks_of(cells, phase)]
    found = [found_of(accuracy_points(cells, phase, MAX_SCORE), phase) for phase in phases]
    words = (
        "Each row is the token that looks, each column the token looked at; the darker, the more attention. Point at a "
        "head to see it large, click to keep it."
    )
    shown = (Words(words), Patterns(tuple(patterns)))
    once = [replace(cell, jrt=False) for cell in cells]
    return Article(
        subject="needle in a haystack",
        over="Needle in a haystack" + (", heads kept by lowest entropy" if base.n_heads else ""),
        origin=_origin(cells, record, base),
        finding=tuple(headline(found, model, base.n_heads)) if base.n_heads else tuple(as_it_is(once, base, model)),
        notes=(*notes, INTERVALS),
        sections=(
            _section("fig2", once, base),
            _answers(cells, base, (), full=True),
            *([Section("patterns", "Heads that look at the needle", shown)] if base.n_heads else []),
            _ties(cells),
            _costs(cells, ()),
        ),
    )


def accuracy_table(cells: Sequence[Cell], model: str) -> str:
    """Accuracy in percent for every k and phase, each with its 95 % interval over prompts and its chance level.

    Raises:
        ResultsError: there is no cell to average.
    """
    phases = phases_of(cells)
    rows = {k: [str(k)] for k in sorted({k for phase in phases for k in ks_of(cells, phase)}, reverse=True)}
    for phase in phases:
        points = {point.k: point for point in accuracy_points(cells, phase, MAX_SCORE)}
        for k, row in rows.items():
            point = points.get(k)
            row.append("" if point is None else percent_interval(point.accuracy, point.low, point.high))
            row.append("" if point is None or point.chance is None else f"{100 * point.chance:.1f}")
    header = ["heads kept", *(name for phase in phases for name in (phase, "chance"))]
    title = f"{model}: accuracy in % of the highest score (95 % interval over prompts); chance: the needle left out"
    return f"{title}\n{columns([header, *rows.values()], left=0)}"


def score_table(rows: Sequence[BenchmarkRow], model: str) -> str:
    """Scores of the benchmarks at every number of heads kept, with the differences to all heads."""
    return str(BenchmarkResult(model, max((row.k for row in rows), default=0), tuple(rows), {}))


def _section(name: str, cells: Sequence[Cell], base: Base, told: Sequence[Words] = ()) -> Section:
    """An experiment's section with its notes; where its cells are missing, with the line that says so."""
    title, make = SECTIONS[name]
    title = "Retrieval" if name == "fig2" and not base.n_heads else title
    try:
        return Section(name, title, (*make(cells, base), *told))
    except ResultsError as error:
        return Section(name, EXPERIMENTS[name].title, (Words(str(error), note=True),))


def _answers(cells: Sequence[Cell], base: Base, told: Sequence[Words], full: bool = False) -> Section:
    words = (
        f"Every answer of the study. A square is a prompt. Top: needle at the {START}. Bottom: at the {END}. Left "
        "to right: short to long prompts. Choose what to look through, then a map, then a square in it."
    )
    return Section("maps", "Retrieval maps and answers", (Words(words), *told, explorer(cells, base, full)))


def _ties(cells: Sequence[Cell]) -> Section:
    """How many answers hung on rounding."""
    known = [cell for cell in cells if cell.margin is not None]
    found = near_ties(cells)
    unknown = "" if len(known) == len(cells) else f" It was not recorded of {many(len(cells) - len(known), 'cell')}."
    words = (
        f"In {len(found):,} of {many(len(known), 'cell')} the two best logits of some token lay within {NEAR:g} of "
        f"each other, where rounding may decide the token.{unknown}"
    )
    return Section("near-ties", "Near ties", (Words(words), *((tied(found),) if found else ())))


def _costs(cells: Sequence[Cell], notes: Sequence[str]) -> Section:
    seconds = sum(cell.seconds for cell in cells)
    counted = [cell.tokens for cell in cells if cell.tokens is not None]
    rows = [
        ("cells", f"{len(cells):,}"),
        ("seconds, all sessions", f"{seconds:,.1f}"),
        ("milliseconds a cell", f"{1000 * seconds / len(cells):,.1f}"),
        ("tokens generated, each cell counted by itself", f"{sum(counted):,}" if counted else "–"),
    ]
    return Section("costs", "Costs", (*(Words(note) for note in notes), Table(("", ""), tuple(rows))))


def _kind(record: Mapping[str, Any], base: Base) -> str:
    """What sort of model it is: with attention and recurrences, or one of them alone."""
    if not base.n_heads:
        return "a model without attention"
    alone = record.get("facts", {}).get("recurrent layers") == []
    return "a model of attention alone" if alone else "a hybrid model"


def _origin(cells: Sequence[Cell], record: Mapping[str, Any], base: Base) -> tuple[str, ...]:
    """How much was run, under which rules."""
    controls = sum(cell.control for cell in cells)
    rules = f"{base.semantics} semantics, answering from {BOUNDARY_WORDS[base.boundary]}"
    if not cells:
        return (f"seed {record.get('seed')}",)
    counts = f"{many(len(cells) - controls, 'answer')} with the needle in the prompt, {controls:,} without"
    return counts, rules, f"seed {record.get('seed')}"
