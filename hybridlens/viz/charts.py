"""Plotly figures of plain values: along heads kept or steps, with intervals as bars or bands, and groups of bars.

Whoever knows what was measured makes `Curve`s; nothing here knows a cell or a model. Colours go with symbols,
so that no figure rests on colour alone. How it fails: values that are NaN are left out; with none left a figure
is empty; more curves than there are colours are refused with `InputError`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from hybridlens.viz.entries import Value
from hybridlens.viz.layout import COLORS, DASHES, INK, LEGEND, PERCENT, axis, few, k_axis, lay_out, plain, stroke
from hybridlens.viz.plot import Plot
from hybridlens.viz.words import LEFT_OUT

ACCURACY = "accuracy, % of the highest score<br>bars: 95 % interval over prompts"
CHANCE = f"{LEFT_OUT} (chance)"


class Curve(NamedTuple):
    """One line of a figure.

    Attributes:
        name: in the legend.
        points: heads kept, or step of training -> value, ascending.
        tips: the k to mark as this line's tipping point; None for none.
    """

    name: str
    points: Mapping[int, Value]
    tips: int | None = None


def line_chart(
    curves: Sequence[Curve], n_heads: int | None, y_title: str, whole: bool = True, k_title: str | None = None
) -> go.Figure:
    """Values against heads kept, with intervals as bars, chance dotted, and tipping points marked.

    Args:
        curves: at most six.
        n_heads: heads of a layer, whose k is named on the axis; None when unknown.
        y_title: what is measured; values are drawn in percent.
        whole: whether the axis shows 0 to 100 %; else what the values take up.
        k_title: the axis of heads, where it is not that of heads kept in every layer.

    Raises:
        InputError: more than six curves.
    """
    few(curves, "curves")
    figure = Plot()
    ks = sorted({k for curve in curves for k in curve.points})
    spread = 0.012 * (ks[-1] - ks[0] if ks else 0)
    for i, curve in enumerate(curves):
        shift = (i - (len(curves) - 1) / 2) * spread
        known = {k: value for k, value in curve.points.items() if value.known}
        figure.add_scatter(x=[k + shift for k in known], name=curve.name, **_bars(known), **stroke(i, 2.5, 8))
        guessed = {k: value.chance for k, value in known.items() if not math.isnan(value.chance)}
        if guessed:
            figure.add_scatter(
                x=[k + shift for k in guessed],
                y=[100 * chance for chance in guessed.values()],
                customdata=list(guessed),
                name=f"{curve.name}, {CHANCE}",
                hovertemplate="k = %{customdata}: %{y:.1f} %<extra>" + CHANCE + "</extra>",
                **stroke(i, 1.5, 6, "dot", "-open"),
            )
    _mark_tips(figure, [curve.tips for curve in curves])
    y_axis = axis(y_title, **(PERCENT if whole else {"ticksuffix": " %"}))
    return lay_out(figure, k_axis(ks or [0], n_heads, k_title), y_axis, (70, 26, 50, 70), legend=LEGEND)


def band_chart(curves: Sequence[Curve], n_heads: int, y_title: str, k_title: str, percent: bool = True) -> go.Figure:
    """Values against heads kept, a band over the 95 % interval of each.

    Args:
        curves: at most six; those without an interval have no band.
        n_heads: the most heads, named on the axis.
        k_title: what is counted along the axis.
        percent: whether values are shares, drawn as percent of 0 to 100.

    Raises:
        InputError: more than six curves.
    """
    few(curves, "curves")
    lines, bands = _banded(curves, percent, "%{x} heads")
    ks = sorted({k for curve in curves for k, value in curve.points.items() if value.known}) or [0]
    y_axis = axis(y_title, **(PERCENT if percent else {}))
    figure = Plot([*bands, *lines])
    return lay_out(figure, k_axis(ks, n_heads, k_title), y_axis, (60, 20, 40, 70), legend=LEGEND, showlegend=True)


def step_chart(curves: Sequence[Curve], y_title: str, percent: bool = True) -> go.Figure:
    """Values over the steps of training, a band over the 95 % interval of each, chance dotted.

    Args:
        curves: at most six, whose points are at steps; those without an interval have no band.
        y_title: what is measured.
        percent: whether values are shares, drawn as percent of 0 to 100.

    Raises:
        InputError: more than six curves.
    """
    few(curves, "curves")
    lines, bands = _banded(curves, percent, "step %{x}")
    chances: list[go.Scatter] = []
    for i, curve in enumerate(curves):
        guessed = {step: v.chance for step, v in curve.points.items() if v.known and not math.isnan(v.chance)}
        if guessed:
            y = [plain((100 if percent else 1) * chance) for chance in guessed.values()]
            named = {"name": f"{curve.name}, {CHANCE}", "hovertemplate": "step %{x}: %{y:.3~g}"}
            chances.append(go.Scatter(x=list(guessed), y=y, **named, **stroke(i, 1.5, 5, "dot", "-open")))
    y_axis = axis(y_title, **(PERCENT if percent else {"rangemode": "tozero"}))
    figure = Plot([*bands, *lines, *chances])
    return lay_out(figure, axis("steps of training"), y_axis, (60, 20, 40, 50), legend=LEGEND, showlegend=True)


def _banded(curves: Sequence[Curve], percent: bool, place: str) -> tuple[list[go.Scatter], list[go.Scatter]]:
    """Each curve as a line, and as a band over its intervals.

    Args:
        percent: whether values are drawn in percent.
        place: how a place along the axis is said under the pointer.
    """
    factor, after = (100, " %") if percent else (1, "")
    lines: list[go.Scatter] = []
    bands: list[go.Scatter] = []
    for i, curve in enumerate(curves):
        points = {k: value for k, value in curve.points.items() if value.known}
        sure = {k: value for k, value in points.items() if value.sure}
        ends = f", 95 %: %{{customdata[0]:.3~g}} to %{{customdata[1]:.3~g}}{after}" if len(sure) == len(points) else ""
        line = go.Scatter(
            x=list(points),
            y=[plain(factor * value.mean) for value in points.values()],
            customdata=[[plain(factor * value.low), plain(factor * value.high)] for value in points.values()],
            name=curve.name,
            legendgroup=curve.name,
            hovertemplate=f"{place}: <b>%{{y:.3~g}}{after}</b>{ends}",
            **stroke(i, 2.2, 7, DASHES[i]),
        )
        lines.append(line)
        if sure:  # an area: along the upper ends and back along the lower ones
            upper = [plain(factor * value.high) for value in sure.values()]
            lower = [plain(factor * value.low) for value in reversed(sure.values())]
            area = {"fill": "toself", "fillcolor": COLORS[i], "opacity": round(0.4 / (len(curves) + 0.5), 3)}
            band = go.Scatter(
                x=[*sure, *reversed(sure)], y=upper + lower, name=curve.name, legendgroup=curve.name, **area
            )
            bands.append(
                band.update(mode="lines", line={"width": 0, "color": COLORS[i]}, showlegend=False, hoverinfo="skip")
            )
    return lines, bands


def bar_chart(names: Sequence[str], bars: Mapping[str, Sequence[Value]], x_title: str, y_title: str) -> go.Figure:
    """Groups of bars with their intervals; the chance level of each is an open symbol.

    Args:
        names: of the groups, along the axis.
        bars: name in the legend -> a value for each group.
        y_title: what is measured; drawn in percent.
    """
    figure = Plot()
    guessed: list[tuple[str, float]] = []
    for i, (name, values) in enumerate(bars.items()):
        known = {group: value for group, value in zip(names, values, strict=True) if value.known}
        guessed += [(g, v.chance) for g, v in zip(names, values, strict=True) if not math.isnan(v.chance)]
        hatch = {"shape": ("", "/")[i % 2], "fillmode": "overlay", "size": 9, "solidity": 0.2}
        marker = {"color": COLORS[i], "pattern": hatch, "opacity": 0.55}
        figure.add_bar(x=list(known), name=name, offsetgroup=str(i), marker=marker, **_bars(known, color=INK))
    if guessed:
        figure.add_scatter(
            x=[group for group, _ in guessed],
            y=[100 * chance for _, chance in guessed],
            name=CHANCE,
            mode="markers",
            marker={"symbol": "diamond-open", "size": 9, "color": COLORS[4], "line": {"width": 2}},
            hovertemplate="%{y:.1f} %<extra>" + CHANCE + "</extra>",
        )
    x_axis = axis(x_title, type="category", showgrid=False)
    figure.update_layout(barmode="group", bargap=0.35)
    return lay_out(figure, x_axis, axis(y_title, **PERCENT), (70, 16, 50, 60), legend=LEGEND)


def _bars(known: Mapping[Any, Value], **style: Any) -> dict[str, Any]:
    """Of a trace: values in percent, bars over their intervals, and what is said under the pointer.

    An end that is not known is the value itself.
    """
    rows = [
        (value.mean, *((value.mean, value.mean) if math.isnan(value.low) else (value.low, value.high)))
        for value in known.values()
    ]
    names = [f"k = {name}" if isinstance(name, int) else name for name in known]
    return {
        "y": [100 * mean for mean, _, _ in rows],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [100 * (high - mean) for mean, _, high in rows],
            "arrayminus": [100 * (mean - low) for mean, low, _ in rows],
            "thickness": 1.4,
            "width": 4,
            **style,
        },
        "customdata": [
            [name, value.n, 100 * low, 100 * high]
            for name, value, (_, low, high) in zip(names, known.values(), rows, strict=True)
        ],
        "hovertemplate": "%{customdata[0]}: <b>%{y:.1f} %</b>, 95 %: %{customdata[2]:.1f} to %{customdata[3]:.1f} %, "
        "n = %{customdata[1]}<extra></extra>",
    }


def _mark_tips(figure: go.Figure, tips: Sequence[int | None]) -> None:
    """An upright line at each tipping point, named once; of no curve's colour where several curves share it."""
    for row, k in enumerate(sorted({k for k in tips if k is not None})):
        color = COLORS[tips.index(k)] if tips.count(k) == 1 and len(tips) > 1 else COLORS[4]
        figure.add_shape(
            type="line", x0=k, x1=k, y0=0, y1=1, yref="paper", line={"color": color, "width": 1.2, "dash": "dash"}
        )
        figure.add_annotation(
            x=k,
            y=0.62 - 0.1 * row,
            yref="paper",
            text=f"tipping point, k = {k}",
            showarrow=False,
            xanchor="left",
            xshift=5,
            font={"color": color, "size": 12},
        )
