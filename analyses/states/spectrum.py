"""Half-lives: how long what is written into a state stays there, by what multiplies the state at each token.

A part of the state that a token multiplies by a_t is left with ∏ a_t of what it held, so that its mean log decay
E[ln a] is a rate in nats a token, and ln 2 / -E[ln a] the number of tokens in which half of it is gone (the time
constants of Gu et al. 2022, "How to Train Your HiPPO"; of Mamba and RG-LRU they depend on the text, so they are means
over one). All parts together are the decay spectrum.

How it fails: the first token of a prompt decays nothing and is left out. A delta rule forgets by erasing as well, which
no half-life shows (`analyses.states.flow`); `analyses.states.holding` measures what is really left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.states.watching import Watched, chosen_layers, rows_of, watch
from hybridlens.boundary import Natural, public
from hybridlens.display import Grid, Piece, Table, many, number
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.tokens import TokensLike
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot


@dataclass(frozen=True)
class Spectrum(Plotted, Stored):
    """Decays of the recurrent layers over some prompts."""

    layers: tuple[int, ...]
    length: int
    """Tokens of each prompt; of the longest, where they differ."""
    log_decay: Float[Tensor, "rec_layer rec_head entry"]
    """Mean over tokens of ln a, nats a token; -inf where a token takes away everything."""
    spread: Float[Tensor, "rec_layer rec_head entry"]
    """Standard deviation of ln a over tokens: how much the text decides; nan where `log_decay` is -inf."""

    @property
    def half_life(self) -> Float[Tensor, "rec_layer rec_head entry"]:
        """Tokens until half is gone: ln 2 / -`log_decay`; inf for what never decays, 0 for what is taken at once."""
        return math.log(2) / -self.log_decay

    @property
    def beyond(self) -> Float[Tensor, "rec_layer rec_head"]:
        """The share of a head's parts whose half-life is longer than the prompts."""
        return (self.half_life > self.length).double().mean(dim=-1)

    def summary(self) -> str:
        """How many layers and heads, and how long half of a state lasts."""
        layers, heads, entries = self.log_decay.shape
        parts = f"{many(layers, 'layer')} × {many(heads, 'head')} × {many(entries, 'entry', 'entries')}"
        middle = f"median half-life {number(float(self.half_life.median()), 3)} tokens"
        return f"{parts}; {middle}; {float(self.beyond.mean()):.0%} outlast the prompts ({many(self.length, 'token')})"

    def table(self) -> Table:
        """A row a part of a state."""
        values = {"log_decay": self.log_decay, "spread": self.spread, "half_life": self.half_life}
        axes = {"layer": self.layers, "head": None, "entry": None}
        return Table.of(values, axes, {"log_decay": "nats a token", "spread": "over tokens", "half_life": "tokens"})

    def view(self) -> tuple[Piece, ...]:
        """The median half-life of every head, and how many parts outlast the prompts."""
        heads = [f"S{head}" for head in range(self.log_decay.shape[1])]
        names = [f"L{layer}" for layer in self.layers]
        median = self.half_life.median(dim=-1).values
        return (
            Grid(median, names, heads, "layers", "recurrent heads", "median half-life of a head's parts, tokens"),
            Grid(self.beyond, names, heads, "layers", "recurrent heads", "share of parts that outlast the prompts"),
        )

    def plot(self) -> Plot:
        """How many parts of each layer's states last at least so many tokens; of six layers, evenly spread."""
        from hybridlens.viz.curves import lasting_curves
        from hybridlens.viz.plot import Plot

        shown = sorted({round(i * (len(self.layers) - 1) / 5) for i in range(6)})
        lasts = {f"L{self.layers[i]}": self.half_life[i].flatten().tolist() for i in shown}
        return Plot(lasting_curves(lasts, self.length, "half-life, tokens", "parts of the state that last so long"))


@public
def spectrum(lens: HybridLens, prompts: TokensLike, layers: Sequence[Natural] | None = None) -> Spectrum:
    """Half-lives of every part of every state, over all tokens of some prompts.

    Args:
        lens: the model.
        prompts: text, ids, or lists of either, of any lengths; each token counts once.
        layers: with a state; all when left out.

    Raises:
        InputError: a model or layer without states, or prompts of which none has two tokens.
    """
    chosen = chosen_layers(lens, layers, "a decay spectrum")
    rows = rows_of(lens, prompts)
    if rows.length < 2:
        raise InputError("prompts of one token were given, expected at least two: the first decays nothing")

    def measure(layer: Watched) -> tuple[Tensor, Tensor]:
        logs = layer.operator.decays(layer.terms)[:, 1:].double().log()[rows.real[:, 1:].to(layer.states.device)]
        return logs.mean(dim=0).cpu(), logs.std(dim=0, correction=0).cpu()

    rates, spreads = zip(*watch(lens, rows, chosen, measure, "a decay spectrum"), strict=True)
    return Spectrum(chosen, rows.length, torch.stack(rates), torch.stack(spreads))
