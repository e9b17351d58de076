"""What the report of the crossover says, tested on models whose memory was planted and on answers made by hand."""

import re
from dataclasses import replace
from functools import cache

import pytest
from bounds import close
from models import FAMILIES
from planted_memory import pairs as planted_pairs
from planted_memory import planted
from report_pages import HOSTILE, Page, a_record, data_of

from analyses import kv_cache
from analyses.kv_cache import Crossover, DamageMap, following, sections
from analyses.kv_cache import experiment as crossover_folder
from analyses.kv_cache.crossover_results import CrossCell
from analyses.kv_cache.damage import touches
from analyses.kv_cache.report import article_of, finding
from hybridlens.errors import ResultsError
from hybridlens.viz.article import render_article
from hybridlens.viz.blocks import Chart, HeatTable
from hybridlens.viz.positions import literal, position_heatmap, visible

pytestmark = pytest.mark.usefixtures("small_bundles")


@cache
def made(family: str, where: str) -> tuple[Crossover, dict[str, DamageMap], int, int | None]:
    """A planted model's crossover and maps; its layer and head."""
    lens, layer, head = planted(family, where, 1)
    pairs = planted_pairs(6, seed=1)
    found = kv_cache.crossover(lens, pairs, max_new_tokens=1)
    pair = crossover_folder.examples(found, pairs)["inside"]
    maps = {
        "inside-dropped": kv_cache.drop_map(lens, pair, block=4, max_new_tokens=0),
        "inside-reset": kv_cache.recurrent_map(lens, pair, every=4, max_new_tokens=0),
        "inside-replaced": kv_cache.recurrent_map(lens, pair, how="replace", every=4, max_new_tokens=0),
    }
    return found, maps, layer, head


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["head", "state"])
def test_the_finding_names_the_planted_memory(family: str, where: str) -> None:
    """Which memory, layer, head and place: one of six layers, of four kinds, of two heads, by numbers alone."""
    found, maps, layer, head = made(family, where)
    holds, _, which, places = finding(found, maps, None)
    if where == "head":
        assert holds.startswith("Keys and values hold the needle, and not the recurrent state:")
        assert "keys and values decide 100\u00a0% (" in holds
        assert "recurrent states 0\u00a0% (" in holds
        assert f"follows keys and values of layer {layer}: 100\u00a0%" in which
        assert f"keys and values of layer {layer}, head {head}: 100\u00a0%" in which
        assert re.search(rf"dropping keys and values costs most at positions \S+ .*, in the needle \(.*layer {layer}",
                         places)  # fmt: skip
        assert "resetting recurrent layers costs at most 0.0" in places
    else:
        assert holds.startswith("The recurrent states hold the needle, and not keys and values:")
        assert f"recurrent state of layer {layer}: 100\u00a0%" in which
        assert "dropping keys and values costs at most 0.0" in places
        assert re.search(rf"replacing their states costs most at positions .*layer {layer}", places)
    article = article_of(found, maps, a_record())
    tables = {b.corner: b for s in article.sections for b in s.blocks if isinstance(b, HeatTable)}
    memories = next(table for corner, table in tables.items() if corner.startswith("All prompts: 6"))
    by_row = {row[0]: [value.mean for value in values]
              for row, values in zip(memories.rows, memories.values, strict=True)}  # fmt: skip
    held, other = ("keys and values", "recurrent states")[:: 1 if where == "head" else -1]
    assert (by_row[held], by_row[other], by_row["convolution inputs"]) == ([1, 0, 0], [0, 1, 0], [0, 1, 0])


def cells_of(told: dict[str, str], seen: float, n: int = 12) -> list[CrossCell]:
    """The same answers to n prompts: mix -> what it tells."""
    lean = {"A": -5.0, "B": 5.0, "neither": 0.0}
    return [
        CrossCell(mix, f"n{i}", 99, 0, seen, said, 0.0, 0.0, 0.0, lean[said], f"{said} {i}")
        for mix, said in told.items()
        for i in range(n)
    ]


