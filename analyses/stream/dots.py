"""A figure of single numbers beside others: what was measured, and what random sets or shuffled labels give.

How it fails: numbers that are not finite are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from hybridlens.viz.layout import COLORS, axis, lay_out, plain
from hybridlens.viz.plot import Plot
from hybridlens.viz.positions import literal


def dots(sets: Mapping[str, Sequence[float]], title: str) -> Plot:
    """A line of dots for each set, the first with larger ones.

    Args:
        sets: name -> numbers; two of them.
        title: what the numbers are.
    """
    figure = go.Figure()
    for (name, values), color, size in zip(sets.items(), COLORS, (14, 8), strict=False):
        figure.add_scatter(
            x=[plain(value) for value in values],
            y=[name] * len(values),
            mode="markers",
            showlegend=False,
            marker={"color": color, "size": size, "opacity": 0.7},
            hovertemplate="%{x:.3~g}<extra>" + name + "</extra>",
        )
    lay_out(figure, axis(literal(title, 80), zeroline=True), axis("", type="category"), (10, 16, 16, 50))
    return Plot(figure)
