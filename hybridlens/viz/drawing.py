"""Figures of what results show: the grid or the curve of a notebook's HTML, with values under the pointer.

How it fails: `InputError` for a result that has no picture.
"""

from __future__ import annotations

import plotly.graph_objects as go

from hybridlens.display import Curve, Displayed, Grid
from hybridlens.errors import InputError
from hybridlens.viz.heads import heatmap_height, pair_heatmap
from hybridlens.viz.layout import LEGEND, axis, lay_out, stroke
from hybridlens.viz.plot import Plot
from hybridlens.viz.positions import literal


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
    figure = pair_heatmap(grid.numbers, rows, columns, (grid.down, grid.across), literal(grid.name, 80))
    if grid.limit is not None:
        signed = any(value < 0 for row in grid.numbers for value in row)
        figure.update_traces(zmin=-grid.limit if signed else 0, zmax=grid.limit)
    return Plot(figure.update_layout(height=heatmap_height(len(rows), 240)))


def curve_plot(curve: Curve) -> Plot:
    """Lines as a figure."""
    figure = Plot()
    for i, (name, values) in enumerate(curve.lines.items()):
        points = [None if value != value else float(value) for value in values]
        figure.add_trace(go.Scatter(x=list(curve.x), y=points, name=literal(name, 60), **stroke(i)))
    across, up = axis(literal(curve.across, 80)), axis(literal(curve.up, 80))
    lay_out(figure, across, up, (10, 10, 30, 40), legend=LEGEND)
    return figure
