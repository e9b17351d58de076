"""Plotly heatmaps over the positions of a prompt, with the tokens that stand there on the axis.

Plotly reads tags and entities in its texts, so a token goes through `literal` before it becomes one: `<b>` is shown as
it stands, and a line break by its escape. How it fails: long tokens are cut, with "…" for the rest; names that do not
fit the values are refused with `InputError`.
"""

from collections.abc import Sequence
from itertools import groupby

import plotly.graph_objects as go

from hybridlens.viz.heads import SIGNED_COLORS, Rows, heatmap_height, pair_heatmap
from hybridlens.viz.layout import COLORS, ticks

LONGEST = 26
"""Characters of a label."""

_WIDE = 17
"""Pixels that a column needs for its label."""
_FIT = 12
"""Columns whose labels do not touch on the narrowest screen."""
_LABELS = 120
"""Pixels for labels that stand upright."""


def visible(text: str) -> str:
    """A text on one line, with escapes for what cannot be seen; a space is seen between other characters."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return shown.strip() or f"“{shown}”"


def literal(text: str, most: int = LONGEST) -> str:
    """A text as Plotly shows it character by character, on one line, cut to `most` characters."""
    shown = visible(text) if text else ""
    cut = shown if len(shown) <= most else f"{shown[: most - 1]}…"
    return cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def position_heatmap(
    values: Rows,
    rows: Sequence[str],
    columns: Sequence[str],
    y_title: str,
    name: str,
    limit: float | int | None = None,
    marked: Sequence[int] = (),
    x_title: str = "position and token",
) -> go.Figure:
    """A number for each row and position.

    Args:
        rows: their names, no two alike: layers, say.
        columns: their names, no two alike: positions with their tokens, any text.
        name: what the number is, for the pointer.
        limit: both ends of the scale, which is symmetric about 0; None for the largest value.
        marked: columns under a line that says "needle".

    Raises:
        InputError: names and values do not fit.
    """
    shown = [literal(column) for column in columns]
    figure = pair_heatmap(values, [literal(row) for row in rows], shown, (y_title, x_title), name)
    most = limit or max((abs(value) for row in values for value in row if value == value), default=0.0) or 1.0
    figure.update_traces(zmin=-most, zmax=most, colorscale=[list(stop) for stop in SIGNED_COLORS])
    upright = {**ticks(shown), "tickangle": -90, "tickfont": {"size": 11}}
    figure.update_layout(xaxis=upright, margin={"t": 30 if marked else 10})
    for _, run in groupby(enumerate(sorted(marked)), key=lambda pair: pair[1] - pair[0]):  # neighbours in one
        inside = [column for _, column in run]
        place = {"x0": inside[0] - 0.45, "x1": inside[-1] + 0.45, "y0": 1.01, "y1": 1.01, "yref": "paper"}
        figure.add_shape(type="line", **place, line={"color": COLORS[1], "width": 3}, layer="above")
        figure.add_annotation(
            x=(inside[0] + inside[-1]) / 2, y=1.01, yref="paper", yanchor="bottom", yshift=3, showarrow=False,
            text="needle", font={"size": 11, "color": COLORS[1]},
        )  # fmt: skip
    return figure


def position_height(rows: int) -> int:
    """Pixels that a map of so many rows needs, with the tokens below it."""
    return heatmap_height(rows) + _LABELS


def position_width(columns: int) -> int | None:
    """Pixels below which labels of so many columns would touch; None where they fit any page."""
    return 130 + _WIDE * columns if columns > _FIT else None
