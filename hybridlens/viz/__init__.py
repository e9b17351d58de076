"""Typed results to pictures: Plotly figures, circuitsvis patterns, and the report page. Loads no model.

`figures` draws cells, `charts` and `bands` plain values, `heads` and `circuits` what is known of heads, `patterns`
attention; `words` puts the finding into sentences; `report` makes the page of a sweep over k, `article` every other,
from the `blocks` that it is given.
How it fails: `hybridlens.errors.InputError` for a pattern that cannot be drawn, `ResultsError` for cells that
hold nothing to show.
"""

from hybridlens.viz.figures import accuracy_curve, retrieval_map
from hybridlens.viz.patterns import MAX_TOKENS, Html, PatternFigure, attention_heads
from hybridlens.viz.report import render_report, write_report
from hybridlens.viz.words import headline

__all__ = [
    "accuracy_curve",
    "retrieval_map",
    "MAX_TOKENS",
    "Html",
    "PatternFigure",
    "attention_heads",
    "render_report",
    "write_report",
    "headline",
]
