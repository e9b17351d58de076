"""`report.html` of a comparison of rankings: what it says in sentences, then curves, areas, agreement and the rest.

Every number of a figure stands in a table as well. How it fails: pure; what was not measured has a dash, and a part
of which nothing was measured is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from analyses.experiment.text import columns
from analyses.heads.ranking import HeadRanking
from analyses.study.rankings.curves import Value as Measured
from analyses.study.rankings.results import BANDS, RankingComparison, is_draw
from analyses.study.rankings.words import rule, sentences
from hybridlens.display import many
from hybridlens.viz.article import Article
from hybridlens.viz.blocks import Block, Chart, ChartGrid, Section, Table, Words
from hybridlens.viz.charts import Curve, band_chart
from hybridlens.viz.entries import Entry, Value, entry, percent
from hybridlens.viz.heads import correlation_matrix, head_heatmap, heatmap_height, heatmap_width
from hybridlens.viz.layout import COLORS
from hybridlens.viz.words import DASH, INTERVALS


def article_of(
    comparison: RankingComparison, rankings: Mapping[str, HeadRanking], record: Mapping[str, Any]
) -> Article:
    """The page's contents.

    Args:
        comparison: what to show.
        rankings: what was compared, by name; random draws among them are not drawn.
        record: the run's `run.json`.
    """
    given = {name: ranking for name, ranking in rankings.items() if not is_draw(name)}
    made = [
        _curves(comparison), _areas(comparison), _standing(comparison), _each(comparison), _agreement(comparison),
        _ability(comparison),
    ]  # fmt: skip
    said = sentences(comparison)
    notes = tuple(line for line in said if line == rule(comparison.decision) or line in comparison.notes)
    when = "while reading and answering" if comparison.phase == "both" else "while answering only"
    return Article(
        subject="rankings of heads",
        over="Which heads keep retrieval? Rankings of attention heads side by side",
        origin=(
            f"{many(len(comparison.names), 'ranking')}, {many(comparison.scores.shape[1], 'prompt')}",
            f"other heads silent {when}",
            f"seed {record.get('seed')}",
        ),
        finding=tuple(line for line in said if line not in notes),
        notes=(*notes, INTERVALS),
        sections=tuple(section for section in (*made, _orders(comparison, given)) if section is not None),
    )


def rankings_table(found: RankingComparison) -> str:
    """Each ranking's area under accuracy against heads kept, and the fewest heads that keep half of it."""
    rows = [["ranking", "area (95 % interval)", "fewest heads", "accuracy at a quarter, half of the heads"]]
    most = found.counts[-1]
    at = [min(range(len(found.counts)), key=lambda i, n=n: abs(found.counts[i] - n)) for n in (most / 4, most / 2)]
    for row, name in enumerate(found.names):
        area, needed = found.area[row], found.heads_needed[row]
        shares = [float(found.accuracy[row, i]) for i in at]
        texts = [DASH if math.isnan(share) else f"{100 * share:.0f} %" for share in shares]
        rows.append(
            [
                name,
                f"{area.value:.2f} ({area.low:.2f} to {area.high:.2f})",
                DASH if found.full == 0 else str(needed.heads),
                ", ".join(texts),
            ]
        )
    return f"{found.model}: rankings of {many(most, 'head')}\n{columns(rows, left=1)}"


def _curves(comparison: RankingComparison) -> Section:
    """The curves of the best, the reference and chance; all numbers folded away."""
    names = comparison.shown()
    others = len(comparison.names) - len(names)
    words = (
        "The mean score over all prompts when only the best heads of a ranking are left; largest area under the curve "
        "first. The mean of random draws is the level to beat."
    )
    own = "ranking with a smaller area has a chart", "rankings with smaller areas have charts"
    more = f" {many(others, *own)} of {'its' if others == 1 else 'their'} own below." if others else ""
    curves = {name: comparison.curve(name) for name in comparison.by_area()}
    seen = "accuracy against heads kept, by ranking; numbers in the table below"
    chart = _chart(comparison, [curves[name] for name in names], BANDS, seen, height=480)
    table = _by_count(comparison, curves, entry, "Every ranking at every number of heads")
    return Section("curves", "Accuracy against heads kept", (Words(words + more), chart, table))


