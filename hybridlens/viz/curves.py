"""Plotly figures of plain values along tokens: how long things last, and how they go on over a prompt.

How it fails: `InputError` for more curves than there are colours; values that are not finite are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from hybridlens.viz.layout import COLORS, DASHES, LEGEND, PERCENT, axis, few, lay_out, plain, stroke
from hybridlens.viz.plot import Plot

LEAST = 0.1
"""Tokens of the shortest half-life that is told apart from none at all."""

MOST = 1e6
"""Tokens of the longest that is told apart from for ever."""


def lasting_curves(curves: Mapping[str, Sequence[float | int]], length: int, x_title: str, y_title: str) -> go.Figure:
    """How many parts of something last at least so many tokens, on a logarithmic axis.

    Args:
        curves: name -> how long each part lasts; at most six.
        length: tokens of the prompt, drawn as a line.
        x_title: what is on the axis of tokens.
        y_title: the share of what.

    Raises:
        InputError: more than six curves.
    """
    few(curves, "curves")
    figure = Plot()
    for i, (name, lasts) in enumerate(curves.items()):
        known = sorted(min(max(x, LEAST), MOST) for x in lasts if not math.isnan(x))
        steps = sorted({round(j * (len(known) - 1) / 200) for j in range(201)}) if known else []
        figure.add_scatter(
            x=[plain(known[j]) for j in steps],
            y=[100 * (1 - j / len(known)) for j in steps],
            name=name,
            hovertemplate="%{y:.0f} % last at least %{x:.3~g} tokens",
            **stroke(i, dash=DASHES[i]) | {"mode": "lines"},
        )
    figure.add_vline(x=length, line={"color": COLORS[4], "width": 1.5, "dash": "dot"})
    figure.add_annotation(
        x=math.log10(length), y=1, yref="paper", yanchor="bottom", text="the prompt", showarrow=False,
        font={"size": 11, "color": COLORS[4]},
    )  # fmt: skip
    x_axis = axis(x_title, type="log")
    return lay_out(figure, x_axis, axis(y_title, **PERCENT), (70, 16, 50, 50), legend=LEGEND, showlegend=True)


def token_curves(
    curves: Mapping[str, Sequence[float | int]],
    positions: Sequence[int],
    y_title: str,
    marked: tuple[int, int] | None = None,
    zero: bool = True,
) -> go.Figure:
    """Values after each of some tokens of a prompt.

    Args:
        curves: name -> a value for each position; at most six.
        positions: of the tokens, ascending.
        y_title: what is measured.
        marked: half-open range of tokens under a band that says "needle"; None for none.
        zero: whether the axis begins at 0.

    Raises:
        InputError: more than six curves.
    """
    few(curves, "curves")
    figure = Plot()
    for i, (name, values) in enumerate(curves.items()):
        figure.add_scatter(
            x=list(positions),
            y=[plain(value) for value in values],
            name=name,
            hovertemplate="after token %{x}: <b>%{y:.3~g}</b>",
            **stroke(i, dash=DASHES[i]) | {"mode": "lines"},
        )
    if marked is not None:
        figure.add_vrect(
            x0=marked[0] - 0.5, x1=marked[1] - 0.5, fillcolor=COLORS[1], opacity=0.15, line_width=0,
            annotation={"text": "needle", "font": {"size": 11, "color": COLORS[1]}}, annotation_position="top",
        )  # fmt: skip
    y_axis = axis(y_title, **({"rangemode": "tozero"} if zero else {}))
    return lay_out(figure, axis("token, from 0"), y_axis, (70, 16, 50, 50), legend=LEGEND, showlegend=True)
