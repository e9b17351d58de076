"""The sections of the rankings' report: curves, areas, each ranking by itself, agreement, the rest, the orders.

Every number of a figure stands in a table as well. How it fails: pure; what was not measured has a dash, and a part
of which nothing was measured is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from analyses.heads.ranking import HeadRanking
from analyses.study.rankings.curves import Value as Measured
from analyses.study.rankings.results import RANDOM, RankingComparison
from hybridlens.viz.blocks import Block, Chart, ChartGrid, Section, Table, Words
from hybridlens.viz.charts import Curve, band_chart
from hybridlens.viz.entries import Entry, Value, entry, percent
from hybridlens.viz.heads import correlation_matrix, head_heatmap, heatmap_height
from hybridlens.viz.layout import COLORS
from hybridlens.viz.words import DASH

ACCURACY = "accuracy, % of the highest score<br>bands: 95 % interval over prompts"
SHORT = "accuracy"


def by_area(comparison: RankingComparison) -> list[str]:
    """The rows, largest area first."""
    return sorted(comparison.names, key=lambda name: -comparison.area[comparison.row(name)].value)


def shown(comparison: RankingComparison) -> list[str]:
    """The rows of a figure that has room for six: the largest areas, the reference and the random level."""
    fixed = [name for name in (comparison.reference, RANDOM) if name in comparison.names]
    free = [name for name in by_area(comparison) if name not in fixed][: len(COLORS) - len(fixed)]
    return sorted([*free, *fixed], key=by_area(comparison).index)


def curves(comparison: RankingComparison) -> Section:
    """The curves of the best, the reference and chance; all numbers folded away."""
    names = shown(comparison)
    drawn = [_curve(comparison, name) for name in names]
    figure = band_chart(drawn, comparison.counts[-1], ACCURACY, _kept(comparison))
    others = len(comparison.names) - len(names)
    words = (
        "The mean score over all prompts when only the best heads of a ranking are left; largest area under the curve "
        "first. The mean of random draws is the level to beat."
    )
    more = f" {others} rankings with smaller areas have charts of their own below." if others else ""
    rows = [
        (str(n), *(entry(_curve(comparison, name).points[n]) for name in by_area(comparison)))
        for n in reversed(comparison.counts)
    ]
    table = Table(("heads kept", *by_area(comparison)), tuple(rows), "Every ranking at every number of heads")
    seen = "accuracy against heads kept, by ranking; numbers in the table below"
    chart = Chart(figure, seen, "", 480, _width(comparison))
    return Section("curves", "Accuracy against heads kept", (Words(words + more), chart, table))


def areas(comparison: RankingComparison) -> Section:
    """Areas, heads needed, and differences to the reference."""
    rows: list[tuple[Entry, ...]] = []
    for name in by_area(comparison):
        row = comparison.row(name)
        needed, reference = comparison.heads_needed[row], comparison.reference
        against = DASH if name == reference else _measured(comparison.above_reference[row], "+.3f")
        heads: Entry = (str(needed.heads), f"{needed.low} to {needed.high}")
        rows.append((name, _measured(comparison.area[row], ".3f"), heads, against))
    header = ("ranking", "area", "heads needed", f"area less that of {comparison.reference}")
    words = (
        "Area: under accuracy as a share of the whole width, 1 where nothing is lost with no head. Heads needed: the "
        "fewest from which on accuracy stays at or above half of the untouched model's; the next count down is the "
        "tipping point. Below each number its 95 % interval over prompts; a difference whose interval holds 0 is not "
        "told apart from none. Differences are over the same prompts, at the numbers of heads that both were run at."
    )
    sources = tuple((name, comparison.sources[comparison.row(name)]) for name in by_area(comparison))
    what = Table(("ranking", "what it is"), sources, "What each ranking is")
    blocks: list[Block] = [Words(words), Table(header, tuple(rows)), what]
    if comparison.draws:
        found = comparison.draw_area
        low, high, mean = (f"{float(value):.3f}" for value in (found.min(), found.max(), found.mean()))
        blocks.append(Words(f"{len(comparison.draws)} random orders: areas from {low} to {high}, mean {mean}."))
    return Section("areas", "Areas and heads needed", tuple(blocks))


def each(comparison: RankingComparison) -> Section | None:
    """A chart of each ranking with the reference and chance; nothing where the first chart had room for all."""
    if len(comparison.names) <= len(COLORS):
        return None
    fixed = [name for name in (comparison.reference, RANDOM) if name in comparison.names]
    charts: list[Chart] = []
    for name in [name for name in by_area(comparison) if name not in fixed]:
        drawn = [_curve(comparison, one) for one in (name, *fixed)]
        figure = band_chart(drawn, comparison.counts[-1], SHORT, _kept(comparison))
        charts.append(Chart(figure, f"accuracy against heads kept: {name}", name, 320, _width(comparison)))
    beside = " and ".join(fixed)
    words = f"Each ranking beside {beside}, with 95 % intervals over prompts; largest area first."
    return Section("each", "Ranking by ranking", (Words(words), ChartGrid(tuple(charts))))


def agreement(comparison: RankingComparison) -> Section:
    """Rank correlations between the static rankings."""
    names = comparison.ranked
    height = 150 + 26 * len(names)
    charts = tuple(
        Chart(
            correlation_matrix(values.tolist(), names),
            f"{title} between every two rankings, -1 to 1",
            title,
            height,
            130 + 34 * len(names),
        )
        for title, values in (("Spearman's ρ", comparison.spearman), ("Kendall's τ-b", comparison.kendall))
    )
    words = (
        "How far two rankings put the heads in the same order: 1 for the same, −1 for the reverse. Heads are no sample "
        "of anything, so there is no interval; rankings that agree need not keep the same, nor others lose the same."
    )
    blocks = (ChartGrid(charts),) if len(names) <= 8 else charts
    return Section("agreement", "Do the rankings agree?", (Words(words), *blocks))


def ability(comparison: RankingComparison) -> Section | None:
    """What is left of the rest: loss on held-out filler, and the local tasks."""
    found = comparison.ability
    blocks: list[Block] = []
    loss = {name: _losses(comparison, name) for name in by_area(comparison)}
    loss = {name: curve for name, curve in loss.items() if any(value.known for value in curve.points.values())}
    if loss:
        drawn = [loss[name] for name in shown(comparison) if name in loss]
        title = "held-out loss, nats a token"
        figure = band_chart(drawn, comparison.counts[-1], title, _kept(comparison), percent=False)
        rows = [
            (str(n), *(f"{curve.points[n].mean:.3f}" if curve.points[n].known else DASH for curve in loss.values()))
            for n in reversed(comparison.counts)
        ]
        blocks += [
            Words(
                "The mean cross-entropy of the next token over held-out filler text, which holds no needle: lower is "
                "better. A model that needs no attention to foretell filler shows no loss here."
            ),
            Chart(figure, "held-out loss against heads kept, by ranking", "", None, _width(comparison)),
            Table(("heads kept", *loss), tuple(rows), "Loss of every ranking at every number of heads"),
        ]
    for task, values in found.tasks.items():
        scored = [name for name in by_area(comparison) if not bool(values[comparison.row(name)].isnan().all())]
        lines = [(name, *(percent(float(v)) for v in values[comparison.row(name)])) for name in scored]
        if lines:
            blocks.append(Words(f"Accuracy on {task}, by the number of heads kept."))
            blocks.append(Table(("ranking", *(_heads(n) for n in found.task_counts)), tuple(lines)))
    return Section("ability", "What else is lost", tuple(blocks)) if blocks else None


def orders(comparison: RankingComparison, rankings: Mapping[str, HeadRanking]) -> Section | None:
    """Each ranking's order as a map of heads."""
    charts: list[Chart] = []
    for name in [name for name in by_area(comparison) if name in rankings]:
        ranking = rankings[name]
        places, most = _places(ranking, comparison.scope)
        figure = head_heatmap(places, ranking.layers, "place", 1, most, best_first=True)
        width = 110 + 26 * len(places[0]) if len(places[0]) > 16 else None
        words = f"the place of every head in the order of {name}; layers down, heads across"
        charts.append(Chart(figure, words, name, heatmap_height(len(places)), width))
    if not charts:
        return None
    where = "of the model" if comparison.scope == "model" else "of its layer"
    words = f"The place of every head among those {where}: 1 is kept longest. Equal scores go by layer, then head."
    return Section("orders", "The orders", (Words(words), ChartGrid(tuple(charts))))


