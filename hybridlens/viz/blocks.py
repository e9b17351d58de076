"""The parts that a study's page is made of, as plain values, and their HTML.

A `Section` holds blocks: figures, tables, heat tables, and tables of what a model wrote. A table's texts and
numbers are HTML from the start, so that nothing but figures needs code; what a model wrote is put into
`Gathered`, each distinct text once, and is written by the page's code as text. How it fails: everything is
escaped here, so no value can break the page; a row that is longer than its header is shown as it is.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import plotly.graph_objects as go

from hybridlens.viz.charts import Value
from hybridlens.viz.page import escape

DASH = "–"

Entry: TypeAlias = "str | tuple[str, str]"
"""What stands in a cell of a table; of two, the second is small and below the first."""


@dataclass(frozen=True)
class Chart:
    """A Plotly figure, and in words what it shows, for those who cannot see it."""

    figure: go.Figure
    words: str


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


Block: TypeAlias = "Chart | Table | HeatTable | Answers | Words | Explorer"


@dataclass(frozen=True)
class Section:
    """A part of the page: its name in links, its title, and what stands in it."""

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass
class Gathered:
    """What the page's code needs of all the blocks."""

    texts: dict[str, int] = field(default_factory=dict[str, int])
    charts: list[Any] = field(default_factory=list[Any])
    answers: list[Any] = field(default_factory=list[Any])
    explorer: Any = None

    def text(self, text: str) -> int:
        """The place of a text among all distinct ones."""
        return self.texts.setdefault(text, len(self.texts))


def percent(value: float) -> str:
    """A share as tables have it: "97.3 %"; a dash where it is NaN."""
    return DASH if math.isnan(value) else f"{100 * value:.1f}\u00a0%"


def interval(value: Value) -> str:
    """The interval of a share: "95.0 to 98.8"; empty where there is none."""
    return "" if math.isnan(value.low) else f"{100 * value.low:.1f} to {100 * value.high:.1f}"


def entry(value: Value) -> Entry:
    """A share above its interval, its number of prompts and the chance level."""
    if not value.known:
        return DASH
    guessed = "" if math.isnan(value.chance) else f"chance {percent(value.chance)}"
    parts = [interval(value), f"n\u00a0=\u00a0{value.n}", guessed]
    return percent(value.mean), ", ".join(part for part in parts if part)


def difference(value: Value) -> Entry:
    """A difference of shares in points above its interval."""
    if not value.known:
        return DASH
    return signed(100 * value.mean), "" if math.isnan(value.low) else signed(100 * value.low, 100 * value.high)


def signed(*points: float) -> str:
    """Points with their signs, "+1.5" or "−2.0 to +3.1"."""
    return " to ".join(f"{x:+.1f}".replace("-", "−") for x in points)


def render(block: Block, gathered: Gathered) -> str:
    """The HTML of a block; what its code needs goes into `gathered`."""
    match block:
        case Chart():
            gathered.charts.append(block.figure.to_plotly_json())
            name = f"chart-{len(gathered.charts) - 1}"
            return f'<div id="{name}" class="plot curve" role="img" aria-label="{escape(block.words)}"></div>'
        case Table():
            return _fold(block.summary, _table(block))
        case HeatTable():
            return _heat(block)
        case Answers():
            rows = [
                [gathered.text(x) if i in block.texts else x for i, x in enumerate(row)] for row in block.rows
            ]
            gathered.answers.append({"header": block.header, "texts": block.texts, "rows": rows})
            place = f'<div class="wide" data-answers="{len(gathered.answers) - 1}"></div>'
            return _fold(block.summary, place)
        case Words():
            return f"<p{' class=note' if block.note else ''}>{escape(block.text)}</p>"
        case Explorer():
            gathered.explorer = _explored(block, gathered)
            return EXPLORER


