"""Plotly figures of plain values: shares with intervals along the heads kept, and groups of bars.

Whoever knows what was measured makes `Curve`s; nothing here knows a cell or a model. Colours go with symbols,
so that no figure rests on colour alone. How it fails: values that are NaN are left out; with none left a figure
is empty.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from hybridlens.viz.entries import Value
from hybridlens.viz.layout import COLORS, INK, LEGEND, SYMBOLS, axis, k_axis, lay_out
from hybridlens.viz.words import LEFT_OUT

ACCURACY = "accuracy, % of the highest score<br>bars: 95 % interval over prompts"
CHANCE = f"{LEFT_OUT} (chance)"


class Curve(NamedTuple):
    """One line of a figure.

    Attributes:
        name: in the legend.
        points: heads kept -> value, ascending.
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
    """
    figure = go.Figure()
    ks = sorted({k for curve in curves for k in curve.points})
    spread = 0.012 * (ks[-1] - ks[0] if ks else 0)
    for i, curve in enumerate(curves):
        shift = (i - (len(curves) - 1) / 2) * spread
        known = {k: value for k, value in curve.points.items() if value.known}
        x = [k + shift for k in known]
        figure.add_scatter(
            x=x,
            y=[100 * value.mean for value in known.values()],
            customdata=_hover(known),
            error_y=_bars(known.values()),
            name=curve.name,
            mode="lines+markers",
            line={"color": COLORS[i], "width": 2.5},
            marker={"symbol": SYMBOLS[i], "size": 8, "color": COLORS[i]},
            hovertemplate=_HOVER,
        )
        guessed = {k: value.chance for k, value in known.items() if not math.isnan(value.chance)}
        if guessed:
            figure.add_scatter(
                x=[k + shift for k in guessed],
                y=[100 * chance for chance in guessed.values()],
                customdata=list(guessed),
                name=f"{curve.name}, {CHANCE}",
                mode="lines+markers",
                line={"color": COLORS[i], "width": 1.5, "dash": "dot"},
                marker={"symbol": f"{SYMBOLS[i]}-open", "size": 6, "color": COLORS[i]},
                hovertemplate="k = %{customdata}: %{y:.1f} %<extra>" + CHANCE + "</extra>",
            )
    _mark_tips(figure, [curve.tips for curve in curves])
    y_axis = axis(y_title, ticksuffix=" %", **({"range": [-3, 104], "dtick": 25} if whole else {}))
    return lay_out(figure, k_axis(ks or [0], n_heads, k_title), y_axis, (70, 26, 50, 70), legend=LEGEND)


def bar_chart(names: Sequence[str], bars: Mapping[str, Sequence[Value]], x_title: str, y_title: str) -> go.Figure:
    """Groups of bars with their intervals; the chance level of each is an open symbol.

    Args:
        names: of the groups, along the axis.
        bars: name in the legend -> a value for each group.
        x_title: what stands along the axis.
        y_title: what is measured; drawn in percent.
    """
    figure = go.Figure()
    for i, (name, values) in enumerate(bars.items()):
        known = {group: value for group, value in zip(names, values, strict=True) if value.known}
        hatch = {"shape": ("", "/")[i % 2], "fillmode": "overlay", "size": 9, "solidity": 0.2}
        figure.add_bar(
            x=list(known),
            y=[100 * value.mean for value in known.values()],
            customdata=_hover(known),
            error_y={**_bars(known.values()), "color": INK},
            name=name,
            offsetgroup=str(i),
            marker={"color": COLORS[i], "pattern": hatch, "opacity": 0.55},
            hovertemplate=_HOVER,
        )
    guessed = [
        (group, value.chance)
        for values in bars.values()
        for group, value in zip(names, values, strict=True)
        if not math.isnan(value.chance)
    ]
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
    y_axis = axis(y_title, ticksuffix=" %", range=[-3, 104], dtick=25)
    return lay_out(figure, x_axis, y_axis, (70, 16, 50, 60), legend=LEGEND, barmode="group", bargap=0.35)


_HOVER = (
    "%{customdata[0]}: <b>%{y:.1f} %</b>, 95 %: %{customdata[2]:.1f} to %{customdata[3]:.1f} %, n = %{customdata[1]}"
    "<extra></extra>"
)


def _hover(known: Mapping[Any, Value]) -> list[list[Any]]:
    """What a point says when it is pointed at; ends that are not known are its value."""
    rows: list[list[Any]] = []
    for name, value in known.items():
        low, high = _ends(value)
        rows.append([f"k = {name}" if isinstance(name, int) else name, value.n, 100 * low, 100 * high])
    return rows


def _bars(values: Any) -> dict[str, Any]:
    """Error bars from a value down to `low` and up to `high`."""
    ends = [(value.mean, *_ends(value)) for value in values]
    return {
        "type": "data",
        "symmetric": False,
        "array": [100 * (high - mean) for mean, _, high in ends],
        "arrayminus": [100 * (mean - low) for mean, low, _ in ends],
        "thickness": 1.4,
        "width": 4,
    }


def _ends(value: Value) -> tuple[float, float]:
    """The interval of a value; itself twice where there is none."""
    return (value.mean, value.mean) if math.isnan(value.low) else (value.low, value.high)


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