def _curve(comparison: RankingComparison, name: str) -> Curve:
    row, n = comparison.row(name), comparison.scores.shape[1]
    columns = zip(comparison.counts, comparison.accuracy[row], comparison.low[row], comparison.high[row], strict=True)
    return Curve(name, {count: Value(float(mean), float(low), float(high), n) for count, mean, low, high in columns})


def _losses(comparison: RankingComparison, name: str) -> Curve:
    losses = comparison.ability.loss[comparison.row(name)].tolist()
    pairs = zip(comparison.counts, losses, strict=True)
    return Curve(name, {count: Value(loss, math.nan, math.nan, 0) for count, loss in pairs})


def _kept(comparison: RankingComparison) -> str:
    return "attention heads kept" + (", of the model" if comparison.scope == "model" else " in every layer")


def _width(comparison: RankingComparison) -> int:
    """Pixels that a chart needs for the names of its counts."""
    return min(110 + 22 * len(comparison.counts), 500)


def _measured(value: Measured, form: str) -> Entry:
    mean, low, high = (f"{x:{form}}".replace("-", "−") for x in value)
    return (mean, f"{low} to {high}".replace(" ", "\u00a0"))


def _heads(n: int) -> str:
    return "1 head" if n == 1 else f"{n} heads"


def _places(ranking: HeadRanking, scope: str) -> tuple[list[list[int]], int]:
    """The place of each head from 1, [layer][head], and the last."""
    order = ranking.order
    groups = [order] if scope == "model" else [[h for h in order if h[0] == layer] for layer in ranking.layers]
    place = {head: i for group in groups for i, head in enumerate(group, start=1)}
    heads = range(ranking.scores.shape[1])
    return [[place[layer, head] for head in heads] for layer in ranking.layers], max(place.values())