EXPLORER = """<form class="sheet" autocomplete="off"><label>answers of <select id="pick-sheet"></select></label></form>
<div id="strip"></div>
<div class="pair">
<div>
<h3 id="map-title"></h3>
<div id="map" class="plot map"></div>
</div>
<div>
<h3>What the model wrote</h3>
<form class="choice" autocomplete="off">
<label>length <select id="pick-length"></select></label>
<label>depth <select id="pick-depth"></select></label>
</form>
<div id="output" aria-live="polite"></div>
</div>
</div>
<h3 id="across-title"></h3>
<div id="across" class="wide"></div>"""


def _fold(summary: str, inner: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>" if summary else inner


def _entry(found: Entry) -> str:
    if isinstance(found, str):
        return escape(found)
    return f"{escape(found[0])}<small>{escape(found[1])}</small>"


def _head(header: Iterable[Entry]) -> str:
    return "".join(f"<th scope=col>{_entry(name)}</th>" for name in header)


def _table(table: Table) -> str:
    rows = "".join(
        f"<tr><th scope=row>{_entry(row[0])}</th>{''.join(f'<td>{_entry(x)}</td>' for x in row[1:])}</tr>"
        for row in table.rows
    )
    head = f"<thead><tr>{_head(table.header)}</tr></thead>"
    return f'<div class="wide"><table class="numbers">{head}<tbody>{rows}</tbody></table></div>'


def _heat(table: HeatTable) -> str:
    """A heat table; the share is a custom property, and the style sheet makes a colour of it in both themes."""
    rows = "".join(
        f"<tr><th scope=row>{_entry(name)}</th>{''.join(_heated(value) for value in values)}</tr>"
        for name, values in zip(table.rows, table.values, strict=True)
    )
    head = f"<thead><tr><td>{escape(table.corner)}</td>{_head(table.columns)}</tr></thead>"
    return f'<div class="wide"><table class="heat">{head}<tbody>{rows}</tbody></table></div>'


def _heated(value: Value) -> str:
    if not value.known:
        return f"<td>{DASH}</td>"
    share = min(max(100 * value.mean, 0.0), 100.0)
    warmth = "hot" if share > 72 else "warm" if share > 50 else "cool"
    guessed = "" if math.isnan(value.chance) else f"<small>chance {percent(value.chance)}</small>"
    ends = f"<small>{interval(value)}</small>"
    return f'<td class="{warmth}" style="--v:{share:.1f}"><b>{percent(value.mean)}</b>{ends}{guessed}</td>'


def _explored(explorer: Explorer, gathered: Gathered) -> dict[str, Any]:
    """The explorer as its code reads it: for each map points and texts, a row a depth, a column a length."""
    sheets: list[dict[str, Any]] = []
    for title, groups in explorer.sheets.items():
        places = {place for group in groups for found in group.maps for place in found.squares}
        lengths = sorted({length for length, _ in places})
        depths: list[float | None] = [*sorted({depth for _, depth in places if depth is not None})]
        if any(depth is None for _, depth in places):
            depths.append(None)
        sheets.append(
            {
                "title": title,
                "lengths": lengths,
                "depths": [None if d is None else int(d) if d.is_integer() else d for d in depths],
                "groups": [
                    {
                        "title": group.title,
                        "note": group.note,
                        "maps": [_squares(found, lengths, depths, gathered) for found in group.maps],
                    }
                    for group in groups
                ],
            }
        )
    return {"sheets": sheets, "maxScore": explorer.max_score}


def _squares(found: Map, lengths: Sequence[int], depths: Sequence[float | None], gathered: Gathered) -> dict[str, Any]:
    grid = [[found.squares.get((length, depth)) for length in lengths] for depth in depths]
    return {
        "label": found.label,
        "words": found.words,
        "points": [[None if s is None else _short(s.points) for s in row] for row in grid],
        "texts": [[None if s is None else gathered.text(s.text) for s in row] for row in grid],
    }


def _short(points: float) -> float | int:
    """Points without a needless ".0"."""
    return int(points) if float(points).is_integer() else points
