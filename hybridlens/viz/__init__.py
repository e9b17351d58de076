"""Typed results to pictures: Plotly figures, circuitsvis patterns, and the report page. Loads no model.

Every figure is a `Plot`, which notebooks show as `embedding` says; results that draw themselves are `Plotted`. The
public names are loaded when they are first used, and Plotly with them.

How it fails: `hybridlens.errors.InputError` for a pattern or figure that cannot be drawn, `ResultsError` for cells that
hold nothing to show.

Modules:
    words: findings in sentences
    entries: shares and differences as tables write them
    inks: text on coloured squares, read on light pages and on dark ones
    templating: the Jinja2 environment; `templates/` and `assets/` are the pages' HTML, code and styles
    bundles: the smallest build of plotly.js that draws a page's figures
    embedding: figures of notebooks, of which one holds the library
    plot: Plotly figures that exports keep
    layout: colours, axes and what all Plotly figures share
    charts: Plotly figures of plain values
    figures: Plotly figures of a sweep over k
    heads: heatmaps of heads
    circuits: eigenvalues, curves over distance, who composes with whom
    positions: heatmaps over a prompt's positions, with its tokens on the axis
    curves: curves along tokens
    drawing: figures of what results show
    plotted: the mixin of results that draw themselves
    patterns: circuitsvis patterns, any token shown literally, network off
    blocks: the parts of a page as values
    gathered: what a page's code needs of them
    article: report.html made of sections, any text shown literally
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridlens.viz.embedding import Html
    from hybridlens.viz.figures import accuracy_curve, retrieval_map
    from hybridlens.viz.patterns import MAX_TOKENS, PatternFigure, attention_heads
    from hybridlens.viz.plot import Plot
    from hybridlens.viz.plotted import Plotted
    from hybridlens.viz.words import headline

_HOMES = {
    "accuracy_curve": "figures",
    "retrieval_map": "figures",
    "headline": "words",
    "Plot": "plot",
    "Plotted": "plotted",
    "Html": "embedding",
}
"""Of public names; all others are at home in `patterns`."""

__all__ = [
    "accuracy_curve",
    "retrieval_map",
    "MAX_TOKENS",
    "Html",
    "PatternFigure",
    "Plot",
    "Plotted",
    "attention_heads",
    "headline",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'hybridlens.viz' has no attribute {name!r}")
    return getattr(import_module(f"hybridlens.viz.{_HOMES.get(name, 'patterns')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
