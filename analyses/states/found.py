"""Everything that a run of `hybridlens states` gives."""

from __future__ import annotations

from typing import NamedTuple

from analyses.states.flow import Flow
from analyses.states.holding import Holding
from analyses.states.knockout import Knockout
from analyses.states.looking import HiddenHeads
from analyses.states.probe import StateProbes
from analyses.states.sizes import Sizes
from analyses.states.spectrum import Spectrum
from analyses.states.texts import Measurable


class OfPrompt(NamedTuple):
    """Every measure of one prompt."""

    prompt: Measurable
    spectrum: Spectrum
    sizes: Sizes
    flow: Flow
    holding: Holding
    """Of the first tokens, unless the needle begins the prompt, and then of the needle, where there is one."""


class Found(NamedTuple):
    """Everything that a run gives."""

    prompts: tuple[OfPrompt, ...]
    hidden: HiddenHeads | None
    """Of the middle prompt; None where it is too long."""
    knockouts: dict[str, Knockout]
    """By name: "write-1", "read-1", …; empty for own texts."""
    probes: StateProbes | None
    first: int
    """Tokens at the start that may be a sink."""
