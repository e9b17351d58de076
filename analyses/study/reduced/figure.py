"""Retrieval against what a module costs, as a figure: a symbol for each kind, open where it was fine-tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from analyses.study.reduced.shapes import COSTS, KINDS
from hybridlens.viz.layout import COLORS, LEGEND, PERCENT, SYMBOLS, axis, lay_out, plain
from hybridlens.viz.plot import Plot

if TYPE_CHECKING:
    from analyses.study.reduced.results import ReducedModules

TITLES = ("bytes held, by token of context", "multiplications of one token decoded")


def chart(found: ReducedModules, by: str) -> go.Figure:
    """All modules; those that cost nothing stand at the left, at a half.

    Args:
        by: of `COSTS`.
    """
    figure = Plot()
    which = COSTS.index(by)
    for i, (kind, words) in enumerate(KINDS.items()):
        for tuned in (False, True):
            places = [p for p in found.among(tuned) if found.kinds[p] == kind]
            if not places:
                continue
            values = [found.retrieval[p] for p in places]
            color, symbol = COLORS[i % len(COLORS)], SYMBOLS[i % len(SYMBOLS)]
            figure.add_scatter(
                x=[max(found.cost(p)[which], 0.5) for p in places],
                y=[plain(100 * value.value) for value in values],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [plain(100 * (value.high - value.value)) for value in values],
                    "arrayminus": [plain(100 * (value.value - value.low)) for value in values],
                    "thickness": 1,
                    "width": 3,
                },
                customdata=[found.label(p) for p in places],
                hovertemplate="%{customdata}: <b>%{y:.1f} %</b> at %{x:,.4~g}<extra></extra>",
                mode="markers",
                marker={"symbol": symbol + ("-open" if tuned else ""), "size": 9, "color": color},
                name=words + (", fine-tuned" if tuned else ""),
            )
    x_axis = axis(f"{TITLES[which]}, at {found.context} tokens<br>(by powers of ten)", type="log")
    y_axis = axis("retrieval, % of the highest score<br>bars: 95 % interval over prompts", **PERCENT)
    return lay_out(figure, x_axis, y_axis, (70, 30, 40, 70), legend=LEGEND, showlegend=True)
