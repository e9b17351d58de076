"""Plotly figures of a sweep: accuracy against the heads kept, and maps of length by depth.

Colours are quiet and safe for colour-blind readers, every axis says in words which end is which, and the
background is transparent so that a page can be light or dark. How it fails: `ResultsError` when no cell fits.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from hybridlens.errors import ResultsError
from hybridlens.results import Cell, accuracy_points, phases_of
from hybridlens.viz.words import LEFT_OUT, PHASE_TITLES, depth_label

PHASE_COLORS = {"generation": "#0f6e74", "prefill": "#b4532a"}
PHASE_SYMBOLS = {"generation": "circle", "prefill": "square"}
MAP_COLORS = ((0.0, "#f3ece2"), (0.5, "#7db8b1"), (1.0, "#0c5359"))
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_GRID = "rgba(128,128,128,0.22)"
_MOST_TICKS = 20


class MapGrid(NamedTuple):
    """One retrieval map: a row a depth (controls last), a column a length, None where no cell was run.

    Attributes:
        lengths: prompt lengths in tokens, ascending.
        depths: percent of the context, ascending; None for the row of controls.
        accuracy: percent, [depth][length].
    """

    lengths: list[int]
    depths: list[float | int | None]
    accuracy: list[list[float | None]]


def accuracy_curve(
    cells: Sequence[Cell], max_score: float | int = 5.0, n_heads: int | None = None
) -> go.Figure:
    """Accuracy against the number of heads kept, a curve a phase, its chance level dotted beside it.

    Bars are the 95 % intervals over prompts.

    Args:
        cells: cells of one model, controls among them.
        max_score: the most points the rubric gives.
        n_heads: heads per layer, so that the axis can name the untouched model; None when unknown.

    Raises:
        ResultsError: no cell holds a needle.
    """
    phases = [p for p in phases_of(cells) if any(c.phase == p and not c.control for c in cells)]
    if not phases:
        raise ResultsError("no cell with a needle to draw; run the sweep first")
    figure = go.Figure()
    ks: set[int] = set()
    for phase in phases:
        points = accuracy_points(cells, phase, max_score)
        ks |= {p.k for p in points}
        title, color = PHASE_TITLES[phase], PHASE_COLORS[phase]
        figure.add_scatter(
            x=[p.k for p in points],
            y=[100 * p.accuracy for p in points],
            customdata=[[p.n, 100 * p.low, 100 * p.high] for p in points],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [100 * (p.high - p.accuracy) for p in points],
                "arrayminus": [100 * (p.accuracy - p.low) for p in points],
                "thickness": 1.2,
                "width": 4,
            },
            name=title,
            mode="lines+markers",
            line={"color": color, "width": 2.5},
            marker={"symbol": PHASE_SYMBOLS[phase], "size": 8},
            hovertemplate="k = %{x}: <b>%{y:.1f} %</b> over %{customdata[0]} prompts "
            + "(95 %: %{customdata[1]:.1f} to %{customdata[2]:.1f} %)<extra>"
            + title
            + "</extra>",
        )
        chance = [(p.k, 100 * p.chance, p.n_control) for p in points if p.chance is not None]
        if chance:
            figure.add_scatter(
                x=[k for k, _, _ in chance],
                y=[y for _, y, _ in chance],
                customdata=[n for _, _, n in chance],
                name=f"{title}, {LEFT_OUT} (chance)",
                mode="lines+markers",
                line={"color": color, "width": 1.5, "dash": "dot"},
                marker={"symbol": f"{PHASE_SYMBOLS[phase]}-open", "size": 6},
                hovertemplate="k = %{x}: %{y:.1f} % over %{customdata} prompts<extra>"
                + LEFT_OUT
                + "</extra>",
            )
    figure.update_layout(
        **base_layout(),
        xaxis=k_axis(sorted(ks), n_heads),
        yaxis=axis(
            "accuracy, % of the highest score<br>bars: 95 % interval over prompts",
            range=[-3, 104],
            ticksuffix=" %",
            dtick=25,
        ),
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
        margin={"l": 70, "r": 20, "t": 50, "b": 70},
        hovermode="x unified",
    )
    return figure


def map_grid(cells: Sequence[Cell], phase: str, k: int, max_score: float | int = 5.0) -> MapGrid:
    """The numbers of one retrieval map. Its axes are those of the whole sweep, so that maps compare.

    Raises:
        ResultsError: no cell of that phase and k.
    """
    chosen = {(c.length, c.depth): c for c in cells if c.phase == phase and c.k == k}
    if not chosen:
        raise ResultsError(f"no cell of phase {phase!r} with k = {k}; phases present: {phases_of(cells)}")
    lengths = sorted({c.length for c in cells})
    depths: list[float | int | None] = [*sorted({c.depth for c in cells if c.depth is not None})]
    if any(c.control for c in cells):
        depths.append(None)
    rows: list[list[float | None]] = [
        [100 * chosen[n, d].score / max_score if (n, d) in chosen else None for n in lengths] for d in depths
    ]
    return MapGrid(lengths, depths, rows)


def retrieval_map(cells: Sequence[Cell], phase: str, k: int, max_score: float | int = 5.0) -> go.Figure:
    """Accuracy by prompt length and needle depth, the controls in a row of their own below.

    Args:
        cells: cells of one model.
        phase: "generation" or "prefill".
        k: heads kept.
        max_score: the most points the rubric gives.

    Raises:
        ResultsError: no cell of that phase and k.
    """
    return map_figure(map_grid(cells, phase, k, max_score))


def map_figure(grid: MapGrid) -> go.Figure:
    """`retrieval_map` of numbers that are there already."""
    labels = [depth_label(depth) for depth in grid.depths]
    values = list(grid.accuracy)
    if None in grid.depths:
        # An empty row keeps the controls apart from the last depth.
        labels.insert(-1, " ")
        values.insert(-1, [None] * len(grid.lengths))
    figure = go.Figure(
        go.Heatmap(
            x=[str(length) for length in grid.lengths],
            y=labels,
            z=values,
            zmin=0,
            zmax=100,
            xgap=2,
            ygap=2,
            colorscale=[list(stop) for stop in MAP_COLORS],
            texttemplate="%{z:.0f}",
            textfont={"size": 11},
            hoverongaps=False,
            hovertemplate="length %{x}, %{y}: <b>%{z:.0f} %</b><extra></extra>",
            colorbar={
                "title": {"text": "accuracy, %", "side": "right", "font": {"size": 12}},
                "tickfont": {"size": 11},
                "thickness": 8,
                "len": 0.6,
                "outlinewidth": 0,
                "tickvals": [0, 50, 100],
            },
        )
    )
    figure.update_layout(
        **base_layout(),
        xaxis=axis("prompt length, tokens", type="category", showgrid=False),
        yaxis=axis("depth of the needle", type="category", autorange="reversed", showgrid=False),
        margin={"l": 10, "r": 10, "t": 10, "b": 50},
    )
    return figure


def base_layout() -> dict[str, Any]:
    """What every figure shares."""
    return {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 13, "color": "#2b2b2b"},
    }


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
        tickvals=shown,
        tickangle=0,
        ticklabeloverflow="allow",
        ticktext=[f"{k}<br>{names[k]}" if k in names else str(k) for k in shown],
        range=[ks[0] - room, ks[-1] + room],
    )
