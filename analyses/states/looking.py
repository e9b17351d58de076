"""Hidden attention of chosen recurrent heads over the positions worth drawing.

Heads are chosen that hold most of what is looked for at the end of the prompt: the needle, or else, of own texts, that
forget most slowly, one a layer. How it fails: hidden attention grows with the square of the length, so that prompts of
more than `LONGEST` tokens have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.heads.needle_heads import MOST_TOKENS, crop
from analyses.states.flow import erasures
from analyses.states.hidden import hidden_attention
from analyses.states.holding import Holding
from analyses.states.spectrum import Spectrum
from hybridlens.display import Grid, Piece, Table, listed, many
from hybridlens.model import HybridLens
from hybridlens.niah import Span
from hybridlens.viz.plotted import Plotted

LONGEST = 1024
"""Tokens of a prompt whose hidden attention is made."""

DRAWN = 6
"""Heads drawn."""


@dataclass(frozen=True)
class HiddenHeads(Plotted, Stored):
    """Some heads' hidden attention between some positions of a prompt."""

    heads: tuple[tuple[int, int], ...]
    """(layer, recurrent head) of each."""
    positions: tuple[int, ...]
    """Ascending."""
    reads: Float[Tensor, "rec_head query key"]
    """What each position reads of each token's value."""
    erases: Float[Tensor, "rec_head query key"] | None
    """What each token takes away of each earlier one's; None where nothing is erased."""

    def summary(self) -> str:
        """Which heads, over how many positions."""
        heads = listed((f"L{layer} S{head}" for layer, head in self.heads), 8)
        erased = "" if self.erases is None else ", and erasures"
        return f"hidden attention of {heads} between {many(len(self.positions), 'position')}{erased}"

    def table(self) -> Table:
        """A row for each head, query and key."""
        values = {"reads": self.reads} | ({} if self.erases is None else {"erases": self.erases})
        names = [f"L{layer} S{head}" for layer, head in self.heads]
        axes = {"head": names, "query": self.positions, "key": self.positions}
        return Table.of(values, axes, {"query": "position that reads", "key": "position whose value is read"})

    def view(self) -> tuple[Piece, ...]:
        """What the first head reads."""
        places = [str(position) for position in self.positions]
        if not self.heads:
            return ()
        (layer, head), name = self.heads[0], "in units of the token's value"
        return (
            Grid(self.reads[0], places, places, "positions that read", "positions read", name, f"L{layer} S{head}"),
        )


def most_held(held: Holding, span: int, n: int) -> tuple[tuple[int, int], ...]:
    """The (layer, head) that hold most of a span at the last position, the most first.

    Args:
        held: of some prompts, over which the shares are averaged.
        span: place in `held.spans`.
        n: how many at most.
    """
    shares = held.share[..., span, -1].mean(dim=1).nan_to_num(-torch.inf)
    order = shares.flatten().argsort(descending=True, stable=True)[:n].tolist()
    return tuple((held.layers[place // shares.shape[1]], place % shares.shape[1]) for place in order)


def slowest(found: Spectrum, n: int) -> tuple[tuple[int, int], ...]:
    """The (layer, head) of the longest median half-life of each layer, the longest first, `n` at most."""
    median = found.half_life.median(dim=-1).values
    best = median.max(dim=1)
    order = best.values.argsort(descending=True, stable=True)[:n].tolist()
    return tuple((found.layers[i], int(best.indices[i])) for i in order)


def shown_positions(length: int, needle: Span | None) -> tuple[int, ...]:
    """The positions worth drawing: all, or the start, the needle and the end, or the start and the end."""
    if length <= MOST_TOKENS:
        return tuple(range(length))
    if needle is not None:
        return tuple(crop(length, 0, needle))
    half = MOST_TOKENS // 2
    return (*range(half), *range(length - half, length))


def look(
    lens: HybridLens, tokens: Sequence[int], heads: Sequence[tuple[int, int]], positions: Sequence[int], erase: bool
) -> HiddenHeads:
    """Hidden attention of some heads over one prompt, cropped.

    Args:
        lens: the model.
        tokens: the prompt.
        heads: (layer, recurrent head).
        positions: ascending.
        erase: whether the layers erase, so that this is made too.
    """
    kinds = (hidden_attention, erasures) if erase else (hidden_attention,)
    kept = [
        {layer: kind(lens, [list(tokens)], layer)[0][:, list(positions)][:, :, list(positions)] for layer, _ in heads}
        for kind in kinds
    ]
    reads, *erased = (torch.stack([whole[layer][head] for layer, head in heads]) for whole in kept)
    return HiddenHeads(tuple(heads), tuple(positions), reads, erased[0] if erased else None)
