"""The parts that a page is made of, as plain values.

A `Section` holds blocks: figures, patterns, tables, heat tables, verdicts, tables of what a model wrote, and maps to
look through. `hybridlens.viz.markup` makes HTML of them.

How it fails: any text may stand anywhere; a row that is longer than its header is shown as it is.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import plotly.graph_objects as go

from hybridlens.viz.charts import Value
from hybridlens.viz.patterns import PatternFigure
from hybridlens.viz.verdicts import Verdicts

Entry: TypeAlias = "str | tuple[str, str]"
"""What stands in a cell of a table; of two, the second is small and below the first."""


@dataclass(frozen=True)
class Chart:
    """A Plotly figure.

    Attributes:
        figure: the figure.
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
class ChartGrid:
    """Figures side by side, two to a line where there is room."""

    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Patterns:
    """Attention patterns, drawn by circuitsvis one below the other."""

    figures: tuple[PatternFigure, ...]


@dataclass(frozen=True)
class Table:
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
class HeatTable:
    """Shares in a table, coloured by their size.

    Attributes:
        corner: what stands along rows and columns, in words.
        rows: names, with what they mean below.
        columns: likewise.
        values: [row][column].
    """

    corner: str
    rows: tuple[Entry, ...]
    columns: tuple[Entry, ...]
    values: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Answers:
    """A folded table of what a model wrote.

    Attributes:
        summary: the words it is folded behind.
        header: a heading for each column.
        rows: entries as text; those of the columns `texts` come from the model.
        texts: places of those columns.
    """

    summary: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: tuple[int, ...]


@dataclass(frozen=True)
class Words:
    """A paragraph; a note is set apart from what surrounds it."""

    text: str
    note: bool = False


class Square(NamedTuple):
    """One prompt on a map: the points it scored and the answer."""

    points: float
    text: str


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
class Explorer:
    """Every answer of a study: sheets to choose from, each a title and groups of maps.

    Attributes:
        sheets: title -> its groups.
        max_score: the most points an answer can score.
    """

    sheets: dict[str, tuple[MapGroup, ...]]
    max_score: float


Block: TypeAlias = "Chart | ChartGrid | Patterns | Table | HeatTable | Verdicts | Answers | Words | Explorer"


@dataclass(frozen=True)
class Section:
    """A part of the page: its name in links, its title, and what stands in it."""

    name: str
    title: str
    blocks: tuple[Block, ...]