@pytest.mark.parametrize(
    ("keeps", "says"),
    [
        (None, "nothing keeps it: the model tells it in 0\u00a0% (0 to 26) of 12 prompt pairs"),
        ("recurrent", "keys and values of later tokens decide 0\u00a0% (0 to 26) of the answers, recurrent states 100"),
        ("kv", "keys and values of later tokens decide 100\u00a0% (74 to 100) of the answers, recurrent states 0"),
    ],
)
def test_what_keeps_a_needle_outside_the_window(keeps: str | None, says: str) -> None:
    """Answers by rule: inside they follow keys and values, outside the memory named, or tell nothing."""
    lens = planted("recurrentgemma", "head").lens
    mixes = tuple(kv_cache.mixes(lens.cfg))

    def told(mix: kv_cache.Mix, memory: str | None) -> str:
        kinds = {"kv": {"keys", "values"}, "recurrent": {"recurrent"}}
        if memory is None:
            return "neither"
        every = {(i, what) for i in range(lens.cfg.n_layers) for what in kinds[memory]}
        every &= {pair for other in mixes for pair in other.from_b}
        return "B" if every <= mix.from_b else "A"

    outside = cells_of({mix.name: told(mix, keeps) for mix in mixes}, 0.0)
    inside = cells_of({mix.name: told(mix, "kv") for mix in mixes}, 1.0)
    cells = [c for mix in mixes for c in (*inside, *outside) if c.mix == mix.name]
    said = finding(Crossover("m", mixes, tuple(cells), 1), {}, 64)
    assert said[0].startswith("Keys and values hold the needle, and not the recurrent state while the needle is inside")
    assert says in said[3]
    assert "left the window of 64 tokens" in said[3]
    partial = [replace(cell, seen=0.5) for cell in cells]
    assert sections.partly(Crossover("m", mixes, tuple(partial), 1)) == 24


def answers(kv: str, recurrent: str, told: str = "", seen: float = 1.0) -> Crossover:
    """A crossover by hand: "+" where an answer follows keys and values (or recurrent states), "-" where it tells none.

    Without mixes of single layers; `told` says the same of the needle with nothing exchanged.
    """
    lens = planted("recurrentgemma", "head").lens
    mixes = tuple(kv_cache.mixes(lens.cfg, by_layer=False))
    follows = {"kv B, conv A, recurrent A": (kv, "B"), "kv A, conv B, recurrent B": (kv, "A"),
               "kv A, conv A, recurrent B": (recurrent, "B"), "kv B, conv B, recurrent A": (recurrent, "A"),
               following.INTACT: (told or "+" * len(kv), "A"),
               following.EVERYTHING.only: (told or "+" * len(kv), "B")}  # fmt: skip
    cells = []
    for mix in mixes:
        signs, which = follows.get(mix.name, ("-" * len(kv), "A"))
        for sign in signs:
            cells += cells_of({mix.name: which if sign == "+" else "neither"}, seen, 1)
    return Crossover("m", mixes, tuple(cells), 1)


@pytest.mark.parametrize(
    ("kv", "recurrent", "verdict"),
    [
        ("++", "--", "2 prompt pairs are too few to tell which kind of memory holds the needle: with memories "
         "exchanged between two prompts, keys and values decide 100\u00a0% (16 to 100) of the answers, "
         "recurrent states 0\u00a0% (0 to 84)."),
        ("+", "-", "1 prompt pair is too few to tell which kind of memory holds the needle: "),
        ("-", "-", "1 prompt pair is too few to tell which kind of memory holds the needle: "),
        ("--" * 2, "--" * 2, "4 prompt pairs are too few to tell which"),
        ("+-" * 6, "-+" * 6, "12 prompt pairs are too few to tell which"),
        ("+" * 12, "-" * 12, "Keys and values hold the needle, and not the recurrent state: "),
        ("-" * 12, "+" * 12, "The recurrent states hold the needle, and not keys and values: "),
        ("-" * 12, "-" * 12, "No kind of memory holds the needle by itself: "),
        ("+---" * 12, "---+" * 12, "Neither kind of memory alone decides which needle is told: "),
        ("+" * 12, "+" * 12, "Either kind of memory decides which needle is told, when it alone is exchanged: "),
    ],
)  # fmt: skip
def test_the_verdict_says_no_more_than_the_intervals(kv: str, recurrent: str, verdict: str) -> None:
    """From answers written by hand: sure of one, of none and of both, and too few to tell between."""
    said, of = finding(answers(kv, recurrent), {}, None)
    assert said.startswith(verdict)
    assert of.startswith(f"These are shares of the answers of {len(kv)} prompt pair")


