"""The sections of a study's report, one for each experiment: views as figures and tables.

`SECTIONS` gives for the name of an experiment its section's title and what makes the blocks in it from the cells. Every
number of a figure stands in a table as well.

How it fails: a view whose cells are missing raises `ResultsError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from analyses.study import views
from analyses.study.explorer import BOUNDARY_WORDS, condition_words, differing
from analyses.study.groups import Base
from hybridlens.display import many
from hybridlens.results import Cell, TippingInterval
from hybridlens.viz.blocks import Block, Chart, HeatTable, Table, Words
from hybridlens.viz.charts import ACCURACY, bar_chart, line_chart
from hybridlens.viz.entries import Entry, difference, entry, percent
from hybridlens.viz.words import PHASE_NOTES, PHASE_TITLES

AS_IT_IS = "This model has no attention: there is nothing to silence, and every prompt is answered by it as it is."

MODE_WORDS = {
    "keep": "weights as they are",
    "omit": "the needle's set to 0",
    "only": "all but the needle's set to 0",
    "binary": "the needle's set to their mean, others to 0",
    "null": "all set to 0",
}


def fig2(cells: Sequence[Cell], base: Base) -> list[Block]:
    """Accuracy against heads kept, with the tipping points."""
    view = views.fig2(cells, base)
    if not base.n_heads:
        words = f"The mean score over all lengths and depths. {AS_IT_IS}"
        return [Words(words), Table(("", "accuracy"), _rows([kept(k, 0) for k in view.ks], view.accuracy))]
    curves = view.curves([PHASE_TITLES[phase] for phase in view.phases])
    header = ("heads kept", *(curve.name for curve in curves))
    return [
        Words(
            "The mean score over all lengths and depths when the heads of highest entropy are silenced in every "
            "attention layer. Dotted: prompts with the needle left out, which show what guessing earns."
        ),
        Chart(line_chart(curves, base.n_heads, ACCURACY), "accuracy against heads kept; numbers in the table below"),
        *(
            Words(f"{PHASE_TITLES[phase]} ({PHASE_NOTES[phase]}): {tipping_words(tip, spread)}")
            for phase, tip, spread in zip(view.phases, view.tipping, view.intervals, strict=True)
        ),
        Table(header, _rows(map(kept, view.ks), view.accuracy)[::-1]),
    ]


def kept(k: int, n_heads: int | None = None) -> str:
    """A number of heads kept, as tables name it; the line never breaks in it. Of no heads, none can be."""
    return "as it is" if n_heads == 0 else f"k\u00a0=\u00a0{k}"


def tipping_words(tip: int | None, spread: TippingInterval | None) -> str:
    """Where accuracy falls under half of the full model's, and how sure that is, as a sentence."""
    found = "accuracy never falls under half of that with all heads"
    if tip is not None:
        found = f"accuracy falls under half of that with all heads at k = {tip}, the tipping point"
    if spread is None:
        return f"{found}; some prompt was not run at every k, so how sure that is is not known."
    shares = [
        f"{'none' if k is None else f'k = {k}'} in {percent(share)}"
        for k, share in sorted(spread.shares.items(), key=lambda pair: -pair[1])
        if share >= 0.0005
    ]
    return f"{found}. When the prompts are drawn again at random, it is {', '.join(shares)} of the draws."


def jrt(cells: Sequence[Cell], base: Base) -> list[Block]:
    """Read once beside read twice."""
    view = views.jrt(cells, base)
    names, ks = ("read once", "read twice"), [kept(k, base.n_heads) for k in view.ks]
    if not base.n_heads:
        header = ("", *names, "twice minus once, points")
        words = f"Context and question given once and twice, at equal contexts. {AS_IT_IS}"
        return [Words(words), Table(header, _rows(ks, view.accuracy, view.gain))]
    bars = dict(zip(names, view.accuracy.values(), strict=True))
    header = ("heads kept", *names, "twice minus once, points", "twice minus half of all heads, points")
    return [
        Words(
            "Context and question given once and twice, heads silenced while answering. Retrieval is lost where "
            "the last column lies below 0: accuracy is under half of that with all heads."
        ),
        Chart(
            bar_chart(ks, bars, "attention heads kept in every layer", ACCURACY),
            "accuracy read once and twice; numbers in the table below",
        ),
        Table(header, _rows(ks, view.accuracy, view.gain, view.above_half)),
    ]


def table1(cells: Sequence[Cell], base: Base) -> list[Block]:
    """Manipulations while reading by manipulations while answering."""
    view = views.table1(cells, base)
    against = [
        (f"read {reading}, answer {answering}", difference(view.against_keep.value(i, j)))
        for i, reading in enumerate(view.readings)
        for j, answering in enumerate(view.answerings)
        if (reading, answering) != ("keep", "keep")
    ]
    return [
        Words(
            "Accuracy with all heads, while the attention weights around the needle are changed: down, what is "
            f"done while the prompt is read; across, while the model answers. {_prompts(view.accuracy)}"
        ),
        HeatTable(
            "reading ↓   answering →",
            tuple((name, MODE_WORDS[name]) for name in view.readings),
            tuple((name, MODE_WORDS[name]) for name in view.answerings),
            view.accuracy.values(),
        ),
        Table(
            ("combination", "difference, points"),
            tuple(against),
            "Each combination minus both kept, on the same prompts, with 95 % intervals",
        ),
    ]


