"""The parts of the crossover's report: what answers follow, layer by layer, every combination, where it is written.

Each stands with what its numbers mean. How it fails: pure; what a model lacks (a window, several key/value heads) has
no picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from analyses.kv_cache.crossover_results import Crossover, Share, is_inside
from analyses.kv_cache.damage import DamageMap
from analyses.kv_cache.following import (
    EVERYTHING,
    KEYS_AND_VALUES,
    WHOLE,
    Following,
    following,
    layer_memories,
    regions,
)
from hybridlens.viz.blocks import Answers, Block, Chart, ChartGrid, HeatTable, Section, Table, Words
from hybridlens.viz.entries import Value, interval, percent
from hybridlens.viz.heads import heatmap_height, pair_heatmap
from hybridlens.viz.positions import position_heatmap, position_height, position_width, visible

WHERE = {True: "The needle inside the window", False: "The needle outside the window"}
ALL_IN = "All prompts"
"""What the first is called for a model without a window."""

MAP_WORDS = {
    "dropped": "keys and values dropped, then the last token read without them",
    "reset": "recurrent layers reset after a position, then read on",
    "replaced": "recurrent layers given what prompt B left there, then read on",
}
"""Kind of map -> what was done."""


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
    for inside in regions(found):
        shown = {memory: following(found, memory, inside) for memory in WHOLE}
        rows = tuple((memory.words, f"{shift_words(one.shift)}") for memory, one in shown.items())
        values = tuple(tuple(_value(share, one.n) for share in one[:3]) for one in shown.values())
        corner = f"{region_name(inside, windowed)}: {shown[EVERYTHING].n} prompt pairs"
        blocks.append(HeatTable(corner, rows, columns, values))
    return Section("memories", "Which memory the answer follows", tuple(blocks))


def layers(found: Crossover, windowed: bool) -> Section:
    """The same, for each layer's memories and each key/value head's."""
    memories = layer_memories(found.mixes)
    every = sorted({one.layer for one in memories})
    kinds = sorted({one.kind for one in memories}, key=_kind_order)
    charts: list[Chart] = []
    blocks: list[Block] = []
    for inside in regions(found):
        shares = {(one.kind, one.layer): following(found, one.memory, inside) for one in memories}
        name = region_name(inside, windowed)
        told: list[list[float]] = []
        shifts: list[list[float]] = []
        for kind in kinds:
            row = [shares.get((kind, layer)) for layer in every]
            told.append([math.nan if one is None else one.memory.mean for one in row])
            shifts.append([math.nan if one is None else round(one.shift, 1) for one in row])
        columns = [f"L{layer}" for layer in every]
        for values, what in ((told, "share of answers that follow it"), (shifts, "shift towards its needle, nats")):
            figure = pair_heatmap(values, kinds, columns, ("", "layer"), what)
            if values is told:
                figure.update_traces(zmin=0, zmax=1)
            title = f"{name}: {what}"
            charts.append(Chart(figure, f"{title}, by memory and layer", title, heatmap_height(len(kinds)) + 30))
        rows = tuple((one.memory.words, *_row(shares[one.kind, one.layer])) for one in memories)
        header = ("memory", "tells its needle", "that of all the others", "neither", "shift")
        blocks.append(Table(header, rows, f"{name}: every memory of every layer with intervals"))
    text = (
        "One memory of one layer against everything else of the model, either way round. Where one square is dark "
        "this memory alone decides the answer. Several pale ones share it: which of them is followed differs from "
        "prompt to prompt, or each holds a part."
    )
    return Section("layers", "Layer by layer, head by head", (Words(text), ChartGrid(tuple(charts)), *blocks))


def combinations(found: Crossover, windowed: bool) -> Section:
    """Shares of every combination of whole memories."""
    names = [mix.name for mix in found.mixes if mix.group == "whole model"]
    text = (
        "Every combination of the whole model's memories, A and B being the prompt that each comes from; “only keys” "
        "and “only values” take all else from A. “B likelier”: of needle B's words against A's, whatever was answered."
    )
    blocks: list[Block] = [Words(text)]
    for inside in regions(found):
        shares = {name: found.shares(name, inside) for name in names}
        values = tuple(
            tuple(_value(share, one.n) for share in (one.a, one.b, one.neither, one.likelier_b))
            for one in shares.values()
        )
        corner = region_name(inside, windowed)
        columns = ("tells A", "tells B", "tells neither", "B likelier")
        blocks.append(HeatTable(corner, tuple(names), columns, values))
    rows = tuple(
        (cell.mix, cell.pair, str(cell.length), f"{cell.depth} %", f"{100 * cell.seen:.0f} %", cell.told, cell.text)
        for cell in found.cells
        if cell.mix in names
    )
    header = ("memories", "needles", "length", "depth", "needle seen", "told", "answer")
    blocks.append(Answers(f"All {len(rows):,} answers", header, rows, (6,)))
    return Section("combinations", "Every combination", tuple(blocks))


def written(maps: Mapping[str, DamageMap], windowed: bool) -> Section:
    """Damage by place, of the prompts inside and outside the window."""
    text = (
        "One prompt each, read with memory taken away at one place after another; a square is the log-probability of "
        "needle A's words that is lost, in nats. Keys and values go block by block. Recurrent layers lose, at one "
        "position, all they held, or are given what prompt B left there, and read on: what shows is what they had "
        "brought that far and nothing else brings. Labels are positions with the first and the last token."
    )
    if windowed:
        text += " Maps of one kind have one scale, inside the window and outside."
    blocks: list[Block] = [Words(text)]
    limits = {
        kind: max(1.0, *(float(found.damage.abs().max()) for name, found in maps.items() if name.endswith(kind)))
        for kind in MAP_WORDS
        if any(name.endswith(kind) for name in maps)
    }
    for inside in (True, False):
        for kind, words in MAP_WORDS.items():
            found = maps.get(f"{'inside' if inside else 'outside'}-{kind}")
            if found is not None:
                title = f"{WHERE[inside]}: {words}" if windowed else words[0].upper() + words[1:]
                blocks.append(_map(found, title, limits[kind]))
    intact = [
        f"{f'{WHERE[inside]}: ' if windowed else ''}{_intact(maps[name])}"
        for inside, name in ((True, "inside-dropped"), (False, "outside-dropped"))
        if name in maps
    ]
    blocks.insert(1, Words("With nothing taken away: " + " ".join(intact), note=True))
    return Section("written", "Where it is written", tuple(blocks))


def region_name(inside: bool, windowed: bool) -> str:
    """What the prompts of a region are called."""
    return WHERE[inside] if windowed else ALL_IN


def place_words(found: DamageMap, place: int) -> str:
    """A place as labels have it: "64–71 eat…Park"."""
    start, stop = found.places[place]
    first, last = visible(found.tokens[start]), visible(found.tokens[stop - 1])
    return f"{start} {first}" if stop - start == 1 else f"{start}–{stop - 1} {first}…{last}"


def touches(found: DamageMap, place: int) -> bool:
    """Whether a place holds a part of the needle."""
    start, stop = found.places[place]
    return any(start < end and begin < stop for begin, end in found.spans)


def shift_words(shift: float) -> str:
    """A shift in nats with its sign; "0.0" for what is next to nothing."""
    return f"{shift:+.1f} nats".replace("-", "−") if abs(shift) >= 0.05 else "0.0 nats"


def keys_alone(found: Crossover, inside: bool) -> tuple[float, float]:
    """Shares that tell B when only the keys, and only the values, come from B."""
    return found.shares("only keys B", inside).b.mean, found.shares("only values B", inside).b.mean


def partly(found: Crossover) -> int:
    """Prompt pairs of whose needle the last token sees a part."""
    cells = [cell for cell in found.cells if cell.mix == KEYS_AND_VALUES.only]
    return sum(not is_inside(cell, True) and not is_inside(cell, False) for cell in cells)


def _map(found: DamageMap, title: str, limit: float) -> Chart:
    columns = [place_words(found, i) for i in range(len(found.places))]
    marked = [i for i in range(len(columns)) if touches(found, i)]
    values = [
        [value if held else math.nan for value, held in zip(row, found.held, strict=True)]
        for row in found.damage.tolist()
    ]
    figure = position_heatmap(values, found.groups, columns, "", "nats lost", limit, marked)
    words = f"{title}: log-probability lost, by layers and positions"
    return Chart(figure, words, title, position_height(len(found.groups)), position_width(len(columns)))


def _intact(found: DamageMap) -> str:
    values = float(found.intact.logprob_a), float(found.intact.logprob_b)
    a, b = (f"{round(value, 1) + 0.0:.1f}".replace("-", "−") for value in values)
    start, stop = found.spans[-1]
    return (
        f"a prompt of {len(found.tokens)} tokens, needle “{found.pair}” at {start}–{stop - 1}; log-probability of A's "
        f"words {a}, of B's {b}."
    )


def _row(one: Following) -> tuple[tuple[str, str] | str, ...]:
    entries = [(percent(share.mean), interval(_value(share, one.n))) for share in one[:3]]
    return (*entries, shift_words(one.shift))


def _value(share: Share, n: int) -> Value:
    return Value(share.mean, share.interval.low, share.interval.high, n)


def _kind_order(kind: str) -> tuple[int, str]:
    order: Sequence[str] = ("keys and values", "convolution and recurrent state", "convolution", "recurrent state")
    return (order.index(kind) if kind in order[1:] else 0, kind)