def test_few_prompt_pairs_are_called_few_in_every_sentence() -> None:
    """Of two pairs nothing is said as if it were sure of single layers, and of what keeps a needle outside a window."""
    lens = planted("recurrentgemma", "head").lens
    mixes = tuple(kv_cache.mixes(lens.cfg))
    layer = lens.cfg.attention_layers[0]
    kinds = {(layer, "keys"), (layer, "values")}
    for n, seen, start in (
        (2, 1.0, "2 prompt pairs are too few to tell whether a single memory decides most answers; these follow keys"),
        (12, 1.0, "Of single memories, the answer follows keys and values of layer"),
    ):
        cells = cells_of({mix.name: "B" if kinds <= mix.from_b else "A" for mix in mixes}, seen, n)
        *_, which = finding(Crossover("m", mixes, tuple(cells), 1), {}, None)
        assert which.startswith(start)
    outside, still = "Once the needle has left the window of 64 tokens, ", "the model still tells it in 100\u00a0% "
    for sign, n, start in (
        ("-", 2, "2 prompt pairs are too few to tell whether anything keeps it: the model tells it in 0\u00a0% (0"),
        ("-", 12, "nothing keeps it: the model tells it in 0\u00a0% (0 to 26) of 12 prompt pairs"),
        ("+", 2, f"{still}(16 to 100) of 2 prompt pairs; what keeps it (2 prompt pairs are too few to tell which): "),
        ("+", 12, f"{still}(74 to 100) of 12 prompt pairs; what keeps it: keys and values of later tokens decide 100"),
    ):
        (said,) = finding(answers(sign * n, "-" * n, sign * n, 0.0), {}, 64)
        assert said.startswith(outside + start)
    assert not any("bootstrap" in part for part in article_of(answers("++", "--"), {}, a_record()).origin)


def test_two_layers_that_share_the_needle_are_a_finding() -> None:
    """Half of the prompts follow one layer's keys and values, half another's: both are named, nothing is too few."""
    lens = planted("recurrentgemma", "head").lens
    mixes, cells = tuple(kv_cache.mixes(lens.cfg)), list[CrossCell]()
    first, second = lens.cfg.attention_layers[:2]
    for mix in mixes:
        for layer in (first, second):
            follows = {(layer, "keys"), (layer, "values")} <= mix.from_b
            cells += cells_of({mix.name: "B" if follows else "A"}, 1.0, 6)
    _, _, which = finding(Crossover("m", mixes, tuple(cells), 1), {}, None)
    assert which.startswith(f"Layers {first} and {second} share it, each deciding a part of the answers by itself;")
    for layer in (first, second):
        assert f"keys and values of layer {layer}: 50\u00a0% (" in which


def test_following_counts_both_ways_round() -> None:
    """Of four prompts: the memory's needle told one way only, both ways, never, and neither told."""
    names = [following.INTACT, "kv B, conv A, recurrent A", "kv A, conv B, recurrent B"]
    told = {names[0]: "AAAA", names[1]: "BBA-", names[2]: "BAB-"}
    cells = []
    for mix, said in told.items():
        for letter in said:
            cells += cells_of({mix: {"-": "neither"}.get(letter, letter)}, 1.0, 1)
    mixes = tuple(kv_cache.Mix(name, "whole model", frozenset()) for name in names)
    found = following.following(Crossover("m", mixes, tuple(cells), 1), following.KEYS_AND_VALUES)
    assert (found.memory.mean, found.rest.mean, found.neither.mean) == (3 / 8, 3 / 8, 2 / 8)
    close(found.shift, (10 + 10 + 0 + 5) / 4)
    assert found.n == 4


@pytest.mark.parametrize(
    ("kv", "recurrent", "told", "share"),
    [
        ("+" * 12, "-" * 12, "", 0.0),  # one memory holds it
        ("+" * 6 + "-" * 6, "-" * 12, "", 0.5),  # in half of the prompts it takes both
        ("-" * 12, "-" * 12, "", 1.0),
        ("-" * 12, "-" * 12, "+" * 6 + "-" * 6, 0.5),  # what the model does not tell is not needed together
        ("+" * 12, "-" * 12, "-" * 12, -1.0),
        ("+" * 12, "+" * 12, "", 0.0),  # each is enough
    ],
)
def test_what_takes_several_memories(kv: str, recurrent: str, told: str, share: float) -> None:
    found = answers(kv, recurrent, told)
    mean, interval = following.together(found)
    assert mean == share
    assert interval.low <= share <= interval.high
    assert interval.high - interval.low < 0.8


