"""The parts of the crossover's report: what answers follow, layer by layer, every combination, where it is written.

Each stands with what its numbers mean. How it fails: pure; what a model lacks (a window, several key/value heads) has
no picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from analyses.kv_cache.crossover_results import Crossover, Share
from analyses.kv_cache.damage import DamageMap
from analyses.kv_cache.following import INTACT, Following, following, layer_memories, named, whole
from hybridlens.display import every, many
from hybridlens.viz.blocks import Answers, Block, Chart, ChartGrid, HeatTable, Section, Table, Words
from hybridlens.viz.entries import Entry, Value, interval, percent, signed
from hybridlens.viz.heads import heatmap_height, heatmap_width, pair_heatmap
from hybridlens.viz.positions import position_height, position_width

WHERE = {True: "The needle inside the window", False: "The needle outside the window"}
KINDS = {
    "dropped": "keys and values dropped, then the last token read without them",
    "reset": "recurrent layers reset after a position, then read on",
    "replaced": "recurrent layers given what prompt B left there, then read on",
}
"""The maps of one prompt, by kind: what was done, in words."""

_DONE = {
    "dropped": "Keys and values go block by block.",
    "reset": "Recurrent layers lose, at one position, all they held, or are given what prompt B left there, and read "
    "on: what shows is what they had brought that far and nothing else brings.",
}

_ROW = len("recurrent state")
"""Characters of the longest line beside a map of layers."""

_MEASURES: tuple[tuple[str, Callable[[Following], float], dict[str, int]], ...] = (
    ("share of answers that follow it", lambda one: one.memory.mean, {"zmin": 0, "zmax": 1}),
    ("shift towards its needle, nats", lambda one: round(one.shift, 1), {}),
)
"""What maps of layers show: in words, the number, and the ends of its scale where they are fixed."""


def followed(found: Crossover, windowed: bool) -> Section:
    """Which kind of memory the answers follow."""
    text = (
        "Two prompts differ in the needle alone and ask the same question. Of the memories that they leave behind, one "
        "is taken from one prompt and all others from the other, either way round; then the last token is read, and "
        "the model answers. Beside each memory: by how many nats the preference for needle B's words over A's rises "
        "when this memory alone comes from B. The first row exchanges everything, so that it says how often the model "
        "tells the needle at all."
    )
    blocks: list[Block] = [Words(text)]
    columns = ("tells this memory's needle", "tells that of all the others", "tells neither")
    for inside, name in _regions(found, windowed).items():
        shown = [(memory.words, following(found, memory, inside)) for memory in whole(found)]
        rows = [((words, shift_words(one.shift)), one[:3], one.n) for words, one in shown]
        blocks.append(_shares_table(f"{name}: {many(rows[0][2], 'prompt pair')}", columns, rows))
    return Section("memories", "Which memory the answer follows", tuple(blocks))


def layers(found: Crossover, windowed: bool) -> Section:
    """The same, for each layer's memories and each key/value head's."""
    memories = layer_memories(found.mixes)
    every = sorted({one.layer for one in memories})
    kinds = sorted({one.kind for one in memories}, key=_kind_order)
    charts: list[Chart] = []
    blocks: list[Block] = []
    for inside, name in _regions(found, windowed).items():
        shares = {(one.kind, one.layer): following(found, one.memory, inside) for one in memories}
        for what, measure, scale in _MEASURES:
            values = [
                [measure(shares[kind, layer]) if (kind, layer) in shares else math.nan for layer in every]
                for kind in kinds
            ]
            rows = [kind.replace(" and ", " and<br>") for kind in kinds]
            figure = pair_heatmap(values, rows, [f"L{layer}" for layer in every], ("", "layer"), what)
            title = f"{name}: {what}"
            size = heatmap_height(len(kinds)) + 30, heatmap_width(len(every), _ROW)
            charts.append(Chart(figure.update_traces(scale), f"{title}, by memory and layer", title, *size))
        table = tuple((one.memory.words, *_row(shares[one.kind, one.layer])) for one in memories)
        header = ("memory", "tells its needle", "that of all the others", "neither", "shift")
        blocks.append(Table(header, table, f"{name}: every memory of every layer with intervals"))
    text = (
        "One memory of one layer against everything else of the model, either way round. Where one square is dark "
        "this memory alone decides the answer. Several pale ones share it: which of them is followed differs from "
        "prompt to prompt, or each holds a part."
    )
    return Section("layers", "Layer by layer, head by head", (Words(text), ChartGrid(tuple(charts)), *blocks))


def combinations(found: Crossover, windowed: bool) -> Section:
    """Shares of every combination of whole memories."""
    names = [mix.name for mix in found.mixes if mix.group == "whole model"]
    apart = "; “only keys” and “only values” take all else from A" if "only keys B" in names else ""
    text = (
        "Every combination of the whole model's memories, A and B being the prompt that each comes from"
        f"{apart}. “B likelier”: of needle B's words against A's, whatever was answered."
    )
    blocks: list[Block] = [Words(text)]
    for inside, region in _regions(found, windowed).items():
        shown = [(name, found.shares(name, inside)) for name in names]
        rows = [(name, one[:4], one.n) for name, one in shown]
        blocks.append(_shares_table(region, ("tells A", "tells B", "tells neither", "B likelier"), rows))
    answers = tuple(
        (cell.mix, cell.pair, str(cell.length), f"{cell.depth} %", f"{100 * cell.seen:.0f} %", cell.told, cell.text)
        for cell in found.cells
        if cell.mix in names
    )
    header = ("memories", "needles", "length", "depth", "needle seen", "told", "answer")
    blocks.append(Answers(every(len(answers), "answer"), header, answers, (6,)))
    return Section("combinations", "Every combination", tuple(blocks))


def written(maps: Mapping[str, DamageMap], windowed: bool) -> Section:
    """Damage by place, of the prompts inside and outside the window."""
    kinds = [kind for kind in KINDS if any(name.endswith(kind) for name in maps)]
    first = kinds[0]
    text = (
        "One prompt each, read with memory taken away at one place after another; a square is the log-probability of "
        f"needle A's words that is lost, in nats. {' '.join(words for kind, words in _DONE.items() if kind in kinds)} "
        "Labels are positions with the first and the last token."
    )
    if windowed:
        text += " Maps of one kind have one scale, inside the window and outside."
    charts: list[Chart] = []
    intact: list[str] = []
    for where, region in (("inside", f"{WHERE[True]}: "), ("outside", f"{WHERE[False]}: ")):
        for kind in kinds:
            words, found = KINDS[kind], maps.get(f"{where}-{kind}")
            if found is None:
                continue
            alike = [float(one.damage.abs().max()) for name, one in maps.items() if name.endswith(kind)]
            title = f"{region}{words}" if windowed else words[0].upper() + words[1:]
            charts.append(_map(found, title, max(1.0, *alike)))
            if kind == first:
                intact.append(f"{region if windowed else ''}{_intact(found)}")
    note = Words("With nothing taken away: " + " ".join(intact), note=True)
    return Section("written", "Where it is written", (Words(text), note, *charts))


def _regions(found: Crossover, windowed: bool) -> dict[bool, str]:
    """What the prompts of each region are called."""
    return {inside: WHERE[inside] if windowed else "All prompts" for inside in found.regions}


def _shares_table(
    corner: str, columns: tuple[str, ...], rows: Sequence[tuple[Entry, Sequence[Share], int]]
) -> HeatTable:
    """Rows of shares, each with its name and its number of prompts."""
    values = tuple(tuple(_value(share, n) for share in shares) for _, shares, n in rows)
    return HeatTable(corner, tuple(name for name, *_ in rows), columns, values)


def shift_words(shift: float) -> str:
    """A shift in nats with its sign; "0.0" for what is next to nothing."""
    return f"{signed(shift) if abs(shift) >= 0.05 else '0.0'} nats"


def partly(found: Crossover) -> int:
    """Prompt pairs of whose needle the last token sees a part."""
    return sum(0 < cell.seen < 1 for cell in found.answers(named(found, INTACT)))


def _map(found: DamageMap, title: str, limit: float) -> Chart:
    words = f"{title}: log-probability lost, by layers and positions"
    size = position_height(len(found.groups)), position_width(len(found.places))
    return Chart(found.plot(limit), words, title, *size)


def _intact(found: DamageMap) -> str:
    values = float(found.intact.logprob_a), float(found.intact.logprob_b)
    a, b = (f"{value:z.1f}".replace("-", "−") for value in values)
    start, stop = found.spans[-1]
    return (
        f"a prompt of {many(len(found.tokens), 'token')}, needle “{found.pair}” at {start}–{stop - 1}; log-probability "
        f"of A's words {a}, of B's {b}."
    )


def _row(one: Following) -> tuple[tuple[str, str] | str, ...]:
    entries = [(percent(share.mean), interval(_value(share, one.n))) for share in one[:3]]
    return (*entries, shift_words(one.shift))


def _value(share: Share, n: int) -> Value:
    return Value(share.mean, share.interval.low, share.interval.high, n)


def _kind_order(kind: str) -> tuple[int, str]:
    later = ("convolution and recurrent state", "convolution", "recurrent state")
    return (1 + later.index(kind) if kind in later else 0, kind)
