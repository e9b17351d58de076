"""Gather and aggregate heads: what is condensed at the end of each piece of a prompt, and who reads it there.

In-context retrieval, in transformers and recurrent models alike, rests on a few heads of two sorts (Bick, Xing & Gu
2025, "Understanding the Skill Gap in Recurrent Language Models: The Role of the Gather-and-Aggregate Mechanism", arXiv
2504.18574): a gather head takes what a segment of the prompt says (an option of a question, a line of a table) into the
segment's last token, and an aggregate head, in a later layer, brings together at the prompt's last token what stands at
those. The paper shows what is lost without such heads; the two numbers here are this project's measure of the patterns
that it describes. With A[i, j] the attention of token i to token j, segments [start, end) and the last token q:

* gather = mean over segments of Σ A[end - 1, j] over start ≤ j < end - 1: what a segment's last token takes of the
  segment's other tokens;
* aggregate = Σ over segments of A[q, end - 1]: what the last token takes of the segments' last tokens.

Both are 0 to 1. Beside each stands what attention spread evenly over all tokens so far would have; `pairs` ranks gather
heads with the aggregate heads behind them by the product. For recurrent layers A is the hidden attention
(`analyses.heads.attended`), so that heads of both kinds compare: the paper finds that hybrids leave aggregating to
attention.

How it fails: a pattern is not an effect; silence the heads that come out on top and see (`analyses.states.silencing`,
`analyses.heads.sparsification`). A head that looks a token or two back gathers, by this measure, from short segments. A
recurrent layer may gather by its convolution, which hidden attention leaves out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.heads.attended import PREFIX, HeadsOf, Shares, attended, head_names, layers_of
from analyses.heads.ranking import HeadRanking
from hybridlens.boundary import Natural, public
from hybridlens.boundary_words import Among
from hybridlens.display import Displayed, Grid, Table, many
from hybridlens.display.markup import Plain, cut
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.niah import Span
from hybridlens.tokens import TokensLike
from hybridlens.viz.plotted import Plotted

SCORES = {
    "gather": "what a segment's last token takes of the segment",
    "aggregate": "what the prompt's last token takes of the segments' last tokens",
}
"""Name of a score -> what it is."""

Score: TypeAlias = Annotated[str, Among(tuple(SCORES))]


class _HeadPair(NamedTuple):
    """Fields of `HeadPair`."""

    gather: tuple[str, int, int]
    aggregate: tuple[str, int, int]
    product: float
    """Of the two scores."""


class HeadPair(Displayed, _HeadPair):
    """A gather head, and an aggregate head in a later layer; each as kind, layer and head."""

    __slots__ = ()

    def row(self) -> dict[str, Plain]:
        """Both heads in words, and the product."""
        heads = {"gather": self.gather, "aggregate": self.aggregate}
        words = {name: f"L{layer} {PREFIX[of]}{head}" for name, (of, layer, head) in heads.items()}
        return {**words, "product": self.product}


@dataclass(frozen=True, eq=False)
class GatherScores(Plotted, Stored):
    """How much every head gathers and aggregates, means over prompts.

    Attributes:
        gather: what segments' last tokens take of their segments, 0 to 1; NaN where a layer has fewer heads.
        aggregate: what the prompt's last token takes of segments' last tokens.
        even_gather: the same of attention spread evenly over all tokens so far.
        even_aggregate: likewise.
        layers: the index in the model of each layer.
        of: whose heads, one of `attended.KINDS`.
        source: of which prompts, in words.

    Raises:
        InputError: scores and layers that do not fit.
    """

    gather: Float[Tensor, "layer head"]
    aggregate: Float[Tensor, "layer head"]
    even_gather: float
    even_aggregate: float
    layers: tuple[int, ...]
    of: str
    source: str

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        if self.gather.shape[0] != len(self.layers):
            raise InputError(f"scores of {self.gather.shape[0]} layers given for layers {list(self.layers)}")

    @public
    def ranking(self, score: Score) -> HeadRanking:
        """The heads by one of the scores, the highest first.

        Raises:
            InputError: layers of different numbers of heads.
        """
        return HeadRanking(getattr(self, score), self.layers, f"{SCORES[score]}, {self.source}", lower_is_better=False)

    @public
    def top(self, score: Score, n: Natural = 5) -> list[tuple[int, int, float]]:
        """(layer, head, score) of the best heads, the highest first; of equals, the first."""
        values: Tensor = getattr(self, score)
        order = values.flatten().nan_to_num(-1.0).argsort(descending=True, stable=True).tolist()
        places = [divmod(place, values.shape[1]) for place in order[:n]]
        return [(self.layers[row], head, float(values[row, head])) for row, head in places if values[row, head] >= 0]

    def summary(self) -> str:
        """The best head of each score, beside even attention."""
        even = {"gather": self.even_gather, "aggregate": self.even_aggregate}
        best = [(name, *self.top(name, 1)[0]) for name in SCORES]
        said = ", ".join(
            f"{name} L{layer} {PREFIX[self.of]}{head} {value:.2f} (even attention {even[name]:.2f})"
            for name, layer, head, value in best
        )
        return f"best heads: {said}; {many(len(self.layers), 'layer')}; {cut(self.source, 60)}"

    def table(self) -> Table:
        """A row a head."""
        values = {name: getattr(self, name) for name in SCORES}
        return Table.of(values, {"layer": self.layers, "head": None}, SCORES)

    def view(self) -> tuple[Grid, ...]:
        """Both scores as grids of layers and heads."""
        rows, columns = [f"L{layer}" for layer in self.layers], head_names(self.of, self.gather.shape[1])
        return tuple(
            Grid(getattr(self, name), rows, columns, "layers", "heads", f"{name}: {said}", limit=1.0)
            for name, said in SCORES.items()
        )


@public
def gather_scores(
    lens: HybridLens, prompts: TokensLike, segments: Sequence[Sequence[Span]], *, of: HeadsOf = "attention"
) -> GatherScores:
    """Gather and aggregate scores of every head over prompts of any lengths.

    Args:
        lens: the model.
        prompts: each ends in the token that is to answer.
        segments: of each prompt, half-open token ranges of two tokens or more, apart from each other and before its
            last token; see `split`.
        of: "attention" heads, or "recurrent" heads by their hidden attention.

    Raises:
        InputError: a model without such heads, not one list of segments a prompt, or segments that are no such ranges.
        UnknownNameError: there is no such kind of heads.
    """
    layers = layers_of(lens, of, "gather and aggregate scores")
    batch = lens.batch(prompts)
    n, width = batch.tokens.shape
    lengths = [width] * n if batch.lengths is None else [int(length) for length in batch.lengths.tolist()]
    if len(segments) != n:
        raise InputError(f"segments of {len(segments)} prompts given for {many(n, 'prompt')}; give a list for each")
    total: list[Tensor] = []
    even: list[tuple[float, float]] = []
    for row, (length, spans) in enumerate(zip(lengths, segments, strict=True)):
        _check(spans, length, row)
        last = length - 1

        def measured(shares: Shares, spans: Sequence[Span] = spans, last: int = last) -> Float[Tensor, "head score"]:
            taken = [shares[0, :, end - 1, start : end - 1].sum(dim=-1) for start, end in spans]
            ends = torch.tensor([end - 1 for _, end in spans], device=shares.device)
            return torch.stack([torch.stack(taken).mean(dim=0), shares[0, :, last, ends].sum(dim=-1)], dim=-1)

        total.append(attended(lens, batch.tokens[row : row + 1, :length], of, layers, measured))
        even.append((sum((end - 1 - start) / end for start, end in spans) / len(spans), len(spans) / length))
    gather, aggregate = torch.stack(total).mean(dim=0)
    means = torch.tensor(even, dtype=torch.float64).mean(dim=0).tolist()
    source = f"{of} heads, {many(n, 'prompt')} of {many(sum(map(len, segments)), 'segment')}"
    return GatherScores(gather, aggregate, means[0], means[1], layers, of, source)


@public
def split(tokens: Sequence[Natural], ends: Collection[Natural]) -> list[Span]:
    """The segments of a prompt that end in one of some tokens (a line break, say), as half-open ranges.

    Those of fewer than two tokens, and what stands behind the last such token, are left out; so is a segment that ends
    with the prompt.

    Args:
        tokens: ids of one prompt.
        ends: ids that segments end in, and contain.
    """
    found: list[Span] = []
    start = 0
    for place, token in enumerate(tokens[:-1]):
        if token in ends:
            if place > start:
                found.append((start, place + 1))
            start = place + 1
    return found


@public
def pairs(gather: GatherScores, aggregate: GatherScores, n: Natural = 10) -> list[HeadPair]:
    """Gather heads with aggregate heads in later layers, by the product of their scores, the largest first.

    Args:
        gather: whose gather scores count: of attention or of recurrences.
        aggregate: whose aggregate scores count; of the same model.
        n: how many at most.
    """
    firsts = gather.top("gather", gather.gather.numel())
    seconds = aggregate.top("aggregate", aggregate.aggregate.numel())
    found = [
        HeadPair((gather.of, layer, head), (aggregate.of, later, other), score * second)
        for layer, head, score in firsts
        for later, other, second in seconds
        if later > layer
    ]
    return sorted(found, key=lambda pair: -pair.product)[:n]


def _check(spans: Sequence[Span], length: int, row: int) -> None:
    if not spans:
        raise InputError(f"prompt {row} was given without segments, expected at least one")
    for start, end in spans:
        if not 0 <= start < end - 1 < length - 1:
            raise InputError(
                f"segment {start}..{end} given for prompt {row}, expected two tokens or more before the last of "
                f"{length}: 0 <= start < end - 1 < {length - 1}"
            )
    for (start, end), (other, after) in pairwise(sorted(spans)):
        if other < end:
            raise InputError(
                f"segments {start}..{end} and {other}..{after} given for prompt {row} overlap, so that attention would "
                "count twice; give segments apart"
            )
