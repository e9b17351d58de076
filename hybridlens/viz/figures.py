"""Plotly figures of a sweep: accuracy against the heads kept, and maps of length by depth.

How it fails: `ResultsError` when no cell fits.
"""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from hybridlens.errors import ResultsError
from hybridlens.results import Cell, accuracy_points, phases_of
from hybridlens.viz.charts import ACCURACY, Curve, line_chart
from hybridlens.viz.entries import Value
from hybridlens.viz.inks import MAP_COLORS
from hybridlens.viz.layout import heatmap
from hybridlens.viz.words import PHASE_TITLES, depth_label


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
    points = {phase: accuracy_points(cells, phase, max_score) for phase in phases}
    curves = [
        Curve(
            PHASE_TITLES[phase],
            {p.k: Value(p.accuracy, p.low, p.high, p.n, math.nan if p.chance is None else p.chance) for p in found},
        )
        for phase, found in points.items()
    ]
    return line_chart(curves, n_heads, ACCURACY)


def retrieval_map(cells: Sequence[Cell], phase: str, k: int, max_score: float | int = 5.0) -> go.Figure:
    """Accuracy by prompt length and needle depth, the controls in a row of their own below.

    The axes are those of the whole sweep, so that maps compare.

    Args:
        phase: "generation" or "prefill".
        max_score: the most points the rubric gives.

    Raises:
        ResultsError: no cell of that phase and k.
    """
    chosen = {(c.length, c.depth): 100 * c.score / max_score for c in cells if c.phase == phase and c.k == k}
    if not chosen:
        raise ResultsError(f"no cell of phase {phase!r} with k = {k}; phases present: {phases_of(cells)}")
    lengths = sorted({c.length for c in cells})
    depths: list[float | int | None] = [*sorted({c.depth for c in cells if c.depth is not None})]
    if any(c.control for c in cells):
        depths.append(None)
    return map_figure(lengths, depths, [[chosen.get((length, depth)) for length in lengths] for depth in depths])


def map_figure(
    lengths: Sequence[int], depths: Sequence[float | int | None], accuracy: Sequence[Sequence[float | None]]
) -> go.Figure:
    """`retrieval_map` of numbers that are there already.

    Args:
        lengths: of prompts in tokens, ascending.
        depths: percent of the context, ascending; None last, for the row of controls.
        accuracy: percent, [depth, length]; None where no cell was run.
    """
    labels = [depth_label(depth) for depth in depths]
    values = [list(row) for row in accuracy]
    if None in depths:
        # An empty row keeps the controls apart from the last depth.
        labels.insert(-1, " ")
        values.insert(-1, [None] * len(lengths))
    trace = {
        "x": [str(length) for length in lengths],
        "y": labels,
        "z": values,
        "zmin": 0,
        "zmax": 100,
        "xgap": 2,
        "ygap": 2,
        "text": [["" if value is None else f"{value:.0f}" for value in row] for row in values],
        "texttemplate": "%{text}",
        "textfont": {"size": 11},
        "hovertemplate": "length %{x}, %{y}: <b>%{z:.0f} %</b><extra></extra>",
    }
    title = {"text": "accuracy, %", "side": "right", "font": {"size": 12}}
    bar = {"title": title, "len": 0.6, "tickvals": [0, 50, 100]}
    return heatmap(trace, bar, MAP_COLORS, ("depth of the needle", "prompt length, tokens"), 50)
