"""`report.html`: one file with everything in it, that works with the network off.

The page of one sweep over k; `hybridlens.viz.page` says what keeps it safe. It holds the cells as JSON, and the
code of `page.js`. How it fails: `ResultsError` when there is nothing to show; an old report stays.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridlens.results import Cell, Finding, accuracy_points, finding, ks_of, phases_of, write_atomic
from hybridlens.viz.figures import PHASE_COLORS, accuracy_curve, map_grid, retrieval_map
from hybridlens.viz.page import POLICY, REPORT, day, document, escape, provenance, unfinished
from hybridlens.viz.patterns import PatternFigure, pattern_html, props
from hybridlens.viz.words import END, LEFT_OUT, PHASE_NOTES, PHASE_TITLES, START, headline, percent

__all__ = ["POLICY", "REPORT", "render_report", "write_report"]


def write_report(
    folder: Path,
    cells: Sequence[Cell],
    record: Mapping[str, Any],
    patterns: Sequence[PatternFigure] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write `report.html` into a run's folder, atomically; returns its path.

    Args:
        folder: the run's folder.
        cells: its cells (`Run.cells` or `read_cells`), of one model.
        record: its `run.json` (`Run.record`).
        patterns: attention patterns to draw.
        notes: sentences to show under the finding (what lies beyond the window, say).

    Raises:
        ResultsError: no cell holds a needle.
    """
    return write_atomic(folder / REPORT, render_report(cells, record, patterns, notes).encode("utf-8"))


def render_report(
    cells: Sequence[Cell],
    record: Mapping[str, Any],
    patterns: Sequence[PatternFigure] = (),
    notes: Sequence[str] = (),
) -> str:
    """The page as text; the arguments and errors are those of `write_report`."""
    max_score = float(record["max_score"])
    model = str(record["model"])
    n_heads = record.get("facts", {}).get("n_heads")
    phases = [p for p in phases_of(cells) if ks_of(cells, p)]
    found = [finding(accuracy_points(cells, p, max_score), p) for p in phases]
    sentences = headline(found, model, n_heads)
    data = {
        "maxScore": max_score,
        "phases": [{"id": p, "title": PHASE_TITLES[p], "note": PHASE_NOTES[p]} for p in phases],
        "ks": {p: ks_of(cells, p) for p in phases},
        "tip": {f.phase: f.tipping_point for f in found},
        "cells": [_row(cell) for cell in cells if cell.phase in phases],
        "maps": {
            p: {str(k): map_grid(cells, p, k, max_score).accuracy for k in ks_of(cells, p)} for p in phases
        },
        "depths": map_grid(cells, phases[0], ks_of(cells, phases[0])[0]).depths,
        "lengths": sorted({c.length for c in cells}),
        "leftOut": LEFT_OUT,
        "curve": accuracy_curve(cells, max_score, n_heads).to_plotly_json(),
        "map": retrieval_map(cells, phases[0], ks_of(cells, phases[0])[-1], max_score).to_plotly_json(),
        "patterns": [props(figure) for figure in patterns],
    }
    figures = "\n".join(pattern_html(i, figure) for i, figure in enumerate(patterns))
    body = f"""<header>
<p class="over">Needle in a haystack, heads kept by lowest entropy</p>
<h1>{escape(model)}</h1>
<p class="origin">{escape(_origin(cells, record))}</p>
{unfinished(record)}
<p class="finding">{escape(sentences[0])}</p>
{"".join(f'<p class="finding second">{escape(s)}</p>' for s in sentences[1:])}
{"".join(f'<p class="note">{escape(s)}</p>' for s in notes)}
{_summary_table(found, n_heads)}
</header>

<section>
<h2>Accuracy against heads kept</h2>
<p>The mean score over all lengths and depths, as a share of the highest score. Dotted: prompts with the
needle left out, which show what guessing earns.</p>
<div id="curve" class="plot curve"></div>
</section>

<section>
<h2>Retrieval maps</h2>
<p>A square is a prompt. Top: needle at the {escape(START)}. Bottom: at the {escape(END)}. Left to right: short
to long prompts. Choose a map, then a square in it.</p>
<div id="strip"></div>
<div class="pair">
<div>
<h3 id="map-title"></h3>
<div id="map" class="plot map"></div>
</div>
<div>
<h3>What the model wrote</h3>
<form id="choice" autocomplete="off">
<label>phase <select id="pick-phase"></select></label>
<label>heads kept <select id="pick-k"></select></label>
<label>length <select id="pick-length"></select></label>
<label>depth <select id="pick-depth"></select></label>
</form>
<div id="output" aria-live="polite"></div>
</div>
</div>
<h3 id="across-title"></h3>
<div id="across"></div>
</section>

{_patterns_block(figures)}

<section>
<h2>Provenance</h2>
{provenance(record)}
</section>"""
    title = f"{model}: needle in a haystack"
    return document(title, body, data, ["page.js"], with_patterns=bool(patterns))


def _row(cell: Cell) -> list[Any]:
    """A cell as the page's code reads it."""
    span = None if cell.needle_start is None else [cell.needle_start, cell.needle_end]
    seconds = round(cell.seconds, 3)
    head = [cell.phase, cell.k, cell.length, cell.depth]
    return [*head, cell.score, span, seconds, cell.prompt_hash[:12], cell.text]


def _origin(cells: Sequence[Cell], record: Mapping[str, Any]) -> str:
    """One line: how much was run, when, and under which rules."""
    controls = sum(cell.control for cell in cells)
    rules = sorted(
        {f"{cell.semantics} semantics, boundary {cell.boundary.replace('_', ' ')}" for cell in cells}
    )
    counts = f"{len(cells) - controls:,} answers with the needle in the prompt, {controls:,} without"
    return f"{counts} · {'; '.join(rules)} · seed {record.get('seed')} · {day(record)}"


def _summary_table(found: Sequence[Finding], n_heads: int | None) -> str:
    """The numbers of the finding, a row a phase."""
    most = "all heads" if all(f.k_full == n_heads for f in found) else "most heads"
    least = "no attention" if all(f.k_least == 0 for f in found) else "fewest heads"
    names = "".join(f"<th scope=col>{name}</th>" for name in (most, "tipping point", least, "chance"))
    return (
        f"<table class=summary><thead><tr><td></td>{names}</tr></thead>"
        f"<tbody>{''.join(_summary_row(f) for f in found)}</tbody></table>"
    )


def _summary_row(f: Finding) -> str:
    """One phase's numbers."""
    tip = ("none", "never under half")
    if f.tipping_point is not None and f.at_tipping_point is not None:
        tip = (f"k = {f.tipping_point}", percent(f.at_tipping_point))
    values = [
        (percent(f.full), f"k = {f.k_full}"),
        tip,
        (percent(f.least), f"k = {f.k_least}"),
        ("not run" if f.chance is None else percent(f.chance), LEFT_OUT),
    ]
    numbers = "".join(f"<td><b>{value}</b><small>{below}</small></td>" for value, below in values)
    return (
        f'<tr><th scope=row><i style="background:{PHASE_COLORS[f.phase]}"></i>{PHASE_TITLES[f.phase]}'
        f"<small>{PHASE_NOTES[f.phase]}</small></th>{numbers}</tr>"
    )


def _patterns_block(figures: str) -> str:
    """The section of attention patterns, or nothing when there are none."""
    if not figures:
        return ""
    return (
        "<section>\n<h2>Heads that look at the needle</h2>\n"
        "<p>Each row is the token that looks, each column the token looked at; the darker, the more "
        "attention. Point at a head to see it large, click to keep it.</p>\n"
        f"{figures}\n</section>"
    )
