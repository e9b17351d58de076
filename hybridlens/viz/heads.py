"""Plotly heatmaps of numbers about heads: one a head, one a pair of writer and reader, one a pair of rankings.

Signed values get a scale that is symmetric about 0, whose middle is the colour of nothing; others begin at 0 or where
they are told to. Small maps show their values in the squares, all of them under the pointer. How it fails: what is not
finite is an empty square, and rows of unequal length are refused with `InputError`.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import plotly.graph_objects as go

from hybridlens.errors import InputError
from hybridlens.viz.inks import MAP_COLORS
from hybridlens.viz.layout import heatmap, plain, ticks

SIGNED_COLORS = ((0.0, "#7c3210"), (0.25, "#d9956f"), (0.5, "#f3ece2"), (0.75, "#7db8b1"), (1.0, "#0c5359"))
"""Below 0, nothing, above 0; `common.js` has their counterparts for dark pages."""

Rows: TypeAlias = Sequence[Sequence[float | int]]
"""Numbers [row, column]; NaN where there is none."""

_NARROW = 340
"""Pixels that a figure has on the narrowest screen."""

_WRITTEN = 16
"""A map with more columns than this has no numbers in its squares."""


def short(value: float | int | None, digits: int = 2) -> str:
    """A number as it fits into a square, with so many digits after the point: ".87", "−.05", "12"; nothing for None."""
    if value is None or not math.isfinite(value):
        return ""
    text = f"{value:.{digits if abs(value) < 9.995 else 0}f}"
    if float(text).is_integer():
        return text.split(".")[0].replace("-0", "0").replace("-", "−")
    return text.replace("0.", ".", 1).replace("-", "−") if abs(float(text)) < 1 else text.replace("-", "−")


def head_heatmap(
    scores: Rows,
    layers: Sequence[int],
    name: str,
    low: float | int | None = None,
    high: float | int | None = None,
    best_first: bool = False,
) -> go.Figure:
    """A number for each head: a row a layer, a column a head.

    Args:
        scores: [layer, head].
        layers: the index in the model of each row.
        name: what the number is, for the pointer.
        low: lower end of the scale; that of the values when left out. Where it is below 0, the scale is symmetric.
        high: upper end, likewise.
        best_first: whether the lowest value, a place say, has the strongest colour.

    Raises:
        InputError: there are not as many rows as layers, or they differ in length.
    """
    columns = [f"H{head}" for head in range(len(scores[0]) if scores else 0)]
    rows = [f"L{layer}" for layer in layers]
    figure = _heatmap(scores, rows, columns, ("layer", "head"), name, low, high)
    if best_first:
        figure.update_traces(reversescale=True)
    numbers = (name.removeprefix("H") for name in columns)  # there is no room for the letter of many heads
    return figure.update_xaxes(tickangle=0, **(ticks(columns, numbers) if len(columns) > 10 else {}))


def pair_heatmap(
    values: Rows, rows: Sequence[str], columns: Sequence[str], titles: tuple[str, str], name: str
) -> go.Figure:
    """A number for each pair: writers down, readers across, say.

    Args:
        titles: what stands down and what across.
        name: what the number is, for the pointer.

    Raises:
        InputError: names and values do not fit.
    """
    step = -(-len(rows) // 50)
    return _heatmap(values, rows, columns, titles, name).update_yaxes(ticks(rows[::step]) if step > 1 else {})


def correlation_matrix(values: Rows, names: Sequence[str]) -> go.Figure:
    """Correlations between rankings [name, name], -1 to 1; NaN where there is none.

    Raises:
        InputError: names and values do not fit.
    """
    return _heatmap(values, names, names, ("", ""), "rank correlation", -1, 1)


def heatmap_height(rows: int, least: int = 150, most: int = 900) -> int:
    """Pixels that a map of so many rows needs."""
    return min(max(least, 96 + (34 if rows <= 12 else 17 if rows <= 40 else 4) * rows), most)


def heatmap_width(columns: int, label: int = 3) -> int | None:
    """Pixels below which numbers under so many columns would touch; None where they fit the narrowest screen.

    Args:
        label: characters of the longest name of a row.
    """
    names = 7 * max(label - 3, 0)
    least = 110 + names + 19 * columns
    return least if least > _NARROW else None


def _heatmap(
    values: Rows,
    rows: Sequence[str],
    columns: Sequence[str],
    titles: tuple[str, str],
    name: str,
    low: float | int | None = None,
    high: float | int | None = None,
) -> go.Figure:
    """Signed colours, symmetric about 0, where anything may be below it."""
    if len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        shape = f"{len(values)} rows of {sorted({len(row) for row in values})}"
        raise InputError(f"{shape} values cannot be drawn; the names need {len(rows)} rows of {len(columns)}")
    z = [[plain(value) for value in row] for row in values]
    known = [value for row in z for value in row if value is not None]
    least = min([*known, 0.0]) if low is None else low
    most = max([*known, 0.0]) if high is None else high
    signed = least < 0
    if signed:
        most = max(-least, most)
        least = -most
    trace: dict[str, Any] = {
        "x": list(columns),
        "y": list(rows),
        "z": z,
        "zmin": float(least),
        "zmax": float(most if most > least else least + 1),
        "xgap": 2 if len(columns) <= 40 else 0,
        "ygap": 2 if len(rows) <= 40 else 0,
        "meta": [name],
        "hovertemplate": "%{y}, %{x}: <b>%{z:.3~g}</b><extra>%{meta[0]}</extra>",
    }
    if len(columns) <= _WRITTEN:
        largest = max((abs(value) for value in known), default=0.0) or 1
        digits = min(max(2, 1 - math.floor(math.log10(largest))), 5)  # that show two of the largest value's
        written = [[short(value, digits) for value in row] for row in z]
        trace |= {"text": written, "texttemplate": "%{text}", "textfont": {"size": 11}}
    # The colour bar of a low map has its whole height.
    bar = {"len": 1} if len(rows) <= 5 else {"lenmode": "pixels", "len": 170, "y": 1, "yanchor": "top"}
    return heatmap(trace, {"nticks": 5, **bar}, SIGNED_COLORS if signed else MAP_COLORS, titles, 40)