def _areas(comparison: RankingComparison) -> Section:
    """Areas, heads needed, and differences to the reference."""
    rows: list[tuple[Entry, ...]] = []
    for name in comparison.by_area():
        row = comparison.place(name)
        needed, reference = comparison.heads_needed[row], comparison.reference
        against = DASH if name == reference else _measured(comparison.above_reference[row], "+.3f")
        heads: Entry = DASH if comparison.full == 0 else (str(needed.heads), f"{needed.low} to {needed.high}")
        rows.append((name, _measured(comparison.area[row], ".3f"), heads, against))
    alone = all(name == comparison.reference for name in comparison.names)
    header = ("ranking", "area", "heads needed", *(() if alone else (f"area less that of {comparison.reference}",)))
    rows = [row[: len(header)] for row in rows]
    words = (
        "Area: under accuracy as a share of the whole width, 1 where nothing is lost with no head. Heads needed: the "
        "fewest from which on accuracy stays at or above half of the untouched model's; the next count down is the "
        "tipping point. Below each number its 95 % interval over prompts; a difference whose interval holds 0 is not "
        "told apart from none. Differences are over the same prompts, at the numbers of heads that both were run at."
    )
    sources = tuple((name, comparison.sources[comparison.place(name)]) for name in comparison.by_area())
    what = Table(("ranking", "what it is"), sources, "What each ranking is")
    blocks: list[Block] = [Words(words), Table(header, tuple(rows)), what]
    if comparison.draws:
        found = comparison.draw_area
        low, high, mean = (f"{float(value):.3f}" for value in (found.min(), found.max(), found.mean()))
        blocks.append(Words(f"{many(len(comparison.draws), 'random order')}: areas from {low} to {high}, mean {mean}."))
    return Section("areas", "Areas and heads needed", tuple(blocks))


def _standing(comparison: RankingComparison) -> Section | None:
    """What the rule says of each ranking; nothing where there is one."""
    decision = comparison.decision
    if len(decision.names) < 2:
        return None
    rows = tuple(
        (name, _measured(decision.shortfall(name), "+.3f"), decision.standing(name))
        for name in comparison.by_area()
        if name in decision.names
    )
    words = (
        "By how much a ranking falls short of the best of the others, in area over the same prompts; below 0 it is "
        "ahead. These intervals are wider than those above: in 95 % of studies all of them, at all looks, hold at once."
    )
    table = Table(("ranking", "short of the best of the others", "standing"), rows)
    return Section("standing", "Which is told apart", (Words(words), table))


def _each(comparison: RankingComparison) -> Section | None:
    """A chart of each ranking with the reference and chance; nothing where the first chart had room for all."""
    if len(comparison.names) <= len(COLORS):
        return None
    fixed = comparison.fixed
    beside = [comparison.curve(name) for name in fixed]
    charts = tuple(
        _chart(comparison, [comparison.curve(name), *beside], "accuracy", f"accuracy against heads kept: {name}", name)
        for name in comparison.by_area()
        if name not in fixed
    )
    words = f"Each ranking beside {' and '.join(fixed)}, with 95 % intervals over prompts; largest area first."
    return Section("each", "Ranking by ranking", (Words(words), ChartGrid(charts)))


def _agreement(comparison: RankingComparison) -> Section | None:
    """Rank correlations between the static rankings; nothing where there is one."""
    names = comparison.ranked
    if len(names) < 2:
        return None
    height, width = 150 + 26 * len(names), 130 + 34 * len(names)
    charts = tuple(
        Chart(correlation_matrix(values.tolist(), names), f"{title} between every two rankings, -1 to 1", title, height,
              width)
        for title, values in (("Spearman's ρ", comparison.spearman), ("Kendall's τ-b", comparison.kendall))
    )  # fmt: skip
    words = (
        "How far two rankings put the heads in the same order: 1 for the same, −1 for the reverse. Heads are no sample "
        "of anything, so there is no interval; rankings that agree need not keep the same, nor others lose the same."
    )
    blocks = (ChartGrid(charts),) if len(names) <= 8 else charts
    return Section("agreement", "Do the rankings agree?", (Words(words), *blocks))


