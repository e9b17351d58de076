"""Typed results to pictures: Plotly figures, circuitsvis patterns, and the report page. Loads no model.

`figures` draws cells, `charts` plain values, `heads` and `circuits` what is known of heads, `patterns`
attention; `words` puts the finding into sentences; `article` makes a page of the `blocks` that it is given. The public
names are loaded when they are first used, and Plotly with them.
How it fails: `hybridlens.errors.InputError` for a pattern or figure that cannot be drawn, `ResultsError` for cells that
hold nothing to show.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridlens.viz.figures import accuracy_curve, retrieval_map
    from hybridlens.viz.patterns import MAX_TOKENS, Html, PatternFigure, attention_heads
    from hybridlens.viz.plot import Plot
    from hybridlens.viz.plotted import Plotted
    from hybridlens.viz.words import headline

_HOMES = {
    "accuracy_curve": "figures",
    "retrieval_map": "figures",
    "headline": "words",
    "Plot": "plot",
    "Plotted": "plotted",
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
