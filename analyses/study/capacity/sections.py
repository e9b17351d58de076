"""The parts of the report on recall against the number of facts: recall, facts held, places, memory, answers.

Every number of a figure stands in a table as well. How it fails: pure.
"""

from __future__ import annotations

import plotly.graph_objects as go

from analyses.study.capacity.results import UNTOUCHED, Capacity, FactAnswer, Recall
from analyses.study.rankings.curves import Value as Measured
from hybridlens.display import every, many
from hybridlens.display.markup import size
from hybridlens.results import bootstrap_interval
from hybridlens.viz.blocks import Answers, Block, Chart, HeatTable, Section, Table, Words
from hybridlens.viz.entries import Entry, Value
from hybridlens.viz.layout import COLORS, LEGEND, axis, lay_out, stroke, ticks
from hybridlens.viz.plot import Plot
from hybridlens.viz.words import DASH

HELD = "Facts held = number of facts × (recall − recall in the control), over the same prompts."

THIRDS = ("first third", "middle third", "last third")
"""Of the context, by the asked fact's place."""


def recalled(found: Capacity) -> Section:
    """Whose value answers give, with each number of facts."""
    text = (
        f"Every prompt has {found.length} tokens; where it has fewer facts, filler stands in their place, and the "
        "asked one stays. An answer gives its value, another fact's, or none; the control is the same prompt with the "
        "asked fact left out, whose value can then only be guessed. How often another's is guessed is seen by as many "
        "facts that are nowhere in the prompt. Conditions hold while reading and answering."
    )
    blocks: list[Block] = [Words(text), Chart(found.plot(), "recall by number of facts and condition, with intervals")]
    columns = ("asked fact's", "another's", "none's", "chance: asked fact's", "chance: another's")
    for condition in found.conditions:
        curve = found.curve(condition)
        rows = tuple(many(one.facts, "fact") for one in curve)
        values = tuple(
            tuple(_value(share, one.n) for share in (one.right, one.other, one.neither, one.control, one.strange))
            for one in curve
        )
        blocks.append(HeatTable(f"{condition}: answers that give …", rows, columns, values))
    return Section("recall", "Recall against the number of facts", tuple(blocks))


def held(found: Capacity) -> Section:
    """Facts held, with each number of facts."""
    text = (
        f"{HELD} Each interval is the number of facts times that of the paired difference; one that holds 0 shows no "
        "fact held. The points are mean points by the paper's kind of rubric, in percent of the highest."
    )
    rows: list[tuple[Entry, ...]] = []
    for one in found.recalls:
        points = f"{100 * one.score.value:.1f} %"
        rows.append((one.condition, str(one.facts), _number(one.held), _number(one.above, 100), points))
    header = ("condition", "facts", "facts held", "recall less control, points", "points")
    chart = Chart(held_chart(found), "facts held by number of facts and condition, with intervals")
    return Section("held", "Facts held", (Words(text), chart, Table(header, tuple(rows))))


def held_chart(found: Capacity) -> go.Figure:
    """Facts held against facts in the prompt, with bars over their intervals and a line where all are held."""
    figure = Plot()
    ends = [0, found.counts[-1]]
    dotted = {"color": COLORS[4], "width": 1.2, "dash": "dot"}
    figure.add_scatter(x=ends, y=ends, mode="lines", name="all of them", line=dotted, hoverinfo="skip")
    for i, condition in enumerate(found.conditions):
        curve = found.curve(condition)
        figure.add_scatter(
            x=[one.facts for one in curve],
            y=[one.held.value for one in curve],
            name=condition,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [one.held.high - one.held.value for one in curve],
                "arrayminus": [one.held.value - one.held.low for one in curve],
                "thickness": 1.4,
                "width": 4,
            },
            customdata=[[one.held.low, one.held.high] for one in curve],
            hovertemplate="%{x} facts: <b>%{y:.2f}</b> held, 95 %: %{customdata[0]:.2f} to %{customdata[1]:.2f}",
            **stroke(i, 2.2, 7),
        )
    across, up = axis("facts in the prompt", **ticks(found.counts)), axis("facts held<br>bars: 95 % interval")
    return lay_out(figure, across, up, (70, 16, 50, 60), legend=LEGEND)


