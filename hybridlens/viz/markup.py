"""Blocks of a page as HTML, and shares, intervals and differences as tables write them.

A table's texts and numbers are HTML from the start, so that nothing but figures needs code; what a model wrote is
put into `Gathered`, each distinct text once, and is written by the page's code as text. How it fails: everything is
escaped here, so no value can break the page.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hybridlens.viz.blocks import (
    Answers,
    Block,
    Chart,
    ChartGrid,
    Entry,
    Explorer,
    HeatTable,
    Map,
    Patterns,
    Table,
    Words,
)
from hybridlens.viz.charts import Value
from hybridlens.viz.page import escape
from hybridlens.viz.patterns import pattern_html, props
from hybridlens.viz.verdicts import Verdicts, verdicts_html
from hybridlens.viz.words import DASH


@dataclass
class Gathered:
    """What the page's code needs of all the blocks."""

    texts: dict[str, int] = field(default_factory=dict[str, int])
    charts: list[Any] = field(default_factory=list[Any])
    answers: list[Any] = field(default_factory=list[Any])
    explorer: Any = None
    patterns: list[Any] = field(default_factory=list[Any])

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
            return _chart(block, gathered)
        case ChartGrid():
            return f'<div class="grid">{"".join(_chart(chart, gathered) for chart in block.charts)}</div>'
        case Patterns():
            first = len(gathered.patterns)
            gathered.patterns += [props(figure) for figure in block.figures]
            return "\n".join(pattern_html(first + i, figure) for i, figure in enumerate(block.figures))
        case Table():
            return _fold(block.summary, _table(block))
        case HeatTable():
            return _heat(block)
        case Verdicts():
            return verdicts_html(block)
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


def _chart(chart: Chart, gathered: Gathered) -> str:
    gathered.charts.append(chart.figure.to_plotly_json())
    sizes = {"height": chart.height, "min-width": chart.least_width}
    size = ";".join(f"{name}:{pixels}px" for name, pixels in sizes.items() if pixels is not None)
    style = f' style="{size}"' if size else ""
    name = f"chart-{len(gathered.charts) - 1}"
    plot = f'<div id="{name}" class="plot curve"{style} role="img" aria-label="{escape(chart.words)}"></div>'
    plot = plot if chart.least_width is None else f'<div class="wide">{plot}</div>'
    return f"<figure><h3>{escape(chart.title)}</h3>{plot}</figure>" if chart.title else plot


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
