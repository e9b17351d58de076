"""The parts that a page is made of, as plain values.

A `Section` holds blocks: figures, patterns, tables, heat tables, verdicts, tables of what a model wrote, links,
other reports, and maps to look through.

How it fails: any text may stand anywhere; a row that is longer than its header is shown as it is.
"""

from dataclasses import dataclass
from typing import NamedTuple

import plotly.graph_objects as go

from hybridlens.viz.entries import Entry, Value
from hybridlens.viz.patterns import PatternFigure
from hybridlens.viz.words import DASH

OUTCOMES = {"holds": ("holds", "✓"), "fails": ("fails", "✗"), "not tested here": ("open", "○")}
"""Outcome of a claim -> the name of its style, and a sign that needs no colour."""


class Block:
    """What may stand in a section; the macro of `templates/blocks.html` that has its class's name makes HTML of it."""

    @property
    def kind(self) -> str:
        """The macro."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Chart(Block):
    """A Plotly figure.

    Attributes:
        words: what it shows, for those who cannot see it.
        title: stands above it; none where empty.
        height: pixels; None for that of every chart without one.
        least_width: pixels; on a narrower screen the figure is moved sideways.
    """

    figure: go.Figure
    words: str
    title: str = ""
    height: int | None = None
    least_width: int | None = None


@dataclass(frozen=True)
class ChartGrid(Block):
    """Figures side by side, two to a line where there is room."""

    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Patterns(Block):
    """Attention patterns, drawn by circuitsvis one below the other."""

    figures: tuple[PatternFigure, ...]


@dataclass(frozen=True)
class Table(Block):
    """Entries under headings.

    Attributes:
        header: a heading for each column.
        rows: entries; the first of each names the row.
        summary: where not empty, the table is folded away behind these words.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    summary: str = ""


@dataclass(frozen=True)
class HeatTable(Block):
    """Shares in a table, coloured by their size.

    Attributes:
        corner: what stands along rows and columns, in words.
        rows: names, with what they mean below.
        columns: likewise.
        values: [row, column].
    """

    corner: str
    rows: tuple[Entry, ...]
    columns: tuple[Entry, ...]
    values: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Answers(Block):
    """A folded table of what a model wrote.

    Attributes:
        summary: the words it is folded behind.
        rows: entries as text; those of the columns `texts` come from the model.
        texts: places of those columns.
    """

    summary: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: tuple[int, ...]


@dataclass(frozen=True)
class Words(Block):
    """A paragraph; a note is set apart from what surrounds it."""

    text: str
    note: bool = False


@dataclass(frozen=True)
class Links(Block):
    """Other pages, by their places relative to this one.

    Attributes:
        words: what they are, before them.
        pages: name -> place.
    """

    words: str
    pages: dict[str, str]


class ReportLine(NamedTuple):
    """A report that is elsewhere, and what it found.

    Attributes:
        title: names it.
        place: of its page, relative to this one, as a link has it; empty where there is none.
        finding: its first sentences; the first is seen, the rest folded away.
        about: how it was made, small.
        state: what is the matter with it; empty for nothing.
    """

    title: str
    place: str
    finding: tuple[str, ...]
    about: str = ""
    state: str = ""


@dataclass(frozen=True)
class Reports(Block):
    """Reports that are elsewhere.

    Attributes:
        lines: one for each.
        summary: where not empty, they are folded away behind these words.
    """

    lines: tuple[ReportLine, ...]
    summary: str = ""


class VerdictRow(NamedTuple):
    """What became of one claim.

    Attributes:
        claim: in one sentence.
        paper: the paper's number for this model; a dash where it gives none.
        measured: values with their intervals, in words.
        outcome: one of `OUTCOMES`.
        rule: what decides.
        reason: why it was not decided; empty where it was.
        also: what becomes of it under other rules; empty where they were not run.
    """

    claim: str
    paper: str
    measured: tuple[str, ...]
    outcome: str
    rule: str
    reason: str
    also: str = ""

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self.measured != (DASH,)

    @property
    def mark(self) -> tuple[str, str]:
        """The name of the outcome's style, and its sign."""
        return OUTCOMES[self.outcome]


@dataclass(frozen=True)
class Hypothesis:
    """A hypothesis of the paper with its claims."""

    name: str
    sentence: str
    rows: tuple[VerdictRow, ...]

    @property
    def counts(self) -> str:
        """How many claims have which outcome, in words."""
        counts = [(sum(row.outcome == name for row in self.rows), name) for name in OUTCOMES]
        return ", ".join(f"{n} {name.rstrip('s') if n > 1 else name}" for n, name in counts if n)

    @property
    def decided(self) -> tuple[VerdictRow, ...]:
        """The claims that hold or fail."""
        return tuple(row for row in self.rows if row.mark[0] != "open")

    @property
    def open(self) -> tuple[VerdictRow, ...]:
        """The claims that were not decided."""
        return tuple(row for row in self.rows if row.mark[0] == "open")

    @property
    def numbered(self) -> bool:
        """Whether the paper gives a number for any claim."""
        return any(row.paper != DASH for row in self.rows)


@dataclass(frozen=True)
class Verdicts(Block):
    """Hypotheses, a table each."""

    hypotheses: tuple[Hypothesis, ...]


class Square(NamedTuple):
    """One prompt on a map: the points it scored, the answer, and what else is known of it (`Explorer.facts`)."""

    points: float
    text: str
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Map:
    """The answers under one condition.

    Attributes:
        label: short; a line break parts it in two.
        words: the condition in full.
        squares: (length in tokens, depth in percent) -> answer; depth None where the needle was left out.
    """

    label: str
    words: str
    squares: dict[tuple[int, float | None], Square]


@dataclass(frozen=True)
class MapGroup:
    """Maps that stand in one strip, and what they have in common."""

    title: str
    note: str
    maps: tuple[Map, ...]


@dataclass(frozen=True)
class Explorer(Block):
    """Every answer of a study: sheets to choose from, each a title and groups of maps.

    Attributes:
        sheets: title -> its groups; the only sheet may go without a title.
        max_score: the most points an answer can score.
        picks: what groups and maps are, to choose them by name too; empty where they are chosen by their pictures only.
        facts: names of what is known of every answer beside points and text.
    """

    sheets: dict[str, tuple[MapGroup, ...]]
    max_score: float
    picks: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page: its name in links, its title, and what stands in it."""

    name: str
    title: str
    blocks: tuple[Block, ...]
