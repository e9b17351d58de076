"""What patching one prompt pair gives, all of it: what a report shows."""

from __future__ import annotations

from typing import NamedTuple

from analyses.patching.choosing import Measure
from analyses.patching.direct_results import DirectAttribution
from analyses.patching.edge_results import EdgeResult
from analyses.patching.pairs import Pair
from analyses.patching.results import PatchResult


class Patched(NamedTuple):
    """Everything that a folder holds."""

    pair: Pair
    answers: tuple[str, str] | None
    """The tokens in which the two answers part, as text."""
    measure: Measure
    exact: dict[str, PatchResult]
    """By sweep, in the order of `SWEEPS`."""
    estimated: dict[str, PatchResult]
    edges: EdgeResult | None
    direct: DirectAttribution | None
    points: float | None = None
    """Of the answer to the clean prompt, by its needle's rubric (0 to `niah.MAX_SCORE`)."""
