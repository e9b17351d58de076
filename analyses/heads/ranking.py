"""`HeadRanking`: the attention heads of a model in order, best first, wherever the order came from.

A ranking is scores [attention layer, head], whether low or high is best, and a line that says what was
measured. The order follows from these alone: ties break by layer, then head, so that it is the same on
every device. Where all heads share one score there is no order, and no best heads are given.

How it fails: scores that are not numbers, or of another shape than the model, raise `InputError`; so does a
file that does not hold a ranking, and asking for the best of heads that all score the same. Where some heads share a
score, which of them come first was not measured: `ordering` says of how many that is true.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeAlias, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.experiment.text import columns
from hybridlens.boundary import Natural, public
from hybridlens.boundary_words import Among
from hybridlens.display import Grid, Piece, Table, many, number
from hybridlens.display.markup import cut
from hybridlens.errors import InputError, UnknownNameError, closest
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

SCOPES = ("layer", "model")
"""Where heads compete: inside each layer, or across all attention layers."""

Scope: TypeAlias = Annotated[str, Among(SCOPES)]


@public
@dataclass(frozen=True, eq=False)
class HeadRanking(Plotted, Stored, text=True):
    """The heads of a model, scored.

    Attributes:
        scores: a number for each head, float32, on the CPU.
        layers: the index in the model of each attention layer scored.
        source: what was measured, in words: the score, its unit and the prompts.
        lower_is_better: True when the best head has the lowest score.

    Raises:
        InputError: a score is not a number, or there are not as many layers as rows of scores.
    """

    scores: Float[Tensor, "attn_layer head"]
    layers: tuple[int, ...]
    source: str
    lower_is_better: bool

    def __post_init__(self) -> None:
        """Hold the scores as float32 on the CPU, checked."""
        scores = self.scores.detach().to("cpu", torch.float32)
        if scores.shape[0] != len(self.layers) or len(set(self.layers)) < len(self.layers):
            raise InputError(
                f"a ranking of {scores.shape[0]} rows of scores names layers {list(self.layers)}; "
                "expected one layer for each row, each once"
            )
        if bool(scores.isnan().any()):
            raise InputError(f"the ranking {self.source!r} holds scores that are not numbers; leave those prompts out")
        object.__setattr__(self, "scores", scores)

    @property
    def order(self) -> list[tuple[int, int]]:
        """(layer, head) of every head, best first; ties by layer, then head."""
        worst_last = self.scores if self.lower_is_better else -self.scores
        scores = cast(list[float], worst_last.flatten().tolist())
        pairs = itertools.product(self.layers, range(self.scores.shape[1]))
        return [pair for _, pair in sorted(zip(scores, pairs, strict=True))]

    @property
    def tied(self) -> bool:
        """Whether all heads share one score, so that none is better than another; False of a single head."""
        return self.scores.numel() > 1 and bool((self.scores == self.scores.flatten()[0]).all())

    @property
    def alike(self) -> str:
        """In words, that every head scores as the first does, where they are `tied`."""
        return f"every head scores {number(float(self.scores.flatten()[0]), 3)}"

    def leading(self, n: int) -> list[tuple[int, int]]:
        """(layer, head) of the best `n` heads, or of all where there are fewer; of none where all score the same."""
        return [] if self.tied else self.order[:n]

    @public
    def score(self, layer: Natural, head: Natural) -> float:
        """The score of one head.

        Raises:
            InputError: the ranking has no such head.
        """
        if layer not in self.layers or not 0 <= head < self.scores.shape[1]:
            raise InputError(
                f"layer {layer}, head {head} is not ranked; the ranking has layers "
                f"{', '.join(map(str, self.layers))} and heads 0..{self.scores.shape[1] - 1}"
            )
        return float(self.scores[self.layers.index(layer), head])

    def contests(self, scope: str) -> list[list[tuple[int, int]]]:
        """The heads that compete with each other, best first: all of the model, or those of each layer."""
        order = self.order
        return [order] if scope == "model" else [[pair for pair in order if pair[0] == layer] for layer in self.layers]

    @public
    def best(self, n: Natural, scope: Scope = "model") -> list[tuple[int, int]]:
        """(layer, head) of the best `n` heads: of the whole model, or of each layer.

        Raises:
            InputError: `n` is no whole number, or above the number of heads there are; or all heads score the same,
                and some but not all of them were asked for.
            UnknownNameError: there is no such scope.
        """
        contests = self.contests(scope)
        if n > len(contests[0]):
            where = "each layer" if scope == "layer" else "the model"
            raise InputError(f"the best {n} heads were asked for, expected 0..{len(contests[0])}, the heads of {where}")
        if self.tied and 0 < n < len(contests[0]):
            by = f"{self.alike} by {cut(self.source, 80)}"
            raise InputError(f"{by}, so that none is better than another; rank them by something else")
        return [pair for heads in contests for pair in heads[:n]]

    @public
    def kept(self, n: Natural, scope: Scope = "model") -> Bool[Tensor, "attn_layer head"]:
        """`best` as a mask, True for the heads that it names; errors as there."""
        best = set(self.best(n, scope))
        pairs = itertools.product(self.layers, range(self.scores.shape[1]))
        return torch.tensor([pair in best for pair in pairs]).view(self.scores.shape)

    def summary(self) -> str:
        """What was measured, and the best heads."""
        if self.tied:
            return f"{cut(self.source, 110)}; {self.alike}"
        best = ", ".join(f"L{layer} H{head} ({number(self.score(layer, head), 3)})" for layer, head in self.leading(3))
        which = "lowest" if self.lower_is_better else "highest"
        return f"{cut(self.source, 110)}; {which} first: {best}"

    def table(self) -> Table:
        """Every head with its score, best first."""
        rows = [(i, *head, self.score(*head)) for i, head in enumerate(self.order, start=1)]
        return Table(("place", "layer", "head", "score"), rows, {"score": self.source}, ("score",))

    def view(self) -> tuple[Piece, ...]:
        """Every score in its place, and the best heads."""
        names = [f"L{layer}" for layer in self.layers], [f"H{head}" for head in range(self.scores.shape[1])]
        return (Grid(self.scores, *names, "layers", "heads", self.source), self.table())

    def plot(self) -> Plot:
        """Every score, layers down and heads across; the best heads have the strongest colour."""
        from hybridlens.viz.heads import head_heatmap
        from hybridlens.viz.plot import Plot
        from hybridlens.viz.positions import literal

        name = literal(self.source, 80)
        return Plot(head_heatmap(self.scores.tolist(), self.layers, name, best_first=self.lower_is_better))


def check_name(name: str, known: Collection[str], said: str) -> None:
    """Refuse the name of a ranking that is none of `known`.

    Raises:
        UnknownNameError: ranking `name` was, as `said` has it, "not given" or the like; with the names there are.
    """
    if name not in known:
        listed = ", ".join(map(repr, known)) or "none"
        raise UnknownNameError(f"ranking {name!r} {said}{closest(name, known)}; there is {listed}")


def ordering(rankings: Mapping[str, HeadRanking]) -> tuple[dict[str, HeadRanking], tuple[str, ...]]:
    """The rankings that order heads, and a sentence for each that leaves heads, or all of them, without an order."""
    ordered: dict[str, HeadRanking] = {}
    said: list[str] = []
    for name, ranking in rankings.items():
        if ranking.tied:
            said.append(f"{name} is left out: {ranking.alike}, which orders none before another.")
            continue
        ordered[name] = ranking
        scores, counts = ranking.scores.unique(return_counts=True)
        groups = counts[counts > 1]
        if len(groups):
            which = number(float(scores[counts.argmax()]), 3)
            which += f", most of all ({int(counts.max())})" if len(groups) > 1 else ""
            said.append(
                f"By {name}, {int(groups.sum())} of {many(ranking.scores.numel(), 'head')} share their score with "
                f"another ({which}); these go by layer, then head, which measures nothing."
            )
    return ordered, tuple(said)


def ranking_table(ranking: HeadRanking) -> str:
    """Every head with its score, best first."""
    rows = [["rank", "layer", "head", "score"]]
    for rank, (layer, head) in enumerate(ranking.order, start=1):
        rows.append([str(rank), str(layer), str(head), f"{ranking.score(layer, head):.3f}"])
    best = "lowest" if ranking.lower_is_better else "highest"
    return f"{ranking.source}; {best} first\n{columns(rows, left=0)}"