def test_one_memory_alone_is_needed_beside_none() -> None:
    names = [following.INTACT, following.EVERYTHING.only]
    mixes = tuple(kv_cache.Mix(name.replace(", conv A", "").replace(", conv B", "").split(", ")[0], "whole model",
                               frozenset()) for name in names)  # fmt: skip
    cells = [cell for mix in mixes for cell in cells_of({mix.name: "A"}, 1.0, 2)]
    with pytest.raises(ResultsError, match="one memory alone"):
        following.together(Crossover("m", mixes, tuple(cells), 1))


def test_examples_are_a_typical_prompt_inside_and_the_best_remembered_outside() -> None:
    pair = planted_pairs(1)[0]
    pairs = [replace(pair, name=f"p{i}") for i in range(7)]
    intact, everything = following.INTACT, following.EVERYTHING.only
    shifts, seen = [3.0, 1.0, 2.0, 9.0, 4.0, 6.0, 5.0], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.5]
    cells = [
        CrossCell(mix, "n", 9, 0, s, told if i != 3 else "neither", 0.0, 0.0, 0.0, x if mix == everything else 0.0, "")
        for mix, told in ((intact, "A"), (everything, "B"))
        for i, (x, s) in enumerate(zip(shifts, seen, strict=True))
    ]
    shown = crossover_folder.examples(Crossover("m", (), tuple(cells), 1), pairs)
    assert {where: found.name for where, found in shown.items()} == {"inside": "p2", "outside": "p5"}


# Any text.


def test_hostile_tokens_are_shown_literally() -> None:
    """A page whose tokens, needles and answers are hostile has the elements of a harmless one.

    All hostile texts stand in one, where each could still end a script or open an element; axes have each of its parts.

    On axes, where Plotly reads tags and entities, no "<" and no bare "&" is left, and what is shown is the token.
    """
    found, maps, *_ = made("jamba", "head")

    def page(word: str) -> Page:
        cells = tuple(replace(cell, pair=word, text=word) for cell in found.cells)
        shown = {
            name: replace(map_, pair=word, tokens=tuple([word, *HOSTILE][i % 11] for i in range(len(map_.tokens))))
            for name, map_ in maps.items()
        }
        record = a_record(model=word)
        return Page(render_article(article_of(replace(found, cells=cells), shown, record), record))

    plain, hostile = page("harmless"), page("".join(HOSTILE))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    labels = [label for chart in data_of(hostile)["charts"] for trace in chart["data"] for label in trace["x"]]
    assert len(labels) > 10
    assert not any("<" in label or re.search(r"&(?!amp;|lt;|gt;)", label) for label in labels)


def test_labels_of_positions() -> None:
    """Plotly's entities for what it would read, escapes for what cannot be seen, one line, cut at the end."""
    assert literal("<b>&</b>") == "&lt;b&gt;&amp;&lt;/b&gt;"
    assert literal("5 a\nb\x00") == "5 a\\nb\\x00"
    assert literal("x" * 40) == "x" * 25 + "…"
    assert (visible(" "), visible(" a "), visible("\n")) == ("“ ”", "a", "\\n")
    figure = position_heatmap([[1.0, float("nan")], [-4.0, 0.5]], ["r<", "s"], ["0 a", "1 <b>"], "rows", "n", None, [1])
    trace = figure.to_plotly_json()["data"][0]
    assert (trace["zmin"], trace["zmax"], list(trace["x"])) == (-4.0, 4.0, ["0 a", "1 &lt;b&gt;"])
    assert list(trace["z"][0]) == [1.0, None]
    (line,) = figure.layout.shapes
    assert (line.x0, line.x1) == (0.55, 1.45)


def test_places_outside_the_cache_are_empty() -> None:
    """A square whose keys had left the window has no colour; the needle's columns are marked."""
    _, maps, *_ = made("jamba", "head")
    found = maps["inside-dropped"]
    gone = replace(found, held=(False, *found.held[1:]))
    charts = [b for b in sections.written({"inside-dropped": gone}, True).blocks if isinstance(b, Chart)]
    trace = charts[0].figure.to_plotly_json()["data"][0]
    assert all(row[0] is None and None not in row[1:] for row in trace["z"])
    start, stop = found.spans[0]
    assert [i for i in range(len(found.places)) if touches(found, i)] == sorted(
        {position // 4 for position in range(start, stop)}
    )
