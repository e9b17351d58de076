"""Plotly figures of a sweep: accuracy against the heads kept, and maps of length by depth.

How it fails: `ResultsError` when no cell fits.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from hybridlens.errors import ResultsError
from hybridlens.results import Cell, accuracy_points, phases_of
from hybridlens.viz.charts import ACCURACY, Curve, line_chart
from hybridlens.viz.entries import Value
from hybridlens.viz.layout import MAP_COLORS, axis, lay_out
from hybridlens.viz.words import PHASE_TITLES, depth_label


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


def accuracy_curve(cells: Sequence[Cell], max_score: float | int = 5.0, n_heads: int | None = None) -> go.Figure:
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
    curves = [Curve(PHASE_TITLES[phase], accuracy_values(cells, phase, max_score)) for phase in phases]
    return line_chart(curves, n_heads, ACCURACY)


def accuracy_values(cells: Sequence[Cell], phase: str, max_score: float | int) -> dict[int, Value]:
    """Heads kept -> accuracy of a phase with its interval and chance level, ascending."""
    return {
        p.k: Value(p.accuracy, p.low, p.high, p.n, math.nan if p.chance is None else p.chance)
        for p in accuracy_points(cells, phase, max_score)
    }


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
    return lay_out(
        figure,
        axis("prompt length, tokens", type="category", showgrid=False),
        axis("depth of the needle", type="category", autorange="reversed", showgrid=False),
        (10, 10, 10, 50),
    )
