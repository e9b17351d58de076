"""The sections of the circuits' report: scores, eigenvalues, distances, linearisation, patterns.

Every picture stands with what its numbers mean. How it fails: pure; a part that the model's family lacks (anything by
distance, without rotary embedding) says so in place of its picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jaxtyping import Float
from torch import Tensor

from analyses.circuits.labels import MEANING, number, titled, writer_of
from analyses.circuits.results import METRICS, SCALES, Head, HeadCircuits, name_of
from analyses.heads.needle_heads import Look, figure_of
from analyses.heads.ranking import HeadRanking
from hybridlens.display import every, many
from hybridlens.viz.blocks import Chart, ChartGrid, Patterns, Section, Table, Words
from hybridlens.viz.circuits import distance_curves, eigenvalue_plane
from hybridlens.viz.entries import Entry
from hybridlens.viz.heads import head_heatmap, heatmap_height, heatmap_width, short

TOP = 6
"""Heads in a figure that shows a few."""

DECADES = 4
"""Powers of ten of eigenvalues that are told apart."""


def top_heads(circuits: HeadCircuits) -> Section:
    """The best heads of each metric, and every head."""
    rows: list[tuple[Entry, ...]] = []
    for metric in circuits.metrics:
        ranking = circuits.ranking(metric)
        named = dict.fromkeys(ranking.order[:4], "–") | {head: name_of(head) for head in ranking.leading(4)}
        best = [(name, number(ranking.score(*head))) for head, name in named.items()]
        rows.append(((titled(metric), METRICS[metric].words), *best, number(float(ranking.scores.median()))))
    places = ("1st", "2nd", "3rd", "4th")[: len(rows[0]) - 2]
    or_tap = " or a tap of a recurrent layer's convolution" if circuits.ssm_layers else ""
    words = (
        f"The heads that score highest, by each metric, and the median of all {circuits.copying.numel()}. Shares are "
        f"among {many(circuits.sample, 'sampled token')}; among fewer they would be higher. All scores are of direct "
        "paths: from the embedding through one head, or through one writer and one head. λ are the eigenvalues of the "
        "product of weights named beside them; a lag-1 writer is what passes the token before on, an earlier head"
        f"{or_tap}."
    )
    through = {head: writer_of(circuits, head) for head in circuits.heads}
    scores = _table(circuits, "inducts through", through, every(len(through), "head"))
    top = Table(("metric", *places, "median"), tuple(rows))
    return Section("heads", "Heads by metric", (Words(words), top, scores))


def scores(circuits: HeadCircuits) -> Section:
    """A heatmap of each metric."""
    charts: list[Chart] = []
    for metric in circuits.metrics:
        ends = SCALES.get(metric, (0, 1))
        charts.append(_head_map(circuits, circuits.score(metric), titled(metric), *ends))
        if metric == "matching" and circuits.matching_free is not None:
            title = "matching, dimensions that no distance turns"
            charts.append(_head_map(circuits, circuits.matching_free, title, -1, 1))
    rows = tuple((titled(metric), (METRICS[metric].words, MEANING[metric])) for metric in circuits.metrics)
    meanings = Table(("metric", "what it is, and what a value means"), rows)
    return Section("scores", "Every head, by every metric", (ChartGrid(tuple(charts)), meanings))


def eigenvalues(circuits: HeadCircuits) -> Section:
    """Eigenvalues of the heads at both ends of copying and of matching."""
    at = circuits.distances[0]
    away = f", query and key {at} apart" if circuits.matching_rotary is not None else ""
    found = (
        ("copying", circuits.ov_eigenvalues, "OV: from a token seen to the logits"),
        ("matching", circuits.qk_eigenvalues, f"QK: from a token to its own key{away}"),
    )
    charts: list[Chart] = []
    for metric, values, title in found:
        ranking = circuits.ranking(metric)
        order, top = ranking.order, TOP - 2  # the others are those that score lowest
        groups = {
            f"{name_of(head)} ({short(ranking.score(*head))})": list(map(complex, circuits.at(values, head).tolist()))
            for head in order[:top] + order[top:][-2:]
        }
        words = f"eigenvalues of the heads with the most and the least {metric}, in the complex plane"
        charts.append(Chart(eigenvalue_plane(groups, decades=DECADES), words, title, 470))
    words = (
        "The eigenvalues of W_E W_V W_O W_U and of W_E W_Q W_Kᵀ W_Eᵀ, matrices over the vocabulary without what all "
        "tokens have in common, for the heads that copy or match most and least; in brackets the score, Σλ ÷ Σ|λ| (for "
        "matching its mean over distances). To the right of the centre a head raises what it sees, or looks for its "
        "equal; to the left it does the opposite; up and down it turns one token into another. The distance from the "
        "centre is the logarithm of |λ|: each circle is ten times the one inside, and what is smaller than the "
        "innermost by ten or more lies in the centre. Only directions and relative sizes mean something, since sums "
        "over the vocabulary have no unit."
    )
    return Section("eigenvalues", "Eigenvalues", (Words(words), ChartGrid(tuple(charts))))


def distances(circuits: HeadCircuits) -> Section:
    """Matching by distance, and what heads prefer by distance alone."""
    title = "Distance"
    if circuits.matching_rotary is None:
        words = (
            "This model has no position embedding in its attention: matching is the same at every distance, and no "
            "head prefers one by its weights alone. What heads know of places other layers have written."
        )
        return Section("distance", title, (Words(words),))
    best = circuits.ranking("matching").order[:TOP]
    shown = {"all dimensions of the head": circuits.matching}
    if circuits.matching_free is not None:
        shown["only those that rotary embedding turns"] = circuits.matching_rotary
    charts: list[Chart] = []
    for part, found in shown.items():
        curves = _curves(circuits, found, best)
        figure = distance_curves(curves, circuits.distances, "matching, Σλ ÷ Σ|λ|", y_range=(-1.05, 1.05))
        charts.append(Chart(figure, f"matching against distance, {part}", part))
    matching = (
        "Σλ ÷ Σ|λ| of the QK circuit of the heads that match most, with queries turned as far as each distance turns "
        "them. Where it falls, the head looks for its equal among near tokens only."
    )
    if circuits.matching_free is not None:
        matching = (
            f"First: {matching} Then the dimensions that turn, alone; the others are the same at every distance and "
            "have a map of their own above."
        )
    back = circuits.profile.shape[-1]
    prefers = (
        f"What is left when query and keys have the mean content: attention to each of the last {back} tokens by "
        "distance alone, for the heads with the most weight on the token before, and for those with the most on the "
        "farthest tenth. A head without preference follows the dotted line. A preference that depends on the token "
        "does not show here."
    )
    return Section("distance", title, (Words(matching), ChartGrid(tuple(charts)), Words(prefers), _profiles(circuits)))


def linearisation(circuits: HeadCircuits) -> Section:
    """What recurrent layers are taken for, and how far that is off."""
    lags = circuits.lag_share.shape[1]
    off = circuits.path_error
    errors = ["not measured"] * len(circuits.ssm_layers) if off is None else map(number, off.tolist())
    rows = tuple(
        (f"L{layer}", *(f"{100 * share:.1f}\u00a0%" for share in shares), error)
        for layer, shares, error in zip(circuits.ssm_layers, circuits.lag_share.tolist(), errors, strict=True)
    )
    words = (
        "A recurrent layer becomes linear when its gates, and what follows its convolution, are held fixed: here "
        f"{circuits.linearised}. What its state carries over from earlier tokens is left out, so that a token reaches "
        "the output only through the convolution, a few tokens ahead. The shares are of the squared norm of that path, "
        "by the lag of the convolution's tap; lag 1 is the token before."
    )
    error = (
        "The error is ‖output − linear path‖ ÷ ‖output‖ over real tokens, both about their means: 0 is exact, and 1 no "
        "better than a constant."
        if off is not None
        else "The error on real activations was not measured: that takes a run of the model."
    )
    header = ("layer", *(f"lag {lag}" for lag in range(lags)), "error")
    title = "Recurrent layers taken for linear"
    return Section("linearisation", title, (Words(words), Words(error), Table(header, rows)))


def patterns(circuits: HeadCircuits, seen: Look) -> Section:
    """What the heads of most retrieval strength look at in one needle prompt, beside their scores."""
    best = circuits.ranking("retrieval").leading(TOP)
    title = "The heads of most retrieval strength"
    if not best:  # all have the same
        best, title = seen.ranking.order[:TOP], "The heads that attend to the needle most"
    labels = {head: f"{name_of(head)}: {short(float(circuits.at(circuits.retrieval, head)))}" for head in best}
    beside = "its retrieval strength, from weights alone"
    drawn = figure_of(seen, labels, title, beside)
    masses = {head: f"{100 * seen.ranking.score(*head):.0f}\u00a0%" for head in best}
    table = _table(circuits, "attention to the needle", masses)
    words = (
        "One prompt with a needle, read and answered with all heads. Each row is the token that looks, each column the "
        "token looked at. In the table, what weights say stands beside what these heads did: the attention to the "
        "needle from the queries that choose the answer. One prompt is an example, not a measurement."
    )
    return Section("patterns", "What the top heads look at", (Words(words), table, Patterns((drawn,))))


def _table(circuits: HeadCircuits, last: str, of: Mapping[Head, str], summary: str = "") -> Table:
    """The scores of some heads by each metric, and something else of them."""
    scores = {metric: circuits.score(metric) for metric in circuits.metrics}
    rows = tuple(
        (name_of(head), *(number(float(circuits.at(score, head))) for score in scores.values()), words)
        for head, words in of.items()
    )
    return Table(("head", *map(titled, scores), last), rows, summary)


def _head_map(
    circuits: HeadCircuits, found: Float[Tensor, "attn_layer head"], title: str, low: int, high: int | None
) -> Chart:
    figure = head_heatmap(found.tolist(), circuits.layers, title, low, high)
    words = f"{title} of every head, layers down, heads across; numbers in the table above"
    return Chart(figure, words, title, heatmap_height(len(circuits.layers)), heatmap_width(circuits.n_heads))


def _curves(
    circuits: HeadCircuits, found: Float[Tensor, "attn_layer head distance"], heads: Iterable[Head]
) -> dict[str, list[float]]:
    return {name_of(head): circuits.at(found, head).tolist() for head in heads}


def _profiles(circuits: HeadCircuits) -> Chart:
    """Weight by distance alone of the heads that prefer the token before, and of those that look farthest."""
    back = circuits.profile.shape[-1]
    far = circuits.profile[..., -max(1, back // 10) :].sum(-1)
    farthest = HeadRanking(far, circuits.layers, "weight on the farthest tenth", lower_is_better=False).order
    heads = dict.fromkeys([*circuits.ranking("previous").order[: TOP - 2], *farthest[:2]])
    curves, even = _curves(circuits, circuits.profile, heads), (1 / back, "even spread")
    figure = distance_curves(curves, range(back), "attention by distance alone", even)
    return Chart(figure, "attention by distance alone, of the heads that prefer near and far tokens most")
