"""Everything that a run of `hybridlens states` gives."""

from __future__ import annotations

from typing import NamedTuple

from analyses.states.flow import Flow
from analyses.states.holding import Holding
from analyses.states.knocked import Knockout
from analyses.states.looking import HiddenHeads
from analyses.states.probe import StateProbes
from analyses.states.sizes import Sizes
from analyses.states.spectrum import Spectrum
from analyses.states.texts import Measurable
from hybridlens.display import Displayed, Piece, Table, many


class _OfPrompt(NamedTuple):
    """Fields of `OfPrompt`."""

    prompt: Measurable
    spectrum: Spectrum
    sizes: Sizes
    flow: Flow
    holding: Holding
    """Of the first tokens, unless the needle begins the prompt, and then of the needle, where there is one."""


class OfPrompt(Displayed, _OfPrompt):
    """Every measure of one prompt."""

    __slots__ = ()

    def summary(self) -> str:
        """Which prompt."""
        return self.prompt.summary()

    def view(self) -> tuple[Piece, ...]:
        """Half-lives, what tokens write, and what is held of the last span."""
        return (self.spectrum.view()[0], self.flow.view()[0], self.holding.view()[-1])


class _Found(NamedTuple):
    """Fields of `Found`."""

    prompts: tuple[OfPrompt, ...]
    hidden: HiddenHeads | None
    """Of the middle prompt; None where it is too long."""
    knockouts: dict[str, Knockout]
    """By name: "write-1", "read-1", …; empty for own texts."""
    probes: StateProbes | None
    first: int
    """Tokens at the start that may be a sink."""


class Found(Displayed, _Found):
    """Everything that a run gives."""

    __slots__ = ()

    def summary(self) -> str:
        """How many prompts, knock-outs and probes."""
        probes = "no probes" if self.probes is None else "probes"
        return f"{many(len(self.prompts), 'prompt')}, {many(len(self.knockouts), 'knock-out')}, {probes}"

    def table(self) -> Table:
        """A row for each knock-out: what was silenced, and what that does."""
        rows = [
            (name, found.what, len(found.heads), found.untouched, found.value, found.change, found.p_value)
            for name, found in self.knockouts.items()
        ]
        return Table(("knock-out", "what", "heads", "untouched", "value", "change", "p_value"), rows)

    def view(self) -> tuple[Piece, ...]:
        """The middle prompt's measures, and the knock-outs."""
        middle = self.prompts[len(self.prompts) // 2].view() if self.prompts else ()
        return (*middle[:2], *((self.table(),) if self.knockouts else ()))
