"""The parts of the zoo's page: retrieval, manipulated attention, reading twice, memories, capacity, weights, states.

Models stand in the rows of every table, in one order. How it fails: what was not measured of any model is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from analyses.study.capacity.results import CONDITIONS
from analyses.study.points import Point
from analyses.study.training_curves.results import INDUCTION, STRENGTH, TAP
from analyses.study.view_types import ANSWERINGS, READINGS
from analyses.study.zoo.of_study import CONTROL, RETRIEVAL, SILENT, mode
from analyses.study.zoo.reading import KEPT, KEY_BYTES, MEMORY_POINTS, READ_OFF, REGIONS, STATE_BYTES, TOGETHER, held
from analyses.study.zoo.results import Member, Zoo
from hybridlens.display import number
from hybridlens.display.markup import size
from hybridlens.results.cells import PHASES
from hybridlens.viz.blocks import Block, Chart, ChartGrid, HeatTable, Links, Section, Table, Words
from hybridlens.viz.charts import ACCURACY, Curve, bar_chart, line_chart
from hybridlens.viz.entries import Entry, Value, entry, signed
from hybridlens.viz.words import DASH, PHASE_TITLES

_COUNTED = re.compile(r"facts held of (\d+),")
_AT = re.compile(r"retrieval, (?P<phase>\w+) version, k = (?P<k>\d+)")


def value(point: Point, chance: Point | None = None) -> Value:
    """A point as tables and figures take it."""
    if point.value is None:
        return Value(math.nan, math.nan, math.nan, 0)
    low, high = (math.nan if end is None else end for end in (point.low, point.high))
    guessed = math.nan if chance is None or chance.value is None else chance.value
    return Value(point.value, low, high, point.n, guessed)


def models(zoo: Zoo) -> Section:
    """What each model is made of."""
    header = ("model", "layers", "recurrence", "parameters", "keys and values a token", "states and convolutions")
    rows: list[tuple[Entry, ...]] = []
    for one in zoo.members:
        layers = f"attention {_listed(one.attention)}; recurrent {_listed(one.recurrent)}"
        sizes = [one.of(name).value for name in (KEY_BYTES, STATE_BYTES)]
        said = [DASH if found is None else size(int(found)) for found in sizes]
        mixers = ", ".join(one.mixers) or DASH
        rows.append((one.name, (one.kind, layers), (mixers, _heads(one)), f"{one.parameters:,}", *said))
    return Section("models", "The models", (Table(header, tuple(rows)),))


def _heads(member: Member) -> str:
    window = "" if member.window is None else f", window {member.window}"
    return f"{member.n_heads} attention heads{window}" if member.n_heads else ""


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


def retrieval(zoo: Zoo) -> Section:
    """With attention and without, beside the control."""
    bars = {
        name: [value(one.of(of), one.of(of + CONTROL)) for one in zoo.members]
        for name, of in (("all of the model", RETRIEVAL), ("no head while reading and answering", SILENT))
    }
    chart = Chart(
        bar_chart(zoo.names, bars, "model", ACCURACY),
        "retrieval of every model, with attention and without",
        height=420,
    )
    header = ("model", "all of it", "without attention", "tips, answering", "tips, reading too", "mean over needles")
    rows: list[tuple[Entry, ...]] = []
    for i, one in enumerate(zoo.members):
        tips = [_tip(one.of(f"tipping point, {phase} version")) for phase in PHASES]
        over = entry(value(one.of(f"mean over needles, k = {one.n_heads}")))
        rows.append((one.name, *(entry(values[i]) for values in bars.values()), *tips, over))
    words = (
        "Accuracy on the paper's needle in percent of the highest score, with 95 % intervals over prompts; chance is "
        "that of the same prompts with filler in the needle's place. A model tips at the largest number of heads kept "
        "at which it is under half. The last column is over several needles, its interval too."
    )
    return Section("retrieval", "Retrieval", (Words(words), chart, Table(header, tuple(rows)), *_curves(zoo)))


def _tip(point: Point) -> Entry:
    if point.value is None:
        return DASH, point.absent
    low, high = ("none" if end is None or end < 0 else f"{end:g}" for end in (point.low, point.high))
    return f"{point.value:g}", f"{low} to {high}"


def _curves(zoo: Zoo) -> list[Block]:
    """Accuracy at every number of heads kept, a small figure a model."""
    charts: list[Chart] = []
    for one in zoo.members:
        found: dict[str, dict[int, Value]] = {}
        for _, point in one.points():
            if match := _AT.fullmatch(point.quantity):
                found.setdefault(match["phase"], {})[int(match["k"])] = value(point)
        if one.n_heads and found:
            curves = [Curve(PHASE_TITLES[phase], dict(sorted(points.items()))) for phase, points in found.items()]
            figure = line_chart(curves, one.n_heads, "accuracy, %")
            charts.append(Chart(figure, f"accuracy against heads kept in {one.name}", one.name, 300))
    return [ChartGrid(tuple(charts))] if charts else []


def manipulated(zoo: Zoo) -> Section | None:
    """Table 1 under either semantics."""
    blocks: list[Block] = []
    for semantics in ("clean", "published"):
        pairs = [(r, a) for r in READINGS for a in ANSWERINGS]
        found = [
            (one.name, [value(one.of(mode(*pair, semantics))) for pair in pairs]) for one in zoo.members if one.n_heads
        ]
        rows = [(name, values) for name, values in found if any(each.known for each in values)]
        if rows:
            columns = tuple((f"{r.capitalize()} |", a) for r, a in pairs)
            table = HeatTable(
                f"{semantics} semantics: reading | answering", tuple(name for name, _ in rows), columns,
                tuple(tuple(values) for _, values in rows),
            )  # fmt: skip
            blocks.append(table)
    if not blocks:
        return None
    words = (
        "All heads kept, their weights on the needle manipulated while the prompt is read and while the model answers: "
        "the paper's table 1, under the semantics of its words (clean) and of its code (published)."
    )
    return Section("table1", "Manipulated attention weights", (Words(words), *blocks))


def twice(zoo: Zoo) -> Section:
    """Read twice, and general tasks, with attention and without."""
    header = ("model", "read twice", "gain over once", "read twice without attention", "its gain")
    names = ("read twice", "read twice without attention")
    rows = tuple(
        (one.name, *(cell for name in names for cell in (
            entry(value(one.of(name))), _points(one.of(f"{name}, gain over once"))
        )))
        for one in zoo.members
    )  # fmt: skip
    tasks = tuple(
        dict.fromkeys(p.quantity for one in zoo.members for _, p in one.points() if p.quantity.startswith("tiny_")
                      and "," not in p.quantity)
    )  # fmt: skip
    others = tuple(
        (one.name, *(cell for task in tasks for cell in (
            entry(value(one.of(task))), _points(one.of(f"{task}, without attention less with"))
        )))
        for one in zoo.members
    )  # fmt: skip
    head = ("model", *(cell for task in tasks for cell in (task, f"{task}: without attention less with, points")))
    general = [Words("General tasks, in percent of the documents."), Table(head, others)] if tasks else []
    words = "Prompts of equal contexts, once and twice, k = all heads and none; gains in points, prompt by prompt."
    return Section("twice", "Just read twice, and general tasks", (Words(words), Table(header, rows), *general))


def memories(zoo: Zoo) -> Section:
    """Which memory answers follow, over all prompts and in and out of the window."""
    rows: list[Entry] = []
    values: list[tuple[Value, ...]] = []
    for one in zoo.members:
        for where in REGIONS.values():
            found = tuple(value(one.of(name + where)) for name in (*MEMORY_POINTS, TOGETHER))
            if found[0].known:
                rows.append((one.name, where.removeprefix(", ") or "all prompts"))
                values.append(found)
    words = (
        "One memory comes from one prompt and all else from its twin with another needle: the share of answers that "
        "tell the needle of the memory's prompt, over both ways round. No single memory: answers that tell it where "
        "all come from one prompt, less those that follow any one of them; they need several, or these contradict each "
        "other."
    )
    columns = tuple(name.removeprefix("follows ") for name in (*MEMORY_POINTS, TOGETHER))
    table = HeatTable("answers that follow …", tuple(rows), columns, tuple(values))
    return Section("memories", "Which memory answers follow", (Words(words), table))


def capacity(zoo: Zoo) -> Section:
    """Facts held of as many as there are."""
    counts = sorted(
        {
            int(m[1])
            for one in zoo.members
            for _, p in one.points()
            if (m := re.match(r"facts held of (\d+),", p.quantity))
        }
    )
    rows: list[tuple[Entry, ...]] = []
    for one in zoo.members:
        for condition in CONDITIONS:
            points = [one.of(held(condition, n)) for n in counts]
            if any(point.value is not None for point in points):
                rows.append(((one.name, condition), *map(_facts, points), _facts(one.of(held(condition)))))
    words = (
        "Facts held = number of facts × (recall − recall of facts that were left out), with 95 % intervals; the most "
        "of several estimates is above the true most on average."
    )
    header = ("model", *(f"of {n}" for n in counts), "at most")
    return Section("capacity", "Recall as the number of facts grows", (Words(words), Table(header, tuple(rows))))


def _facts(point: Point) -> Entry:
    if point.value is None:
        return DASH
    return f"{point.value:.2f}", "" if point.low is None else f"{point.low:.2f} to {point.high:.2f}".replace("-", "−")


def inside(zoo: Zoo) -> Section:
    """Where the needle is written, which heads and tap, what states hold: single numbers of each model."""
    columns: tuple[tuple[str, str, Callable[[Point], Entry]], ...] = (
        ("patched values", "values", _place), ("patched keys", "keys", _place),
        ("patched recurrent states", "states", _place),
        (INDUCTION, "induction strength", _plain), (STRENGTH, "retrieval strength", _plain), (TAP, "tap, lag", _plain),
        (KEPT, "kept without its writes", _place), (f"{KEPT}, p", "p", _plain),
        (READ_OFF, "read off a state", _place), (f"{READ_OFF}, labels shuffled", "shuffled", _plain),
    )  # fmt: skip
    rows = tuple((one.name, *(show(one.of(name)) for name, _, show in columns)) for one in zoo.members)
    words = (
        "Patching one pair of prompts: the share of the difference that the strongest single place of each memory "
        "moves. From the weights: the strongest head's induction and retrieval strength, and the lag of the "
        "convolutions that keys compose most with. States: the metric that is left without what a quarter of the "
        "recurrent heads wrote of the needle (p against random heads), and in how many prompts a probe reads which "
        "needle it was off the best state. These have no interval over prompts; the reports of each model have more."
    )
    header = ("model", *(title for _, title, _ in columns))
    return Section("inside", "Where it is written, which heads, what states hold", (Words(words), Table(header, rows)))


def _place(point: Point) -> Entry:
    return DASH if point.value is None else (f"{point.value:.2f}".replace("-", "−"), point.where)


def _plain(point: Point) -> Entry:
    return DASH if point.value is None else number(point.value, 2)


def _points(point: Point) -> Entry:
    if point.value is None:
        return DASH
    return signed(100 * point.value), "" if point.low is None or point.high is None else signed(
        100 * point.low, 100 * point.high
    )


def each(zoo: Zoo, pages: Mapping[str, dict[str, str]]) -> Section:
    """What every experiment's report says of every model, with links to those that are there.

    Args:
        zoo: the models.
        pages: model -> name of an experiment -> place of its report.
    """
    blocks: list[Block] = []
    for one in zoo.members:
        rows = tuple((asked.part, " ".join(asked.finding) or asked.absent) for asked in one.asked)
        blocks.append(Table(("experiment", "finding"), rows, one.name))
        if pages.get(one.name):
            blocks.append(Links(f"Reports of {one.name}:", pages[one.name]))
    return Section("each", "Model by model", tuple(blocks))
