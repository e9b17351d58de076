"""Which tokens a state holds: what each span of a prompt put there and is still left, after all decays and erasures.

A state is the sum of what all tokens put in, S = Σ C over any partition of the prompt into spans, C being what is left
of a span's own writes. A span's share is ⟨C, S⟩ / ⟨S, S⟩: shares add up to 1, and one is below 0 where a span stands
against the rest. State sinks are the share of the first tokens, against that of as many tokens if all held the same
(attention sinks: Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks").

How it fails: shares of an empty state are nan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.patching.alignment import places_of
from analyses.states.sizes import spread
from analyses.states.watching import Watched, blank, chosen_layers, layer_lines, rows_of, watch
from hybridlens.boundary import Natural, Positive, public
from hybridlens.display import Curve, Piece, Table, many
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.niah import Span
from hybridlens.tokens import TokensLike
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot


@dataclass(frozen=True)
class Holding(Plotted, Stored):
    """What states hold of some spans of their prompts."""

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    """Tokens after which states were taken apart."""
    spans: tuple[tuple[int, int], ...]
    """Half-open."""
    share: Float[Tensor, "rec_layer batch rec_head span pos"]
    """Of each span; see the module."""
    rest: Float[Tensor, "rec_layer batch rec_head pos"]
    """Of all tokens outside the spans."""
    lengths: tuple[int, ...] = ()
    """Tokens of each prompt, where they differ; NaN stands where a prompt has no such token."""

    @property
    def even(self) -> Float[Tensor, "span pos"]:
        """What each span's share would be if all tokens read held the same."""
        counts = [[max(0, min(stop, at + 1) - start) / (at + 1) for at in self.positions] for start, stop in self.spans]
        return torch.tensor(counts, dtype=torch.float64)

    def summary(self) -> str:
        """Which spans, and what is held of each at the last position."""
        held = self.share[..., -1].double().nanmean(dim=(0, 1, 2)).tolist()
        spans = ", ".join(f"{a}..{b}: {share:.1%}" for (a, b), share in list(zip(self.spans, held, strict=True))[:4])
        layers, rows, heads = self.share.shape[:3]
        parts = f"{many(layers, 'layer')} × {many(rows, 'prompt')} × {many(heads, 'head')}"
        return f"{parts}; mean share after token {self.positions[-1]} of {many(len(self.spans), 'span')}, {spans}"

    def table(self) -> Table:
        """A row for each layer, prompt, head, span and position; what no span holds is span "rest"."""
        shares = torch.cat([self.share, self.rest[..., None, :]], dim=-2)
        spans = [*(f"{start}..{stop}" for start, stop in self.spans), "rest"]
        axes = {"layer": self.layers, "prompt": None, "head": None, "span": spans, "position": self.positions}
        return Table.of({"share": shares}, axes, {"share": "of the state; those of all spans and the rest add up to 1"})

    def view(self) -> tuple[Piece, ...]:
        """The share of each span over the prompt, a line a layer; of four spans at most."""
        return tuple(self._curve(i) for i in range(min(4, len(self.spans))))

    def _curve(self, span: int) -> Curve:
        lines = layer_lines(self.share[..., span, :], self.layers) | {"if all held the same": self.even[span].tolist()}
        start, stop = self.spans[span]
        title = f"Tokens {start}..{stop}"
        return Curve(self.positions, lines, "position", "share of the state, mean over heads and prompts", title)

    def plot(self, span: int = 0) -> Plot:
        """The share of one span over the prompt, a line a layer, beside what it would be if all tokens held the same.

        Args:
            span: which, by its place.
        """
        from hybridlens.viz.curves import token_curves
        from hybridlens.viz.plot import Plot

        return Plot(token_curves(self._curve(span).lines, self.positions, "share of the state", self.spans[span]))


@public
def holding(
    lens: HybridLens,
    prompts: TokensLike,
    spans: Sequence[Span],
    positions: Sequence[int] | None = None,
    layers: Sequence[Natural] | None = None,
) -> Holding:
    """How much of every head's state is held by each of some spans of tokens.

    Args:
        lens: the model.
        prompts: text, ids, or lists of either, of any lengths.
        spans: half-open token ranges that do not overlap, the same in all prompts.
        positions: after which tokens, negative ones counted from the end of prompts of one length; 64 spread over the
            longest prompt by default.
        layers: with a state; all when left out.

    Raises:
        InputError: a model or layer without states, spans that overlap or lie outside a prompt, positions that no
            prompt has, or negative ones of prompts of different lengths, whose spans are then differently far away.
    """
    what = "what states hold"
    chosen = chosen_layers(lens, layers, what)
    rows = rows_of(lens, prompts)
    length = rows.length
    if rows.unequal and any(position < 0 for position in positions or ()):
        lengths = ", ".join(map(str, rows.lengths[:8]))
        raise InputError(
            f"positions {list(positions or ())} given for prompts of {lengths} tokens, expected positions from the "
            "start: one from the end is another of each prompt"
        )
    at = spread(length) if positions is None else tuple(sorted(set(places_of(positions, length))))
    _check(spans, min(rows.lengths))
    groups = torch.zeros(len(spans) + 1, length, dtype=torch.bool)
    for i, (start, stop) in enumerate(spans):
        groups[i, start:stop] = True
    groups[-1] = ~groups.any(dim=0)

    def measure(layer: Watched) -> Tensor:
        return blank(_shares(layer, groups.to(layer.states.device), at).cpu(), rows.real[:, list(at)], 3)

    shares = torch.stack(watch(lens, rows, chosen, measure, what))
    return Holding(chosen, at, tuple(spans), shares[..., :-1, :], shares[..., -1, :], rows.unequal)


@public
def sinks(
    lens: HybridLens,
    prompts: TokensLike,
    first: Positive = 4,
    positions: Sequence[int] | None = None,
    layers: Sequence[Natural] | None = None,
) -> Holding:
    """How much of every head's state the first tokens hold: `holding` of one span.

    Args:
        lens: the model.
        prompts: as `holding`.
        first: how many tokens.
        positions: as `holding`.
        layers: as `holding`.

    Raises:
        InputError: as `holding`, or prompts of fewer tokens.
    """
    return holding(lens, prompts, [(0, first)], positions, layers)


def _check(spans: Sequence[Span], length: int) -> None:
    for start, stop in spans:
        if not 0 <= start < stop <= length:
            raise InputError(f"span {start}..{stop} does not lie in a prompt of {length} tokens")
    order = sorted(spans)
    for (_, end), (start, stop) in pairwise(order):
        if start < end:
            raise InputError(f"span {start}..{stop} overlaps one that ends at {end}; give disjoint ones")


def _shares(layer: Watched, groups: Tensor, at: Sequence[int]) -> Float[Tensor, "batch rec_head group pos"]:
    """Of each group of tokens; its part of the state is what a run gives in which all other tokens are silent."""
    op, rows = layer.operator, layer.states.shape[0]
    whole = op.by_head(layer.states[:, list(at)]).double().flatten(-2)
    shares = list[Tensor]()
    for group in groups:
        terms, state, parts, begun = op.silenced(layer.terms, ~group[None]), op.empty(rows, whole.device), [], 0
        for position in at:
            state = op.run(op.at(terms, slice(begun, position + 1)), state).final
            begun = position + 1
            parts.append(op.by_head(state).double().flatten(-2))
        shares.append((torch.stack(parts, dim=1) * whole).sum(dim=-1) / whole.square().sum(dim=-1))
    return torch.stack(shares, dim=-1).permute(0, 2, 3, 1)