def needles(cells: Sequence[Cell], base: Base) -> list[Block]:
    """Needles by heads kept, and their mean."""
    view = views.needles(cells, base)
    values = (*view.accuracy.values(), tuple(view.across.value(j) for j in range(len(view.ks))))
    silenced = ", heads silenced while answering" if base.n_heads else ""
    return [
        Words(
            f"Accuracy for needles of several forms{silenced}, at the places that all were "
            f"run at. The interval of the mean says how another set of needles might come out. "
            f"{_prompts(view.accuracy)}"
        ),
        HeatTable(
            "needle ↓   heads kept →" if base.n_heads else "needle ↓   the model →",
            (*view.needles, ("mean", f"over {many(len(view.needles), 'needle')}")),
            tuple(kept(k, base.n_heads) for k in view.ks),
            values,
        ),
    ]


def scope(cells: Sequence[Cell], base: Base) -> list[Block]:
    """Heads that compete in their layer beside heads that compete in the model."""
    words = (
        "Heads compete for the k places of their layer, or all heads of the model for k times the number of attention "
        "layers, so that equally many are kept. Heads are silenced while answering."
    )
    names = {"layer": "within each layer", "model": "in the whole model"}
    k_title = "attention heads kept, k for each attention layer"
    return _contrast(words, views.scopes(cells, base), names, base, k_title)


def boundary(cells: Sequence[Cell], base: Base) -> list[Block]:
    """One boundary between reading and answering beside the other."""
    words = (
        "Heads are silenced from the last token of the prompt, whose reading gives the first new token, or only "
        "from the first new token, which is then chosen by all heads."
    )
    names = {name: f"from {words}" for name, words in BOUNDARY_WORDS.items()}
    return _contrast(words, views.boundaries(cells, base), names, base)


def semantics(cells: Sequence[Cell], base: Base) -> list[Block]:
    """What changes between clean and published semantics."""
    view = views.semantics_difference(cells, base)
    header = ("condition", "clean", "published", "published minus clean, points")
    names = [condition_words(condition, base.n_heads) for condition in view.conditions]
    rows = _rows(names, view.accuracy, view.difference)
    first = view.parted()
    parts = (
        f"In {many(len(first), 'condition')} of {len(names)} the two are told apart; these stand first, the largest "
        "difference on top."
        if first
        else f"In none of the {len(names)} conditions are the two told apart."
    )
    return [
        Words(
            "The same conditions under clean semantics and as the authors' code ran them, prompts of its builder "
            f"included. Of {many(view.n_cells, 'cell')} run under both, {many(view.n_text, 'has', 'have')} "
            f"another text and {view.n_score:,} another score. {parts}"
        ),
        Table(header, tuple(rows[i] for i in (*first, *(i for i in range(len(rows)) if i not in first)))),
        differing(view.differing) if view.differing else Words("No cell differs."),
    ]


SECTIONS: Mapping[str, tuple[str, Callable[[Sequence[Cell], Base], list[Block]]]] = {
    "fig2": ("Accuracy against heads kept", fig2),
    "fig3-jrt": ("Just read twice", jrt),
    "table1": ("Manipulated attention weights", table1),
    "needles": ("Several needles", needles),
    "scope": ("Where heads compete: in their layer or in the model", scope),
    "boundary": ("Where answering begins", boundary),
    "semantics": ("Clean and published semantics", semantics),
}
"""Name of an experiment -> title and blocks of its section, in the order of the page; maps are in `explorer`."""


def _contrast(
    words: str, view: views.Contrast, names: Mapping[str, str], base: Base, k_title: str | None = None
) -> list[Block]:
    """Two values of one setting."""
    curves = view.curves([names[setting] for setting in view.values])
    tips = [f"{curve.name} {'none' if curve.tips is None else f'k = {curve.tips}'}" for curve in curves]
    header = ("heads kept", *(curve.name for curve in curves), "second minus first, points")
    return [
        Words(words),
        Chart(
            line_chart(curves, base.n_heads, ACCURACY, k_title=k_title),
            f"{SECTIONS[view.setting][0]}; numbers in the table below",
        ),
        Words(f"Tipping point, the largest k with less than half of all heads' accuracy: {'; '.join(tips)}."),
        Table(header, _rows(map(kept, view.ks), view.accuracy, view.difference)[::-1]),
    ]


def _rows(names: Iterable[str], found: views.Accuracies, *changes: views.Differences) -> tuple[tuple[Entry, ...], ...]:
    """A row of a table for each place along the last axis: its name, its accuracies, and its changes."""
    columns = zip(*found.values(), strict=True)
    return tuple(
        (name, *map(entry, line), *(difference(change.value(j)) for change in changes))
        for j, (name, line) in enumerate(zip(names, columns, strict=True))
    )


def _prompts(found: views.Accuracies) -> str:
    """How many prompts each mean is over."""
    counts = found.n[found.n > 0]
    if not counts.numel():
        return ""
    low, high = int(counts.min()), int(torch.max(counts))
    over = many(high, "prompt") if low == high else f"{low} to {many(high, 'prompt')}"
    return f"Each is over {over}; below it, its 95 % interval."
