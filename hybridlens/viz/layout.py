"""What all Plotly figures share: colours with their symbols and dashes, axes in words, and the layout.

Colours are quiet and safe for colour-blind readers, and never alone: symbols or dashes go with them. Every axis says in
words which end is which, and the background is transparent so that a page can be light or dark.
How it fails: a number that is not finite is no number of a figure (`plain`); `InputError` for more than there are
colours (`few`).
"""

import math
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import plotly.graph_objects as go

from hybridlens.errors import InputError
from hybridlens.viz.plot import Plot

COLORS = ("#0f6e74", "#b4532a", "#5b4a9e", "#7d6608", "#5c6468", "#a8326e")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
INK = "#2b2b2b"
PERCENT = {"ticksuffix": " %", "range": [-3, 104], "dtick": 25}
"""Of an axis of shares, the whole of it."""
LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_GRID = "rgba(128,128,128,0.22)"
_MOST_TICKS = 20


def lay_out(
    figure: go.Figure, x: dict[str, Any], y: dict[str, Any], margin: tuple[int, int, int, int], **more: Any
) -> go.Figure:
    """The figure with its axes and what every figure shares; returned for convenience.

    Args:
        x: the axis across (`axis`); y: that up.
        margin: pixels left, right, above and below.
        more: of Plotly's layout.
    """
    return figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13, "color": INK},
        xaxis=x,
        yaxis=y,
        margin=dict(zip("lrtb", margin, strict=True)),
        **more,
    )


def plain(value: float | int) -> float | None:
    """A number as JSON has it, to four digits; None where it is not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with a title in words and a faint grid."""
    return {
        "title": {"text": title, "standoff": 12, "font": {"size": 13}},
        "gridcolor": _GRID,
        "zeroline": False,
        "automargin": True,
        "ticks": "",
        "tickfont": {"size": 12},
        **more,
    }


def ticks(places: Iterable[Any], texts: Iterable[str] | None = None) -> dict[str, Any]:
    """Of an axis: ticks at some places only, under names of their own where given."""
    named = {} if texts is None else {"ticktext": list(texts)}
    return {"tickmode": "array", "tickvals": list(places), **named}


def stroke(i: int, width: float = 2, size: int = 7, dash: str | None = None, symbol: str = "") -> dict[str, Any]:
    """Of a trace: the line and symbols of a figure's i-th curve, whose own symbol is altered by `symbol` ("-open")."""
    return {
        "mode": "lines+markers",
        "line": {"color": COLORS[i], "width": width, "dash": dash},
        "marker": {"symbol": SYMBOLS[i] + symbol, "size": size, "color": COLORS[i]},
    }


def few(shown: Sized, what: str) -> None:
    """Refuse more than there are colours."""
    if len(shown) > len(COLORS):
        raise InputError(f"{len(shown)} {what} to draw given, expected at most {len(COLORS)}; choose among them")


def heatmap(
    trace: dict[str, Any], bar: dict[str, Any], colors: Sequence[tuple[float, str]], titles: tuple[str, str], below: int
) -> go.Figure:
    """Numbers as coloured squares, the first row on top.

    Args:
        trace: of Plotly's heatmap, with x, y and z.
        bar: of its colour bar.
        colors: (share of the scale, colour).
        titles: what stands down and what across.
        below: pixels of the margin there.
    """
    bar = {"tickfont": {"size": 11}, "thickness": 8, "outlinewidth": 0, **bar}
    figure = Plot(go.Heatmap(trace, colorscale=list(map(list, colors)), hoverongaps=False, colorbar=bar))
    down, across = (axis(title, type="category", showgrid=False) for title in titles)
    return lay_out(figure, across, down | {"autorange": "reversed"}, (10, 10, 10, below))


def k_axis(ks: list[int], n_heads: int | None, title: str | None = None) -> dict[str, Any]:
    """The axis of heads kept: a tick for every k while they fit, both ends named.

    Args:
        ks: what is shown, ascending.
        n_heads: heads of a layer; None when unknown.
        title: what k counts; heads kept in every layer when left out.
    """
    step = -(-len(ks) // _MOST_TICKS)
    shown = sorted({*ks[::step], ks[0], ks[-1]})
    names = {
        ks[0]: "no attention" if ks[0] == 0 else "fewest",
        ks[-1]: "all heads" if ks[-1] == n_heads else "most heads",
    }
    room = 0.035 * (ks[-1] - ks[0]) or 0.3
    return axis(
        f"{title or 'attention heads kept in every layer, k'}<br>(read from right to left: ever fewer heads)",
        **ticks(shown, (f"{k}<br>{names[k]}" if k in names else str(k) for k in shown)),
        tickangle=0,
        ticklabeloverflow="allow",
        range=[ks[0] - room, ks[-1] + room],
    )
