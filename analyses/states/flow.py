"""What each token does to a state: what it leaves, what stood there already, what it writes, what it erases of whom.

S' = what decay leaves of the state before a token; A = what the token would have stand at its address (v kᵀ of a delta
rule, else what it adds); E = what it erases of S' (β (S' k) kᵀ; nothing where there is no delta rule). All norms and
products are Frobenius', of one head:

* kept:    |S'| / |S_before|, what decay leaves.
* wrote:   |S - S'| / |S|, all that was added, against what then stands there.
* already: ⟨S', A⟩ / ⟨A, A⟩, how much of what is written was already there: 0 nothing, 1 just that, above 1 more of it.
* erased:  |E| / |S'|.

Of a delta rule, what a token erases is a sum over earlier tokens: β_t recall_t = Σ_j `erasures`[t, j] v_j, exactly, all
that came between gone through (the rule of Yang et al. 2024, "Gated Delta Networks", unrolled).

Prompts may be of any lengths; behind the last token of a shorter one all is nan. How it fails: a share of nothing is
nan: `kept` and `erased` after an empty state (the first token), `already` where a token writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.states.watching import Watched, blank, chosen_layers, rows_of, watch
from hybridlens.boundary import Natural, public
from hybridlens.display import Grid, Piece, Table, many, number
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.recurrences import before
from hybridlens.recurrences.terms import length_of
from hybridlens.tokens import TokensLike
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

STRETCH = 64
"""Tokens whose decayed states are held at once."""


@dataclass(frozen=True)
class Flow(Plotted, Stored):
    """What every token does to every head's state."""

    layers: tuple[int, ...]
    kept: Float[Tensor, "rec_layer batch rec_head pos"]
    wrote: Float[Tensor, "rec_layer batch rec_head pos"]
    already: Float[Tensor, "rec_layer batch rec_head pos"]
    erased: Float[Tensor, "rec_layer batch rec_head pos"]
    lengths: tuple[int, ...] = ()
    """Tokens of each prompt, where they differ."""

    @property
    def erases(self) -> bool:
        """Whether anything was erased."""
        return bool((self.erased > 0).any())

    def summary(self) -> str:
        """How many tokens and heads, and means."""
        layers, rows, heads, places = self.kept.shape
        parts = f"{many(layers, 'layer')} × {many(rows, 'prompt')} × {many(heads, 'head')} × {many(places, 'token')}"
        named = ("kept", "wrote", "already", *(("erased",) if self.erases else ()))
        means = ", ".join(f"{name} {number(float(getattr(self, name).nanmean()), 3)}" for name in named)
        return f"{parts}; means: {means}"

    def table(self) -> Table:
        """A row for each layer, prompt, head and token."""
        axes = {"layer": self.layers, "prompt": None, "head": None, "position": None}
        return Table.of({name: getattr(self, name) for name in MEANINGS}, axes, MEANINGS)

    def view(self) -> tuple[Piece, ...]:
        """What the tokens do on average, by layer and position."""
        names = [f"L{layer}" for layer in self.layers]
        places = [str(i) for i in range(self.kept.shape[-1])]
        measures = ("already", "wrote", *(("erased",) if self.erases else ()))
        return tuple(
            Grid(getattr(self, name).double().nanmean(dim=(1, 2)), names, places, "layers", "positions", MEANINGS[name])
            for name in measures
        )

    def plot(self, what: str = "already", prompt: int = 0, texts: Sequence[str] | None = None) -> Plot:
        """One measure by layer and token, mean over heads.

        Args:
            what: "kept", "wrote", "already" or "erased".
            prompt: which, by its place.
            texts: of its tokens, such as ``lens.to_str_tokens(text)``; positions alone when left out.

        Raises:
            InputError: there is no such measure, or not a text for each token.
        """
        from hybridlens.viz.plot import Plot
        from hybridlens.viz.positions import position_heatmap

        if what not in MEANINGS:
            raise InputError(f"{what!r} given, expected one of {', '.join(MEANINGS)}")
        values = getattr(self, what)[:, prompt].double().nanmean(dim=1)
        names = [str(i) if texts is None else f"{i} {texts[i]}" for i in range(len(texts or values[0]))]
        if len(names) != values.shape[1]:
            raise InputError(f"{len(names)} texts given for {values.shape[1]} tokens, expected one for each")
        rows = [f"L{layer}" for layer in self.layers]
        return Plot(position_heatmap(values.tolist(), rows, names, "layer", MEANINGS[what], 1.0))


MEANINGS = {
    "kept": "what decay leaves of the norm of the state",
    "wrote": "what was added, as a share of what then stands there",
    "already": "how much of what is written stood there already: 0 nothing, 1 just that",
    "erased": "what was erased, as a share of what decay left",
}
"""Measure -> what its values say; the module has the formulas."""


@public
def flow(lens: HybridLens, prompts: TokensLike, layers: Sequence[Natural] | None = None) -> Flow:
    """What every token of some prompts does to every head's state; see the module for the formulas.

    Args:
        lens: the model.
        prompts: text, ids, or lists of either, of any lengths.
        layers: with a state; all when left out.

    Raises:
        InputError: a model or layer without states.
    """
    what = "the flow of states"
    chosen = chosen_layers(lens, layers, what)
    rows = rows_of(lens, prompts)
    found = watch(lens, rows, chosen, lambda seen: [blank(part, rows.real, 1) for part in _measured(seen)], what)
    kept, wrote, already, erased = (torch.stack(part).transpose(-1, -2) for part in zip(*found, strict=True))
    return Flow(chosen, kept, wrote, already, erased, rows.unequal)


@public
def erasures(lens: HybridLens, prompts: TokensLike, layer: Natural) -> Float[Tensor, "batch rec_head query key"]:
    """How much of each earlier token's value each token of one layer takes away; see the module.

    Of prompts of different lengths, rows of queries behind a prompt's last token are nan.

    Raises:
        InputError: a layer without states, or whose recurrence erases nothing.
    """
    what = "erasures"
    chosen = chosen_layers(lens, [layer], what)
    rows = rows_of(lens, prompts)
    found = watch(lens, rows, chosen, lambda seen: seen.operator.erasures(seen.terms).cpu(), what)[0]
    return blank(found, rows.real, 2)


def _measured(layer: Watched) -> tuple[Tensor, ...]:
    """Kept, wrote, already and erased of one layer [b p h], a stretch of tokens at a time."""
    op, length = layer.operator, length_of(layer.terms)
    earlier = before(layer.states, op.empty(layer.states.shape[0], layer.states.device))
    parts = [_of_stretch(layer, earlier, slice(at, at + STRETCH)) for at in range(0, length, STRETCH)]
    return tuple(torch.cat(part, dim=1).cpu() for part in zip(*parts, strict=True))


def _of_stretch(layer: Watched, earlier: Tensor, part: slice) -> tuple[Tensor, ...]:
    op = layer.operator
    terms, was, now = op.at(layer.terms, part), earlier[:, part], layer.states[:, part]
    faded, left, offered = op.faded(was, terms), op.carry(was, terms), op.offered(terms)

    def norm(states: Tensor) -> Tensor:
        return op.by_head(states).double().flatten(-2).norm(dim=-1)

    stood, there = (op.by_head(states).double().flatten(-2) for states in (faded, offered))
    already = (stood * there).sum(dim=-1) / there.square().sum(dim=-1)
    return norm(faded) / norm(was), norm(now - faded) / norm(now), already, norm(faded - left) / norm(faded)
