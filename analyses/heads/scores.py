"""How much each head looks at the previous token, at earlier copies of a token, and at what followed them.

Three kinds of keys, as TransformerLens' `head_detector` has them, of a query at i:

* previous: i - 1;
* duplicate: every j < i whose token is that of i;
* induction: every j ≤ i whose token before, j - 1 < i, is that of i.

The prompts are random tokens, all different, twice over, behind the model's BOS if it has one. Then the earlier copy is
one, and the scores are the means along a diagonal of the pattern that TransformerLens' demos take ("Exploratory
Analysis", "Main Demo"): at offset -1, -n and 1 - n, the last two over the second half, where there is a copy. Two
measures:

* "mean": attention to such keys, mean over the queries that have any;
* "share": attention to such keys ÷ all attention, over all queries of a prompt (`head_detector` with
  ``error_measure="mul"``), mean over prompts. Queries without such keys count, so it stays below the mean.

The BOS, on which idle heads rest, is left out: as a key, from the shares as well, unless `exclude_bos` is False.

How it fails: a head that does this on random tokens need not do it on text, nor write anything of use; and hidden
attention does not show what a recurrent layer's convolution moves (`analyses.heads.attended`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.heads.attended import PREFIX, HeadsOf, Shares, attended, head_names, layers_of, of_one_length
from analyses.heads.ranking import HeadRanking
from analyses.heads.repeats import MEASURES, SCORES, Wanted, looked_for, measured_of, repeated_tokens, without
from hybridlens.boundary import Natural, Positive, Seed, public
from hybridlens.boundary_words import Among
from hybridlens.display import Grid, Table, many
from hybridlens.display.markup import cut
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.tokens import TokensLike
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

Score: TypeAlias = Annotated[str, Among(tuple(SCORES))]
Measure: TypeAlias = Annotated[str, Among(MEASURES)]


@dataclass(frozen=True, eq=False)
class HeadScores(Plotted, Stored):
    """Scores of every head, of several draws of prompts; 0 to 1, more is more.

    Attributes:
        induction: attention to what followed earlier copies of the token; NaN where a layer has fewer heads.
        previous: to the token before.
        duplicate: to earlier copies.
        layers: the index in the model of each layer.
        of: whose heads, one of `attended.KINDS`.
        source: what was measured, of which prompts, in words.

    Raises:
        InputError: scores and layers that do not fit.
    """

    induction: Float[Tensor, "draw layer head"]
    previous: Float[Tensor, "draw layer head"]
    duplicate: Float[Tensor, "draw layer head"]
    layers: tuple[int, ...]
    of: str
    source: str

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        if self.induction.shape[1] != len(self.layers):
            raise InputError(f"scores of {self.induction.shape[1]} layers given for layers {list(self.layers)}")

    @public
    def mean(self, score: Score = "induction") -> Float[Tensor, "layer head"]:
        """One of the scores, its mean over the draws."""
        return getattr(self, score).mean(dim=0)

    @public
    def spread(self, score: Score = "induction") -> Float[Tensor, "layer head"]:
        """Its standard deviation over the draws; NaN with one draw."""
        values: Tensor = getattr(self, score)
        return values.std(dim=0) if len(values) > 1 else torch.full_like(values[0], torch.nan)

    @public
    def ranking(self, score: Score = "induction") -> HeadRanking:
        """The heads by their mean score, the highest first.

        Raises:
            InputError: layers of different numbers of heads.
        """
        return HeadRanking(self.mean(score), self.layers, f"{SCORES[score]}, {self.source}", lower_is_better=False)

    @public
    def top(self, score: Score = "induction", n: Natural = 5) -> list[tuple[int, int, float]]:
        """(layer, head, mean score) of the best heads, the highest first; of equals, the first."""
        values = self.mean(score)
        order = values.flatten().nan_to_num(-1.0).argsort(descending=True, stable=True).tolist()
        places = [divmod(place, values.shape[1]) for place in order[:n]]
        return [(self.layers[row], head, float(values[row, head])) for row, head in places if values[row, head] >= 0]

    def summary(self) -> str:
        """The best head of each score."""
        best = [(name, *self.top(name, 1)[0]) for name in SCORES]
        said = ", ".join(f"{name} L{layer} {PREFIX[self.of]}{head} {value:.2f}" for name, layer, head, value in best)
        return f"best heads: {said}; {many(len(self.layers), 'layer')}; {cut(self.source, 60)}"

    def table(self) -> Table:
        """A row a head."""
        values = {name: self.mean(name) for name in SCORES} | {f"{name} ±": self.spread(name) for name in SCORES}
        meanings = {**SCORES, "induction ±": "standard deviation over draws of prompts"}
        return Table.of(values, {"layer": self.layers, "head": None}, meanings)

    def view(self) -> tuple[Grid, ...]:
        """Each score as a grid of layers and heads."""
        return tuple(self._grid(name) for name in SCORES)

    def plot(self, score: Score = "induction") -> Plot:
        """One of the scores by layer and head."""
        from hybridlens.viz.drawing import grid_plot

        return grid_plot(self._grid(score))

    def _grid(self, score: str) -> Grid:
        values = self.mean(score)
        rows, columns = [f"L{layer}" for layer in self.layers], head_names(self.of, values.shape[1])
        return Grid(values, rows, columns, "layers", "heads", f"{score}: {SCORES[score]}", limit=1.0)


@public
def head_scores(
    lens: HybridLens,
    tokens: TokensLike | None = None,
    *,
    of: HeadsOf = "attention",
    measure: Measure = "mean",
    period: Positive = 50,
    rows: Positive = 4,
    draws: Positive = 3,
    seed: Seed = 0,
    exclude_bos: bool = True,
    exclude_current: bool = False,
) -> HeadScores:
    """Previous-token, duplicate-token and induction scores of every head on repeated random tokens.

    Args:
        lens: the model.
        tokens: prompts of one length to score on instead, as one draw.
        of: "attention" heads, or "recurrent" heads by their hidden attention.
        measure: "mean" over the queries that have such keys, or "share" of all attention (see the module).
        period: different tokens in a prompt, each twice.
        rows: prompts of a draw, run at once.
        draws: how many draws; the spread over them says how sure the scores are.
        seed: of the first draw.
        exclude_bos: leave attention to the BOS out, where prompts begin with it.
        exclude_current: leave attention to the query's own token out.

    Raises:
        InputError: a model without such heads, a vocabulary or context too small for `period`, tokens in which no token
            occurs twice, or prompts of unequal length.
        UnknownNameError: there is no such measure, or kind of heads.
    """
    layers = layers_of(lens, of, "scoring heads")
    bos = getattr(lens.tokenizer, "bos_token_id", None)
    given = [of_one_length(lens, tokens)] if tokens is not None else [
        repeated_tokens(lens, rows, period, seed + draw) for draw in range(draws)
    ]  # fmt: skip
    found: list[Tensor] = []
    for prompts in given:
        rests = exclude_bos and bos is not None and bool((prompts[:, 0] == bos).all())
        keys = looked_for(prompts, rests)

        def measured(
            shares: Shares, keys: Mapping[str, Wanted] = keys, rests: bool = rests
        ) -> Float[Tensor, "head score"]:
            shares = without(shares, rests, exclude_current)
            return torch.stack(
                [measured_of(shares, wanted.to(shares.device), measure) for wanted in keys.values()], dim=-1
            )

        found.append(attended(lens, prompts, of, layers, measured))
    kind = "given prompts" if tokens is not None else f"{period} random tokens, twice, {draws} × {many(rows, 'prompt')}"
    words = "mean over queries that have such keys" if measure == "mean" else "share of all attention"
    scores: Any = dict(zip(SCORES, torch.stack(found, dim=1), strict=True))
    return HeadScores(**scores, layers=layers, of=of, source=f"{words}, of {of} heads, on {kind}")
