"""What the circuits' report calls heads, writers and scores, and what the scores mean.

How it fails: a head that the model has not raises `ValueError`.
"""

from __future__ import annotations

import math

from analyses.circuits.results import Head, HeadCircuits
from hybridlens.viz.words import DASH

MEANING = {
    "copying": "1: all eigenvalues are positive, so what the head looks at becomes more likely next; −1: less likely.",
    "copying_share": "Of a sample of tokens: for how many the head raises the token's own logit more than any other's.",
    "matching": "1: a query looks for keys of its own token; −1: for any but its own. Mean over distances.",
    "matching_share": "Of a sample of tokens: for how many the query's own token has the highest score as a key.",
    "previous": "Attention to the token just before, when all tokens are alike and only distance counts.",
    "induction": "Highest over earlier writers: how much of the writer is about the token before × its K-composition "
    "with the head beyond chance × the head's copying; 0 where a factor is not above 0.",
    "induction_match": "Like matching, with keys made by that writer: 1 looks for tokens that follow its equal.",
    "retrieval": "High where the head finds what followed an equal token and copies it; what is below 0 counts as 0.",
}
"""Metric -> what its values mean."""


def titled(metric: str) -> str:
    """A metric's name in words."""
    return metric.replace("_", " ")


def number(value: float) -> str:
    """A score in a table: "0.873", "−0.051", "0"; three digits after the point, or that it is less."""
    if not math.isfinite(value):
        return DASH
    if 0 < abs(value) < 0.0005:
        return "under 0.0005" if value > 0 else "over −0.0005"
    return f"{value:.3f}".replace("-", "−") if value else "0"


def writer_of(circuits: HeadCircuits, head: Head) -> str:
    """The writer through which a head inducts; a dash where there is none."""
    place = int(circuits.at(circuits.induction_writer, head))
    return DASH if place < 0 else circuits.writers[place]
