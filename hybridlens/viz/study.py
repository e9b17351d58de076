"""`report.html` of a study: the verdicts on the paper's claims, then a section for each experiment that ran.

What is shown comes as plain values (`StudyPage`); nothing here knows an experiment. How it fails: an old report
stays where the new one cannot be written whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hybridlens.results import write_atomic
from hybridlens.viz.blocks import DASH, Section
from hybridlens.viz.figures import MapGrid, map_figure
from hybridlens.viz.markup import Gathered, render
from hybridlens.viz.page import REPORT, document, escape, provenance, unfinished
from hybridlens.viz.words import END, LEFT_OUT, START

__all__ = ["Hypothesis", "StudyPage", "VerdictRow", "render_study", "write_study"]

OUTCOMES = {"holds": ("holds", "✓"), "fails": ("fails", "✗"), "not tested here": ("open", "○")}
"""Outcome -> the name of its style, and a sign that needs no colour."""

_SHOWN = 3
"""Measured values of a claim that are shown unfolded."""


class VerdictRow(NamedTuple):
    """What became of one claim.

    Attributes:
        claim: in one sentence.
        paper: the paper's number for this model; a dash where it gives none.
        measured: values with their intervals, in words.
        outcome: one of `OUTCOMES`.
        rule: what decides.
        reason: why it was not decided; empty where it was.
    """

    claim: str
    paper: str
    measured: tuple[str, ...]
    outcome: str
    rule: str
    reason: str


@dataclass(frozen=True)
class Hypothesis:
    """A hypothesis of the paper with its claims."""

    name: str
    sentence: str
    rows: tuple[VerdictRow, ...]


@dataclass(frozen=True)
class StudyPage:
    """Everything on the page.

    Attributes:
        model: its name.
        origin: one line: how much was run, under which rules, when.
        finding: the first sentences.
        notes: what a reader has to know before the rest.
        hypotheses: the verdicts; none leaves their section out.
        sections: the rest, in order.
    """

    model: str
    origin: str
    finding: tuple[str, ...]
    notes: tuple[str, ...]
    hypotheses: tuple[Hypothesis, ...]
    sections: tuple[Section, ...]


def write_study(folder: Path, page: StudyPage, record: Mapping[str, Any]) -> Path:
    """Write `report.html` into a study's folder, atomically; returns its path.

    Args:
        folder: the study's folder.
        page: what to show.
        record: its `run.json`.
    """
    return write_atomic(folder / REPORT, render_study(page, record).encode("utf-8"))


def render_study(page: StudyPage, record: Mapping[str, Any]) -> str:
    """The page as text; arguments as in `write_study`."""
    gathered = Gathered()
    parts = [_section(section, gathered) for section in page.sections]
    links = [("verdicts", "Verdicts")] if page.hypotheses else []
    links += [(section.name, section.title) for section in page.sections]
    links.append(("provenance", "Provenance"))
    first, *rest = page.finding or ("",)
    body = f"""<header>
<p class="over">Retrieval and attention in a hybrid model: the paper's experiments</p>
<h1>{escape(page.model)}</h1>
<p class="origin">{escape(page.origin)}</p>
{unfinished(record)}
<p class="finding">{escape(first)}</p>
{"".join(f'<p class="finding second">{escape(sentence)}</p>' for sentence in rest)}
{"".join(f'<p class="note">{escape(note)}</p>' for note in page.notes)}
<nav aria-label="sections">{" ".join(f'<a href="#{escape(n)}">{escape(t)}</a>' for n, t in links)}</nav>
</header>
{_verdicts(page.hypotheses)}
{"".join(parts)}
<section id="provenance">
<h2>Provenance</h2>
{provenance(record)}
</section>"""
    data = {
        "texts": list(gathered.texts),
        "charts": gathered.charts,
        "answers": gathered.answers,
        "explorer": gathered.explorer,
        "leftOut": LEFT_OUT,
        "ends": {"0": START, "100": END},
        "map": map_figure(MapGrid([0], [0], [[None]])).to_plotly_json(),
    }
    return document(f"{page.model}: the paper's experiments", body, data, ["study.js"], ["page.css", "study.css"])


def _section(section: Section, gathered: Gathered) -> str:
    blocks = "\n".join(render(block, gathered) for block in section.blocks)
    return f'<section id="{escape(section.name)}">\n<h2>{escape(section.title)}</h2>\n{blocks}\n</section>\n'


def _verdicts(hypotheses: Sequence[Hypothesis]) -> str:
    """A table for each hypothesis, or nothing when there are none."""
    if not hypotheses:
        return ""
    tables = "\n".join(_hypothesis(hypothesis) for hypothesis in hypotheses)
    return (
        '<section id="verdicts">\n<h2>Verdicts</h2>\n'
        "<p>Each claim is judged by the rule below it, from 95&nbsp;% intervals: it holds, or fails, only where the "
        "whole interval lies on one side of the rule's threshold.</p>\n"
        f"{tables}\n</section>"
    )


def _hypothesis(hypothesis: Hypothesis) -> str:
    counts = [(sum(row.outcome == name for row in hypothesis.rows), name) for name in OUTCOMES]
    words = ", ".join(f"{n} {name.rstrip('s') if n > 1 else name}" for n, name in counts if n)
    head = "".join(f"<th scope=col>{name}</th>" for name in ("claim", "the paper", "measured here", "outcome"))
    none = "" if any(row.paper != DASH for row in hypothesis.rows) else " unnumbered"
    return (
        f'<h3 class="hypothesis">{escape(hypothesis.name)}: {escape(hypothesis.sentence)}'
        f"<small>{escape(words)}</small></h3>"
        f'<table class="verdicts{none}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(_row(row) for row in hypothesis.rows)}</tbody></table>"
    )


def _row(row: VerdictRow) -> str:
    style, sign = OUTCOMES[row.outcome]
    reason = f"<small>{escape(row.reason)}</small>" if row.reason else ""
    return (
        f"<tr><th scope=row>{escape(row.claim)}<small>Rule: {escape(row.rule)}</small></th>"
        f'<td data-head="the paper">{escape(row.paper)}</td>'
        f'<td data-head="measured here">{_measured(row.measured)}</td>'
        f'<td data-head="outcome"><span class="outcome {style}"><i aria-hidden="true">{sign}</i> '
        f"{escape(row.outcome)}</span>{reason}</td></tr>"
    )


def _measured(values: Sequence[str]) -> str:
    lines = [f"<div>{escape(value)}</div>" for value in values]
    if len(lines) <= _SHOWN + 1:
        return "".join(lines)
    more = f"<details><summary>{len(lines) - _SHOWN} more</summary>{''.join(lines[_SHOWN:])}</details>"
    return "".join(lines[:_SHOWN]) + more
