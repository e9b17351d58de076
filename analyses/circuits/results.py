"""`HeadCircuits`: what a model's weights say of each attention head, and the rankings that follow.

Every score is a tensor [attention layer, head]. A `Metric` says in words what it is, so that a ranking made from it
says so too.

How it fails: a metric that does not exist raises `UnknownNameError`; one that the family's weights cannot give (a
preferred distance without rotary embedding) `InputError`; so does a file that holds something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from jaxtyping import Complex, Float, Int, Shaped
from torch import Tensor

from analyses.circuits.composition import Composition
from analyses.circuits.strength import LEVELS, RETRIEVAL
from analyses.experiment.artefacts import Stored
from analyses.heads.ranking import HeadRanking
from hybridlens.display import Grid, Piece, Table, Words, listed, many
from hybridlens.errors import InputError, UnknownNameError, closest
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

Head: TypeAlias = tuple[int, int]
"""(layer, head)."""


def name_of(head: Head) -> str:
    """(layer, head) as results write it."""
    return f"L{head[0]} H{head[1]}"


class Metric(NamedTuple):
    """A score of heads that can rank them; higher is better."""

    words: str
    """What it is, for the source of a ranking."""
    needs_rotary: bool = False


SCALES: Mapping[str, tuple[int, int | None]] = {
    **dict.fromkeys(("copying", "matching", "induction_match"), (-1, 1)),
    **dict.fromkeys(("induction", "previous"), (0, None)),
}
"""Ends of the scales of metrics, 0 … 1 where none are said; None for the largest value."""

METRICS: Mapping[str, Metric] = {
    "copying": Metric("OV copying, Σλ ÷ Σ|λ| of W_E W_V W_O W_U"),
    "copying_share": Metric("share of tokens whose own logit the head raises most"),
    "matching": Metric("QK matching, Σλ ÷ Σ|λ| of W_E W_Q W_Kᵀ W_Eᵀ, mean over distances"),
    "matching_share": Metric("share of tokens whose own key scores highest"),
    "previous": Metric("weight on the previous token by distance alone", needs_rotary=True),
    "induction": Metric("K-composition with a lag-1 writer × copying"),
    "induction_match": Metric("QK matching through the head's lag-1 writer, Σλ ÷ Σ|λ|"),
    "retrieval": Metric(f"retrieval strength, {RETRIEVAL}"),
}

STRENGTHS = ("induction", "induction_match", "retrieval")
"""Metrics that depend on what composition has to exceed, which the first takes and the others follow in the writer."""


@dataclass(frozen=True, eq=False)
class HeadCircuits(Plotted, Stored):
    """The circuits of a model's attention heads, from its weights.

    Attributes:
        layers: the index in the model of each attention layer.
        ssm_layers: of each recurrent layer that is taken for a writer.
        sample: tokens among which the shares are taken; a smaller sample makes them higher.
        distances: at which matching is taken, ascending; only 0 without rotary embedding.
        copying: Σλ ÷ Σ|λ| of W_E W_V W_O W_U, -1 … 1; here and below keys and unembedding are centred over the
            vocabulary, since softmax does not see what all tokens share.
        copying_share: share of the sampled tokens whose own logit the head raises most.
        ov_eigenvalues: all λ that are not 0 by rank.
        matching: Σλ ÷ Σ|λ| of W_E W_Q W_Kᵀ W_Eᵀ, at each distance.
        matching_rotary: the same of the dimensions that turn; None without rotary embedding.
        matching_free: the same of those that do not; None without rotary embedding.
        matching_share: share of the sampled tokens whose own key scores highest, at the least distance.
        qk_eigenvalues: λ at the least distance.
        profile: attention by distance alone, for a query and a key of mean content; sums to 1.
        composition: of every earlier writer with every head, by kind.
        linearised: how recurrent layers are taken for linear: "at rest" or "at the mean of N tokens".
        path_error: of that, per recurrent layer, relative to the spread of its output; None where not measured.
        lag_share: of each recurrent layer, how its linear path's squared norm is spread over lags; sums to 1.
        induction: the best lag-1 writer's weight × K-composition beyond `level`, × copying, both where above 0.
        induction_writer: that writer's place in `writers`; -1 where no earlier one attends or reaches back by one.
        induction_match: Σλ ÷ Σ|λ| of matching through that writer.
        retrieval: see `analyses.circuits.strength`.
        gate_error: of every head, how far an output gate at rest, and one scale for all tokens of a norm behind
            attention, are off, relative to the spread of what the head writes (`gates`); 0 in layers with neither,
            None where there is neither or where not measured.
        level: what K-composition had to exceed for `induction`, of `analyses.circuits.strength.LEVELS`.
        notes: what is to be known of these numbers beside `linearised`, in sentences: gates, norms, layers left out.
    """

    model: str
    layers: tuple[int, ...]
    ssm_layers: tuple[int, ...]
    sample: int
    distances: tuple[int, ...]
    copying: Float[Tensor, "attn_layer head"]
    copying_share: Float[Tensor, "attn_layer head"]
    ov_eigenvalues: Complex[Tensor, "attn_layer head d_head"]
    matching: Float[Tensor, "attn_layer head distance"]
    matching_rotary: Float[Tensor, "attn_layer head distance"] | None
    matching_free: Float[Tensor, "attn_layer head"] | None
    matching_share: Float[Tensor, "attn_layer head"]
    qk_eigenvalues: Complex[Tensor, "attn_layer head d_key"]
    profile: Float[Tensor, "attn_layer head back"]
    composition: Composition
    linearised: str
    path_error: Float[Tensor, "ssm_layer"] | None
    lag_share: Float[Tensor, "ssm_layer lag"]
    induction: Float[Tensor, "attn_layer head"]
    induction_writer: Int[Tensor, "attn_layer head"]
    induction_match: Float[Tensor, "attn_layer head"]
    retrieval: Float[Tensor, "attn_layer head"]
    gate_error: Float[Tensor, "attn_layer head"] | None = None
    level: str = "random"
    notes: tuple[str, ...] = ()

    @property
    def n_heads(self) -> int:
        """Of each attention layer."""
        return self.copying.shape[1]

    @property
    def heads(self) -> tuple[Head, ...]:
        """All of them, in order."""
        return tuple((layer, head) for layer in self.layers for head in range(self.n_heads))

    def at(self, values: Shaped[Tensor, "attn_layer head *rest"], head: Head) -> Shaped[Tensor, "*rest"]:
        """What one head has of values for all of them."""
        return values[self.layers.index(head[0]), head[1]]

    @property
    def writers(self) -> tuple[str, ...]:
        """Names of all that could look back by one token: recurrent layers at lag 1, then heads."""
        return (*(f"L{layer} lag 1" for layer in self.ssm_layers), *map(name_of, self.heads))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that this model has."""
        turns = self.matching_rotary is not None
        return tuple(name for name, metric in METRICS.items() if turns or not metric.needs_rotary)

    def score(self, metric: str) -> Float[Tensor, "attn_layer head"]:
        """One number a head.

        Raises:
            UnknownNameError: there is no such metric.
            InputError: the model's family lacks it.
        """
        if metric not in METRICS:
            raise UnknownNameError(
                f"metric {metric!r} does not exist{closest(metric, METRICS)}; expected one of {', '.join(METRICS)}"
            )
        if metric not in self.metrics:
            raise InputError(
                f"metric {metric!r} needs rotary embedding, and {self.model} has none: its heads prefer no distance; "
                f"expected one of {', '.join(self.metrics)}"
            )
        if metric == "matching":
            return self.matching.mean(dim=-1)
        if metric == "previous":
            return self.profile[..., 1]
        return getattr(self, metric)

    def ranking(self, metric: str) -> HeadRanking:
        """The heads in order of a metric, best first; errors as those of `score`."""
        scores, words = self.score(metric), METRICS[metric].words
        beyond = f", composition beyond {LEVELS[self.level]}" if metric in STRENGTHS and self.level != "random" else ""
        return HeadRanking(scores, self.layers, f"{words}{beyond} (from weights)", lower_is_better=False)

    def summary(self) -> str:
        """Whose heads these are, how recurrent layers were taken, and which head retrieves most."""
        best = ", ".join(map(name_of, self.ranking("retrieval").leading(1))) or "of no head, all are equal"
        heads = f"{many(len(self.heads), 'head')} in layers {listed(self.layers, 8)}"
        return f"{self.model}, {heads}; recurrent layers {self.linearised}; most retrieval strength {best}"

    def table(self) -> Table:
        """A row a head, a column a metric, and the writer through which the head inducts."""
        writers = self.writers
        through = [["–" if w < 0 else writers[w] for w in row] for row in self.induction_writer.tolist()]
        values = {metric: self.score(metric) for metric in self.metrics} | {"inducts_through": through}
        meanings = {metric: METRICS[metric].words for metric in self.metrics}
        return Table.of(values, {"layer": self.layers, "head": None}, meanings)

    def view(self) -> tuple[Piece, ...]:
        """Retrieval strength of every head, all metrics of the best, and what is to be known of them."""
        order = [(self.layers.index(layer), head) for layer, head in self.ranking("retrieval").order[:_SHOWN]]
        whole = self.table()
        best = tuple(whole.rows[row * self.n_heads + head] for row, head in order)
        names = [f"L{layer}" for layer in self.layers], [f"H{head}" for head in range(self.n_heads)]
        grid = Grid(self.retrieval, *names, "layers", "heads", METRICS["retrieval"].words, "Retrieval strength")
        left = len(self.heads) - len(best)
        note = f"the other {many(left, 'head')} are in to_pandas()" if left else ""
        table = Table(whole.columns, best, whole.meanings, self.metrics, "Most retrieval strength first", note)
        return (grid, table, *((Words(" ".join(self.notes)),) if self.notes else ()))

    def plot(self, metric: str = "retrieval") -> Plot:
        """One metric of every head, layers down: the figure of the report; errors as those of `score`."""
        from hybridlens.viz.heads import head_heatmap
        from hybridlens.viz.plot import Plot

        low, high = SCALES.get(metric, (0, 1))
        return Plot(head_heatmap(self.score(metric).tolist(), self.layers, metric.replace("_", " "), low, high))


_SHOWN = 8
"""Heads of the table in a notebook."""
