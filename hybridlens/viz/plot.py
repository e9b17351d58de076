"""Plotly figures for notebooks: `Plot`, a figure that shows itself, and what draws the pieces of a result.

How it fails: `InputError` for a result that has no picture.
"""

from __future__ import annotations

import plotly.graph_objects as go

from hybridlens.display import Curve, Displayed, Grid
from hybridlens.errors import InputError
from hybridlens.viz.heads import pair_heatmap
from hybridlens.viz.layout import LEGEND, axis, lay_out, stroke
from hybridlens.viz.positions import literal


class Plot(go.Figure):
    """A Plotly figure that a notebook shows."""


def drawn(shown: Displayed) -> Plot:
    """The first grid or curve of what a result shows, as a figure.

    Raises:
        InputError: there is none.
    """
    for piece in shown.view():
        if isinstance(piece, Grid):
            return grid_plot(piece)
        if isinstance(piece, Curve):
            return curve_plot(piece)
    name = type(shown).__name__
    raise InputError(f"plot: a {name} has no picture; to_pandas() gives its numbers to draw them otherwise")


def grid_plot(grid: Grid) -> Plot:
    """A grid as a heatmap."""
    rows, columns = ([literal(name) for name in names] for names in (grid.rows, grid.columns))
    return Plot(pair_heatmap(grid.numbers, rows, columns, (grid.down, grid.across), literal(grid.name, 80)))


def curve_plot(curve: Curve) -> Plot:
    """Lines as a figure."""
    figure = go.Figure()
    for i, (name, values) in enumerate(curve.lines.items()):
        points = [None if value != value else float(value) for value in values]
        figure.add_trace(go.Scatter(x=list(curve.x), y=points, name=literal(name, 60), **stroke(i)))
    lay_out(figure, axis(literal(curve.across, 80)), axis(literal(curve.up, 80)), (10, 10, 30, 40), legend=LEGEND)
    return Plot(figure)
