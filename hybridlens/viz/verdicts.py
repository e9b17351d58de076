"""The verdicts on claims: a block of a page, and its HTML.

Each claim stands with the paper's number, what was measured, the outcome in a word with a sign that needs no colour,
and the rule that decides. How it fails: an outcome that is none of `OUTCOMES` is a `KeyError`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hybridlens.viz.page import escape
from hybridlens.viz.words import DASH

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
class Verdicts:
    """Hypotheses, a table each."""

    hypotheses: tuple[Hypothesis, ...]


def verdicts_html(verdicts: Verdicts) -> str:
    """A heading and a table for each hypothesis; all text is escaped here."""
    return "\n".join(_hypothesis(hypothesis) for hypothesis in verdicts.hypotheses)


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
