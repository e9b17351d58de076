"""Plotly figures of several curves with their intervals as bands: shares, or any other value, against heads kept.

Colours go with dashes and symbols. How it fails: values that are NaN are left out; more curves than there are colours
are refused with `InputError`.
"""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from hybridlens.errors import InputError
from hybridlens.viz.charts import Curve
from hybridlens.viz.entries import Value
from hybridlens.viz.layout import COLORS, DASHES, LEGEND, SYMBOLS, axis, k_axis, lay_out, plain


def band_chart(curves: Sequence[Curve], n_heads: int, y_title: str, k_title: str, percent: bool = True) -> go.Figure:
    """Values against heads kept, a band over the 95 % interval of each.

    Args:
        curves: at most six; those without an interval have no band.
        n_heads: the most heads, named on the axis.
        y_title: what is measured.
        k_title: what is counted along the axis.
        percent: whether values are shares, drawn as percent of 0 to 100.

    Raises:
        InputError: more than six curves.
    """
    if len(curves) > len(COLORS):
        raise InputError(f"{len(curves)} curves to draw given, expected at most {len(COLORS)}; choose among them")
    factor = 100 if percent else 1
    known = [{k: value for k, value in curve.points.items() if value.known} for curve in curves]
    figure = go.Figure()
    for i, (curve, points) in enumerate(zip(curves, known, strict=True)):
        sure = {k: value for k, value in points.items() if value.sure}
        if sure:
            figure.add_trace(_band(curve.name, sure, factor, COLORS[i], round(0.4 / (len(curves) + 0.5), 3)))
    after = " %" if percent else ""
    for i, (curve, points) in enumerate(zip(curves, known, strict=True)):
        known_ends = all(value.sure for value in points.values())
        ends = f", 95 %: %{{customdata[0]:.3~g}} to %{{customdata[1]:.3~g}}{after}" if known_ends else ""
        figure.add_scatter(
            x=list(points),
            y=[plain(factor * value.mean) for value in points.values()],
            customdata=[[plain(factor * value.low), plain(factor * value.high)] for value in points.values()],
            name=curve.name,
            legendgroup=curve.name,
            mode="lines+markers",
            line={"color": COLORS[i], "width": 2.2, "dash": DASHES[i]},
            marker={"symbol": SYMBOLS[i], "size": 7, "color": COLORS[i]},
            hovertemplate=f"%{{x}} heads: <b>%{{y:.3~g}}{after}</b>{ends}",
        )
    ks = sorted({k for points in known for k in points}) or [0]
    y_axis = axis(y_title, **({"ticksuffix": " %", "range": [-3, 104], "dtick": 25} if percent else {}))
    return lay_out(figure, k_axis(ks, n_heads, k_title), y_axis, (60, 20, 40, 70), legend=LEGEND, showlegend=True)


def _band(name: str, points: Mapping[int, Value], factor: int, color: str, opacity: float) -> go.Scatter:
    """The interval as an area: along its upper ends and back along its lower ones."""
    ks = list(points)
    upper, lower = ([plain(factor * v[end]) for v in points.values()] for end in (2, 1))
    return go.Scatter(
        x=[*ks, *reversed(ks)],
        y=[*upper, *reversed(lower)],
        fill="toself",
        fillcolor=color,
        line={"width": 0, "color": color},
        mode="lines",
        opacity=opacity,
        name=name,
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )
