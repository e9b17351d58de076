"""Plotly figures of head circuits: eigenvalues in the complex plane, curves over distance, who composes with whom.

Plain values come in; nothing here knows a model. Colours go with symbols or dashes. How it fails: values that are not
finite are left out, and more groups than there are colours are refused with `InputError`.
"""

import cmath
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from hybridlens.errors import InputError
from hybridlens.viz.layout import COLORS, DASHES, INK, LEGEND, SYMBOLS, axis, few, lay_out, plain, stroke, ticks
from hybridlens.viz.plot import Plot

KIND_WORDS = {"q": "feeds queries", "k": "feeds keys", "v": "feeds values"}
_KIND_LINES = {
    "q": {"color": COLORS[0], "dash": "solid"},
    "k": {"color": COLORS[1], "dash": "9px,5px"},
    "v": {"color": COLORS[2], "dash": "2px,4px"},
}
_FAINT = "rgba(128,128,128,0.35)"
_TICKS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


def eigenvalue_plane(
    groups: Mapping[str, Sequence[complex | float | int]], unit: str = "", decades: int | None = None
) -> go.Figure:
    """Eigenvalues of some heads in the complex plane, both axes on one scale.

    Args:
        groups: head -> its eigenvalues; at most six heads.
        unit: of both axes; empty for none.
        decades: where given, the distance from the centre is the logarithm of the magnitude: the outer circle is the
            power of ten above the largest, the centre that many decades below it and everything smaller. Angles stay.

    Raises:
        InputError: more than six heads, or fewer than one decade.
    """
    few(groups, "heads")
    if decades is not None and decades < 1:
        raise InputError(f"{decades} decades given, expected at least 1")
    kept = {n: [v for v in values if cmath.isfinite(v)] for n, values in groups.items()}
    largest = max((abs(v) for values in kept.values() for v in values), default=0.0)
    top = math.ceil(math.log10(largest) - 1e-9) if largest else 0
    figure = Plot()
    for i, (name, values) in enumerate(kept.items()):
        places = values
        if decades is not None:  # angles stay
            sizes = (max(0.0, math.log10(abs(v)) - top + decades) if v else 0.0 for v in values)
            places = [cmath.rect(size, cmath.phase(v)) for size, v in zip(sizes, values, strict=True)]
        figure.add_scatter(
            x=[plain(place.real) for place in places],
            y=[plain(place.imag) for place in places],
            customdata=[[plain(v.real), plain(v.imag), plain(abs(v))] for v in values],
            name=name,
            mode="markers",
            marker={"symbol": SYMBOLS[i], "size": 8, "color": COLORS[i], "opacity": 0.75},
            hovertemplate="λ = %{customdata[0]:.3~g} + %{customdata[1]:.3~g} i, |λ| = %{customdata[2]:.3~g}",
        )
    after = f", {unit}" if unit else ""
    rim = 1.12 * (decades if decades is not None else largest or 1)
    lines: dict[str, Any] = {"zeroline": True, "zerolinecolor": _FAINT, "zerolinewidth": 1.5, "range": [-rim, rim]}
    if decades is not None:
        lines |= {"showticklabels": False, "showgrid": False}
        _circles(figure, top, decades)
    x_axis = axis(f"real part{after}", constrain="domain", **lines)
    y_axis = axis(f"imaginary part{after}", scaleanchor="x", scaleratio=1, constrain="domain", **lines)
    return lay_out(figure, x_axis, y_axis, (50, 16, 40, 50), legend=LEGEND, showlegend=True)


def distance_curves(
    curves: Mapping[str, Sequence[float | int]],
    distances: Sequence[int],
    y_title: str,
    level: tuple[float | int, str] | None = None,
    y_range: tuple[float | int, float | int] | None = None,
) -> go.Figure:
    """Values of some heads by the distance from query to key, on a logarithmic axis that begins at the token itself.

    Args:
        curves: head -> a value for each distance; at most six heads.
        distances: tokens back, ascending.
        level: a value to draw as a dotted line, and what it is.
        y_range: ends of the other axis; those of the values when left out.

    Raises:
        InputError: more than six heads.
    """
    few(curves, "heads")
    figure = Plot()
    for i, (name, values) in enumerate(curves.items()):
        figure.add_scatter(
            # The logarithm of a distance of 0 is nowhere, so that one stands between every distance and its place.
            x=[distance + 1 for distance in distances],
            y=[plain(value) for value in values],
            customdata=list(distances),
            name=name,
            hovertemplate="%{customdata} back: <b>%{y:.3~g}</b>",
            **stroke(i, dash=DASHES[i]) | ({} if len(distances) <= 40 else {"mode": "lines"}),
        )
    first, last = (min(distances), max(distances)) if distances else (0, 1)
    if level is not None:
        figure.add_scatter(
            x=[first + 1, last + 1],
            y=[plain(level[0])] * 2,
            name=level[1],
            mode="lines",
            line={"color": COLORS[4], "width": 1.5, "dash": "dot"},
            hoverinfo="skip",
        )
    named = [*(tick for tick in _TICKS if first <= tick < 0.7 * last), last]
    ends = [math.log10(first + 1) - 0.04, math.log10(last + 1) + 0.04]
    places = ticks((tick + 1 for tick in named), map(str, named))
    x_axis = axis("tokens back from query to key", type="log", **places, tickangle=0, range=ends)
    y_axis = axis(y_title, **({} if y_range is None else {"range": list(y_range)}))
    return lay_out(figure, x_axis, y_axis, (60, 16, 40, 50), legend=LEGEND, showlegend=True)


class Node(NamedTuple):
    """A writer or reader: its name, its place in the model, and what it is called in its column."""

    name: str
    layer: int
    label: str
    recurrent: bool


class Edge(NamedTuple):
    """A writer's composition with a later reader."""

    writer: str
    reader: str
    kind: str
    """Of `KIND_WORDS`."""
    excess: float | int
    """Beyond chance; only edges above 0 are drawn."""


def composition_graph(nodes: Sequence[Node], edges: Sequence[Edge], most: int = 30) -> go.Figure:
    """The strongest compositions: a column a layer, in the model's order, lines from writers to readers.

    A line's width is its excess, its colour and dash the kind. All nodes are drawn, those with a line named.

    Args:
        nodes: every one, in the order in which a column shows them.
        edges: between them; those without excess are left out.
        most: lines at most.

    Raises:
        InputError: an edge names a node that is not there.
    """
    columns = sorted({node.layer for node in nodes})
    places: dict[str, tuple[float, float]] = {}
    for column, layer in enumerate(columns):
        inside = [node.name for node in nodes if node.layer == layer]
        places |= {name: (float(column), 1 - (i + 0.5) / len(inside)) for i, name in enumerate(inside)}
    for name in (name for edge in edges for name in (edge.writer, edge.reader)):
        if name not in places:
            raise InputError(f"an edge names {name!r}, which is no node; expected names of the nodes given")
    chosen = strongest(edges, most)
    figure = Plot()
    for edge in reversed(chosen):
        figure.add_trace(_line(edge, places, chosen[0].excess))
    for kind in [kind for kind in KIND_WORDS if any(edge.kind == kind for edge in chosen)]:
        line = {**_KIND_LINES[kind], "width": 3}
        figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name=KIND_WORDS[kind], legendgroup=kind)
    named = {name for edge in chosen for name in (edge.writer, edge.reader)}
    for recurrent, symbol, words in ((False, "circle", "attention head"), (True, "square", "recurrent layer, by lag")):
        own = [node for node in nodes if node.recurrent == recurrent]
        is_named = [node.name in named for node in own]
        if own:
            figure.add_scatter(
                x=[places[node.name][0] for node in own],
                y=[plain(places[node.name][1]) for node in own],
                customdata=[node.name for node in own],
                text=[node.label if node.name in named else "" for node in own],
                textposition="top center",
                textfont={"size": 11},
                mode="markers+text",
                marker={
                    "symbol": symbol,
                    "size": [9 if known else 5 for known in is_named],
                    "color": [INK if known else COLORS[4] for known in is_named],
                    "opacity": [1.0 if known else 0.4 for known in is_named],
                },
                name=words,
                cliponaxis=False,
                hovertemplate="%{customdata}<extra>" + words + "</extra>",
            )
    layers = ticks(range(len(columns)), (f"L{layer}" for layer in columns))
    ends = [-0.4, len(columns) - 0.4]
    x_axis = axis("layer, in the order of the model", **layers, tickangle=0, showgrid=False, range=ends)
    y_axis = axis("", showgrid=False, showticklabels=False, range=[-0.02, 1.04])
    figure.update_layout(hovermode="closest")
    return lay_out(figure, x_axis, y_axis, (10, 10, 40, 50), legend=LEGEND, showlegend=True)


def strongest(edges: Sequence[Edge], most: int) -> list[Edge]:
    """The edges with the largest excess above 0, largest first, at most `most`."""
    return sorted((edge for edge in edges if edge.excess > 0), key=lambda edge: -edge.excess)[:most]


def _line(edge: Edge, places: Mapping[str, tuple[float, float]], largest: float) -> go.Scatter:
    """A curve from a writer to a reader, which leaves and arrives level."""
    (x0, y0), (x1, y1) = places[edge.writer], places[edge.reader]
    steps = [step / 16 for step in range(17)]
    return go.Scatter(
        x=[plain(x0 + (x1 - x0) * t) for t in steps],
        y=[plain(y0 + (y1 - y0) * t * t * (3 - 2 * t)) for t in steps],
        customdata=[[edge.writer, edge.reader, plain(edge.excess)]] * len(steps),
        mode="lines",
        line={**_KIND_LINES[edge.kind], "width": round(1 + 4 * edge.excess / largest, 2)},
        opacity=0.7,
        legendgroup=edge.kind,
        showlegend=False,
        hovertemplate="%{customdata[0]} → %{customdata[1]}: <b>%{customdata[2]:.3~g}</b> beyond chance<extra>"
        + KIND_WORDS[edge.kind]
        + "</extra>",
    )


def _circles(figure: go.Figure, top: int, decades: int) -> None:
    """A circle for each power of ten, named where it is free."""
    for step in range(1, decades + 1):
        ends = {"x0": -step, "y0": -step, "x1": step, "y1": step}
        figure.add_shape(type="circle", **ends, line={"color": _FAINT, "width": 1}, layer="below")
        at = cmath.rect(step, math.radians(112))
        text = f"10<sup>{top - decades + step}</sup>".replace("-", "−")
        figure.add_annotation(x=at.real, y=at.imag, text=text, showarrow=False, font={"size": 10})