def _ability(comparison: RankingComparison) -> Section | None:
    """What is left of the rest: loss on held-out filler, and the local tasks."""
    found = comparison.ability
    blocks: list[Block] = []
    loss = {name: _losses(comparison, name) for name in comparison.by_area()}
    loss = {name: curve for name, curve in loss.items() if any(value.known for value in curve.points.values())}
    if loss:
        drawn = [loss[name] for name in comparison.shown() if name in loss]
        seen = "held-out loss against heads kept, by ranking"
        blocks += [
            Words(
                "The mean cross-entropy of the next token over held-out filler text, which holds no needle: lower is "
                f"better. {_untouched(comparison)}"
                "A model that needs no attention to foretell filler shows no loss here."
            ),
            _chart(comparison, drawn, "held-out loss, nats a token", seen, height=None, percent=False),
            _by_count(
                comparison, loss, lambda value: f"{value.mean:.3f}" if value.known else DASH,
                "Loss of every ranking at every number of heads",
            ),
        ]  # fmt: skip
    for task, values in found.tasks.items():
        scored = [name for name in comparison.by_area() if not bool(values[comparison.place(name)].isnan().all())]
        lines = [(name, *(percent(float(v)) for v in values[comparison.place(name)])) for name in scored]
        if lines:
            whole = _with_all(values)
            base = f"; the untouched model has {percent(whole)}" if whole == whole else ""
            blocks.append(Words(f"Accuracy on {task}, by the number of heads kept{base}."))
            blocks.append(Table(("ranking", *(many(n, "head") for n in found.task_counts)), tuple(lines)))
    return Section("ability", "What else is lost", tuple(blocks)) if blocks else None


def _untouched(comparison: RankingComparison) -> str:
    """The loss with all heads, which every ranking ends at, as a sentence."""
    full = _with_all(comparison.ability.loss)
    return f"The untouched model has {full:.3f} nats a token. " if full == full else ""


def _with_all(values: Float[Tensor, "ranking count"]) -> float:
    """The untouched model's, at which every ranking that was measured ends; NaN where none was."""
    known = values[:, -1][~values[:, -1].isnan()]
    return float(known[0]) if len(known) else math.nan


def _orders(comparison: RankingComparison, rankings: Mapping[str, HeadRanking]) -> Section | None:
    """Each ranking's order as a map of heads."""
    charts: list[Chart] = []
    for name in [name for name in comparison.by_area() if name in rankings]:
        ranking = rankings[name]
        contests = ranking.contests(comparison.scope)
        place = {head: i for heads in contests for i, head in enumerate(heads, start=1)}
        across = range(ranking.scores.shape[1])
        places = [[place[layer, head] for head in across] for layer in ranking.layers]
        figure = head_heatmap(places, ranking.layers, "place", 1, len(contests[0]), best_first=True)
        words = f"the place of every head in the order of {name}; layers down, heads across"
        charts.append(Chart(figure, words, name, heatmap_height(len(places)), heatmap_width(len(across))))
    if not charts:
        return None
    where = "of the model" if comparison.scope == "model" else "of its layer"
    words = f"The place of every head among those {where}: 1 is kept longest. Equal scores go by layer, then head."
    return Section("orders", "The orders", (Words(words), ChartGrid(tuple(charts))))


def _losses(comparison: RankingComparison, name: str) -> Curve:
    losses = comparison.ability.loss[comparison.place(name)].tolist()
    pairs = zip(comparison.counts, losses, strict=True)
    return Curve(name, {count: Value(loss, math.nan, math.nan, 0) for count, loss in pairs})


def _chart(
    comparison: RankingComparison,
    drawn: Sequence[Curve],
    axis: str,
    seen: str,
    title: str = "",
    height: int | None = 320,
    percent: bool = True,
) -> Chart:
    """Curves against the heads kept, as wide as the names of the counts need."""
    kept = "attention heads kept" + (", of the model" if comparison.scope == "model" else " in every layer")
    figure = band_chart(drawn, comparison.counts[-1], axis, kept, percent=percent)
    return Chart(figure, seen, title, height, min(110 + 22 * len(comparison.counts), 500))


def _by_count(
    comparison: RankingComparison, curves: Mapping[str, Curve], form: Callable[[Value], Entry], summary: str
) -> Table:
    """Every number of curves, a line for each count and a column for each curve."""
    rows = [(str(n), *(form(curve.points[n]) for curve in curves.values())) for n in reversed(comparison.counts)]
    return Table(("heads kept", *curves), tuple(rows), summary)


def _measured(value: Measured, form: str) -> Entry:
    mean, low, high = (f"{x:{form}}".replace("-", "−") for x in value)
    return (mean, f"{low} to {high}".replace(" ", "\u00a0"))
