"""How large a state is, and how many directions it uses, token by token.

With σ the singular values of a head's state as a matrix (value by address; of Mamba's state channels by state size):

* norm: the Frobenius norm, √Σσ².
* effective rank: exp of the entropy of σ / Σσ (Roy & Vetterli 2007, "The effective rank"): from 1, all in one
  direction, to the smaller of the two widths.
* stable rank: Σσ² / max σ² (Rudelson & Vershynin 2007), which small singular values do not move.

How it fails: a state without addresses (RG-LRU's) is a vector, which has no rank: `None`. Of an empty state both ranks
are nan. Singular values are made in float64, of as many matrices as layers × prompts × heads × positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.states.watching import Watched, blank, chosen_layers, layer_lines, rows_of, watch
from hybridlens.boundary import Natural, public
from hybridlens.display import Curve, Piece, Table, many, number
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.tokens import TokensLike
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

PLACES = 64
"""Positions at which ranks are made by default, spread over the prompt."""


@dataclass(frozen=True)
class Sizes(Plotted, Stored):
    """Norm and ranks of states over time."""

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    """Tokens after which states were measured, counted from 0; below 0 from each prompt's own end, where their lengths
    differ."""
    norm: Float[Tensor, "rec_layer batch rec_head pos"]
    effective_rank: Float[Tensor, "rec_layer batch rec_head pos"] | None
    """None where states are vectors."""
    stable_rank: Float[Tensor, "rec_layer batch rec_head pos"] | None
    most: int
    """The largest rank that a head's state can have."""
    lengths: tuple[int, ...] = ()
    """Tokens of each prompt, where they differ; NaN stands where a prompt has no such token."""

    def summary(self) -> str:
        """How many states were measured, and how large they are at the end."""
        layers, rows, heads, places = self.norm.shape
        parts = f"{many(layers, 'layer')} × {many(rows, 'prompt')} × {many(heads, 'head')} × {many(places, 'position')}"
        last = f"mean norm at the last {number(float(self.norm[..., -1].nanmean()), 3)}"
        ranks = self.effective_rank
        rank = "" if ranks is None else f", effective rank {number(float(ranks[..., -1].nanmean()), 3)} of {self.most}"
        return f"{parts}; {last}{rank}"

    def table(self) -> Table:
        """A row for each layer, prompt, head and position."""
        values = {"norm": self.norm, "effective_rank": self.effective_rank, "stable_rank": self.stable_rank}
        axes = {"layer": self.layers, "prompt": None, "head": None, "position": self.positions}
        return Table.of({name: value for name, value in values.items() if value is not None}, axes)

    def view(self) -> tuple[Piece, ...]:
        """Norm and effective rank over the prompt, a line a layer."""
        return tuple(
            Curve(self.positions, layer_lines(values, self.layers), "position", f"{name}, mean over heads and prompts")
            for name, values in (("norm", self.norm), ("effective rank", self.effective_rank))
            if values is not None
        )

    def plot(self, what: str = "norm") -> Plot:
        """One measure over the prompt, a line a layer: "norm", "effective_rank" or "stable_rank".

        Raises:
            InputError: there is no such measure, or vectors, which have no rank, were measured.
        """
        from hybridlens.viz.curves import token_curves
        from hybridlens.viz.plot import Plot

        values = getattr(self, what, None) if what in ("norm", "effective_rank", "stable_rank") else None
        if values is None:
            has = "norm" if self.effective_rank is None else "norm, effective_rank, stable_rank"
            raise InputError(f"{what!r} given, expected one of {has}")
        return Plot(token_curves(layer_lines(values, self.layers), self.positions, what.replace("_", " ")))


@public
def sizes(
    lens: HybridLens,
    prompts: TokensLike,
    positions: Sequence[int] | None = None,
    layers: Sequence[Natural] | None = None,
) -> Sizes:
    """Norm, effective and stable rank of every head's state after some tokens of prompts of any lengths.

    Args:
        lens: the model.
        prompts: text, ids, or lists of either.
        positions: after which tokens, negative ones counted from the end; `PLACES` spread over the prompt by default.
        layers: with a state; all when left out.

    Raises:
        InputError: a model or layer without states, or positions that no prompt has.
    """
    chosen = chosen_layers(lens, layers, "the size of states")
    rows = rows_of(lens, prompts)
    named, at, there = rows.places(spread(rows.length) if positions is None else positions)
    if not named:
        raise InputError("no positions were given, expected at least one")

    def measure(layer: Watched) -> tuple[Tensor, Tensor, Tensor]:
        chosen = layer.states[torch.arange(len(at))[:, None], at]
        matrices = layer.operator.by_head(chosen).transpose(1, 2).double()
        norm, (effective, stable) = matrices.flatten(-2).norm(dim=-1), _ranks(matrices)
        return blank(norm, there, 2).cpu(), blank(effective, there, 2).cpu(), blank(stable, there, 2).cpu()

    norm, effective, stable = (
        torch.stack(part) for part in zip(*watch(lens, rows, chosen, measure, "the size of states"), strict=True)
    )
    wide = lens.cfg.recurrence(chosen[0]).state_shape
    if len(wide) == 1:
        return Sizes(chosen, named, norm, None, None, 1, rows.unequal)
    return Sizes(chosen, named, norm, effective, stable, min(wide[-2:]), rows.unequal)


def spread(length: int, most: int = PLACES) -> tuple[int, ...]:
    """At most so many positions of a prompt, evenly spread, the last among them."""
    return tuple(sorted({-(-(i + 1) * length // min(most, length)) - 1 for i in range(min(most, length))}))


def _ranks(matrices: Float[Tensor, "*lead value address"]) -> tuple[Tensor, Tensor]:
    """Effective and stable rank [*lead]; nan of an empty matrix."""
    values = torch.linalg.svdvals(matrices)
    shares = values / values.sum(dim=-1, keepdim=True)
    effective = torch.special.entr(shares).sum(dim=-1).exp()
    squares = values.square()
    return effective, squares.sum(dim=-1) / squares[..., 0]