def by_place(found: Capacity) -> Section:
    """Recall by where the asked fact stands, with the most facts."""
    facts = found.counts[-1]
    columns = tuple(name for third, name in enumerate(THIRDS) if _third(found.of(UNTOUCHED, facts), third))
    values: list[tuple[Value, ...]] = []
    for condition in found.conditions:
        thirds = (_third(found.of(condition, facts), third) for third in range(len(THIRDS)))
        values.append(tuple(_share(some) for some in thirds if some))
    text = (
        f"Prompts with {many(facts, 'fact')}, by the place of the asked one in the context: a memory that fades keeps "
        "the last third, next to the question, best."
    )
    table = HeatTable("asked fact in the …", found.conditions, columns, tuple(values))
    return Section("places", "Where the asked fact stands", (Words(text), table))


def memory(found: Capacity) -> Section:
    """Bytes of memory beside what is held in them."""
    sizes = found.memory
    kinds = Table(
        ("memory of one prompt", "bytes", "grows with the prompt"),
        (
            ("keys and values", f"{size(sizes.keys)} ({size(sizes.per_token)} a token)", "yes, up to the window"),
            ("recurrent states", size(sizes.states), "no"),
            ("inputs that convolutions remember", size(sizes.convolutions), "no"),
        ),
    )
    rows: list[tuple[Entry, ...]] = []
    for condition in found.conditions:
        best, there = found.most_held(condition), memory_of(found, condition)
        bits = found.bits * max(0.0, best.held.value)
        share = f"{bits / (8 * there):.1e}" if there and bits else DASH
        rows.append((condition, size(there), f"{best.held.value:.1f} of {best.facts}", f"{bits:.0f}", share))
    header = ("condition", "memory", "facts held at most", "bits of values", "share of the memory's bits")
    text = (
        f"Sizes follow from the model's configuration, for prompts of {found.length} tokens. A fact's value is one of "
        f"{2**found.bits:,.0f}, and so {found.bits:.1f} bits; keys of facts are not counted. What is told is a lower "
        "bound of what is held, and the largest of several estimates is above the true one on average."
    )
    return Section("memory", "Memory", (Words(text), kinds, Table(header, tuple(rows))))


def memory_of(found: Capacity, condition: str) -> int:
    """Bytes that can carry a fact from where it stands to the answer under a condition."""
    sizes = found.memory
    fixed = sizes.states + sizes.convolutions
    return fixed + (sizes.keys if condition == UNTOUCHED else 0)


def answers(found: Capacity) -> Section:
    """Every answer, folded away."""
    rows = tuple(
        (
            one.condition, str(one.facts), str(one.prompt), "left out" if one.control else f"{one.depth} %", one.asked,
            one.told if one.told != "other" else f"other: {one.given}", one.text,
        )
        for one in found.answers
    )  # fmt: skip
    header = ("condition", "facts", "prompt", "asked fact's place", "asked", "told", "answer")
    return Section("answers", "Answers", (Answers(every(len(rows), "answer"), header, rows, (6,)),))


def _third(some: list[FactAnswer], third: int) -> list[FactAnswer]:
    """The answers whose asked fact stands in a third of the context."""
    return [one for one in some if min(2, 3 * one.depth // 100) == third]


def _share(some: list[FactAnswer]) -> Value:
    hits = [float(one.told == "right") for one in some]
    return Value(sum(hits) / len(hits), *bootstrap_interval(hits), len(hits))


def _value(share: Measured, n: int) -> Value:
    return Value(*share, n)


def _number(value: Measured, factor: int = 1) -> Entry:
    mean, low, high = (f"{factor * x:z.{1 if factor > 1 else 2}f}".replace("-", "−") for x in value)
    return mean, f"{low} to {high}".replace(" ", "\u00a0")


def held_words(one: Recall) -> str:
    """Facts held with their interval: "7.5 of 8 (6.9 to 8.0)"."""
    value, low, high = (f"{x:z.1f}".replace("-", "−") for x in one.held)
    return f"{value} of {many(one.facts, 'fact')} ({low} to {high})"
