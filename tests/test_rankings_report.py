"""The report of a comparison of rankings shows the numbers it is given, where they belong, and no text breaks it.

Random scores of twelve prompts stand in for a model's; every ranking has its own curve, so that a swap shows.
"""

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import close, written

from analyses.heads.ranking import HeadRanking
from analyses.study.rankings.agreement import kendall, spearman
from analyses.study.rankings.curves import accuracies, area, area_difference, areas, needed
from analyses.study.rankings.deciding import decide
from analyses.study.rankings.report import article_of
from analyses.study.rankings.results import Ability, RankingComparison
from analyses.study.rankings.words import rule, sentences
from hybridlens.errors import InputError
from hybridlens.viz.article import render_article, write_article
from hybridlens.viz.blocks import Chart, ChartGrid
from hybridlens.viz.charts import Curve, band_chart
from hybridlens.viz.entries import Value
from hybridlens.viz.templating import POLICY
from hybridlens.viz.words import INTERVALS
from tests.report_pages import HOSTILE, Page, a_record, data_of

COUNTS, LAYERS, HEADS, PROMPTS = (0, 1, 2, 3, 4, 5, 6), (2, 5), 3, 12
STATIC = ("entropy", "copying", "matching", "previous", "induction", "retrieval")
RUN, RANDOM = "entropy at run time", "random"


@cache
def orders(names: tuple[str, ...] = STATIC) -> dict[str, HeadRanking]:
    """Random rankings, every second one with the lowest score best, and two random draws."""
    draw = torch.Generator().manual_seed(1)
    return {
        name: HeadRanking(torch.rand(2, HEADS, generator=draw), LAYERS, f"what {name} is", bool(i % 2))
        for i, name in enumerate((*names, "random 0", "random 1"))
    }


@cache
def a_comparison(names: tuple[str, ...] = STATIC, note: str = "a note", draws: bool = True) -> RankingComparison:
    """Curves that rise with the heads kept; the run-time row has even counts only."""
    draw = torch.Generator().manual_seed(2)
    rows = (RUN, *names, *((RANDOM,) if draws else ()))
    level = torch.linspace(0, 1, len(COUNTS))
    scores = (level + 0.4 * torch.rand(len(rows), PROMPTS, len(COUNTS), generator=draw) - 0.2).clamp(0, 1)
    scores[..., 0], scores[..., -1] = 0.0, 1.0
    scores[0, :, 1::2] = math.nan
    accuracy, low, high = torch.stack([accuracies(one) for one in scores], dim=1)
    found = orders(names)
    tasks = torch.rand(len(rows), 2, generator=draw)
    tasks[0] = tasks[-1] = math.nan
    loss = torch.rand(len(rows), len(COUNTS), generator=draw) + 1
    loss[0] = math.nan
    return RankingComparison(
        model="m",
        scope="model",
        phase="both",
        names=rows,
        sources=tuple(f"source of {name}" for name in rows),
        counts=COUNTS,
        scores=scores,
        accuracy=accuracy,
        low=low,
        high=high,
        area=(area(scores[0][:, ::2], COUNTS[::2]), *(area(one, COUNTS) for one in scores[1:])),
        heads_needed=tuple(needed(one, COUNTS) for one in scores),
        reference=RUN,
        above_reference=tuple(area_difference(one, scores[0], COUNTS) for one in scores),
        draws=("random 0", "random 1") if draws else (),
        draw_accuracy=scores[-2:].mean(1) if draws else torch.zeros(0, len(COUNTS)),
        draw_area=torch.stack([areas(one, COUNTS).mean() for one in scores[-2:]]).float() if draws else torch.zeros(0),
        ranked=names,
        spearman=spearman([found[name] for name in names]),
        kendall=kendall([found[name] for name in names]),
        decision=decide({name: scores[i] for i, name in enumerate((RUN, *names))}, COUNTS, 0.03, (PROMPTS, 96)),
        ability=Ability(loss, (0, 6), {"tiny_facts": tasks}),
        notes=(note,),
    )


@pytest.fixture(autouse=True)
def bundles(request: pytest.FixtureRequest) -> None:
    """Pages without megabytes of other people's code, but where a test looks at it."""
    if request.function not in WHOLE:
        request.getfixturevalue("small_bundles")


@cache
def article(comparison: RankingComparison) -> Any:
    return article_of(comparison, orders(comparison.ranked), a_record())


def rendered(comparison: RankingComparison) -> str:
    return render_article(article(comparison), a_record())


def section(source: str, name: str) -> str:
    """The text that is seen in a section, with "|" between its parts."""
    found = re.search(rf'<section id="{name}">(.*?)</section>', source, re.DOTALL)
    assert found is not None, f"no section {name}"
    return "|".join(Page(found[1]).text)


def charts(comparison: RankingComparison, name: str) -> dict[str, Any]:
    """Title -> figure as JSON values, of one section."""
    (found,) = (part for part in article(comparison).sections if part.name == name)
    blocks = [c for block in found.blocks for c in (block.charts if isinstance(block, ChartGrid) else [block])]
    return {chart.title: chart.figure.to_plotly_json() for chart in blocks if isinstance(chart, Chart)}


def test_bands_hold_values_and_intervals() -> None:
    """A line through the known means; a band up along the upper ends and back along the lower ones."""
    none = Value(math.nan, math.nan, math.nan, 0)
    first = Curve("a", {0: Value(0.1, 0.05, 0.2, 9), 2: none, 4: Value(0.9, 0.8, 1, 9)})
    second = Curve("</script>", {0: Value(0.5, math.nan, math.nan, 0), 4: Value(0.25, math.nan, math.nan, 0)})
    figure = band_chart([first, second], 4, "accuracy", "heads").to_plotly_json()
    band, *lines = figure["data"]
    assert band["x"] == [0, 4, 4, 0]
    close(band["y"], [20, 100, 80, 5])
    assert band["fill"] == "toself"
    assert [(line["name"], line["x"], line["y"]) for line in lines] == [
        ("a", [0, 4], [10, 90]),
        ("</script>", [0, 4], [50, 25]),
    ]
    assert lines[0]["line"]["dash"] != lines[1]["line"]["dash"]
    assert lines[0]["marker"]["symbol"] != lines[1]["marker"]["symbol"]
    plain = band_chart([second], 4, "loss", "heads", percent=False).to_plotly_json()
    assert plain["data"][0]["y"] == [0.5, 0.25]
    assert "range" not in plain["layout"]["yaxis"]
    assert len(band_chart([], 4, "x", "y").data) == 0
    with pytest.raises(InputError, match="7 curves to draw given, expected at most 6"):
        band_chart([first] * 7, 4, "accuracy", "heads")


def test_every_curve_is_drawn_with_its_own_numbers() -> None:
    """Means and bands of each row, in the first chart or its own; the table has each number and its interval."""
    found = a_comparison()
    first = charts(found, "curves")[""]
    own = charts(found, "each")
    names = found.shown()
    assert len(names) == 6
    assert {RUN, RANDOM} <= set(names)
    rest = [name for name in found.by_area() if name not in (RUN, RANDOM)]
    assert [n for n in names if n in rest] == rest[:4], "the largest areas"
    assert list(own) == rest
    table = section(rendered(found), "curves")
    for name in found.names:
        row = found.place(name)
        places = [i for i in range(len(COUNTS)) if not math.isnan(found.accuracy[row, i])]
        assert len(places) == (4 if name == RUN else 7)
        figures = [first] * (name in names) + ([own[name]] if name in own else list(own.values()))
        for figure in figures:
            (line,) = (t for t in figure["data"] if t["name"] == name and t["mode"] == "lines+markers")
            (band,) = (t for t in figure["data"] if t["name"] == name and t["mode"] == "lines")
            assert line["x"] == [COUNTS[i] for i in places]
            written(line["y"], 100 * found.accuracy[row][places])
            ends = torch.cat([found.high[row][places], found.low[row][places].flip(0)])
            written(band["y"], 100 * ends)
        for i in places:
            low, high = (100 * float(x[row, i]) for x in (found.low, found.high))
            value = f"{100 * float(found.accuracy[row, i]):.1f}\u00a0%|{low:.1f} to {high:.1f}, n\u00a0=\u00a0{PROMPTS}"
            assert value in table


def test_areas_and_heads_needed() -> None:
    """Rows by area; each with interval, heads, and the difference to the reference, which has none to itself."""
    found = a_comparison()
    text = section(rendered(found), "areas")
    places = [text.index(f"|{name}|{found.area[found.place(name)].value:.3f}|") for name in found.by_area()]
    assert places == sorted(places)
    values = [found.area[found.place(name)].value for name in found.by_area()]
    assert values == sorted(values, reverse=True)
    for row, name in enumerate(found.names):
        value, heads, less = found.area[row], found.heads_needed[row], found.above_reference[row]
        parts = [name, f"{value.value:.3f}", f"{value.low:.3f} to {value.high:.3f}", str(heads.heads)]
        parts.append(f"{heads.low} to {heads.high}")
        parts += ["–"] if name == RUN else [f"{less.value:+.3f}", f"{less.low:+.3f} to {less.high:+.3f}"]
        assert "|".join(parts).replace("-", "−") in text.replace("\u00a0", " ")
        assert f"{name}|source of {name}" in text
    assert f"2 random orders: areas from {float(found.draw_area.min()):.3f}" in text


def test_the_finding_is_what_the_words_say() -> None:
    found = a_comparison(note="chosen on the way")
    page = article(found)
    said = rule(found.decision)
    assert page.notes == (said, "chosen on the way", INTERVALS)
    assert [*page.finding, said, "chosen on the way"] == sentences(found)


def test_agreement_and_orders() -> None:
    """Both correlations at both names; each ranking's heads by place, the best 1, whichever way its scores go."""
    found = a_comparison()
    drawn = charts(found, "agreement")
    for title, values in (("Spearman's ρ", found.spearman), ("Kendall's τ-b", found.kendall)):
        trace = drawn[title]["data"][0]
        assert list(trace["x"]) == list(trace["y"]) == list(STATIC)
        written(trace["z"], values)
    maps = charts(found, "orders")
    assert set(maps) == set(STATIC), "no random draw"
    for name, figure in maps.items():
        ranking, trace = orders()[name], figure["data"][0]
        scores = {(i, h): float(ranking.scores[i, h]) for i in range(2) for h in range(HEADS)}
        best = sorted(scores, key=lambda head: scores[head], reverse=not ranking.lower_is_better)
        assert [[best.index((i, h)) + 1 for h in range(HEADS)] for i in range(2)] == trace["z"]
        assert trace["reversescale"] is True


def test_ability() -> None:
    """Loss in nats by ranking and count, tasks at their counts; rows without a value are left out."""
    found = a_comparison()
    text = section(rendered(found), "ability")
    figure = charts(found, "ability")[""]
    assert RUN not in {trace["name"] for trace in figure["data"]}
    for trace in figure["data"]:
        wanted = found.ability.loss[found.place(trace["name"])]
        written(trace["y"], wanted)
    columns = [name for name in found.by_area() if name != RUN]
    for i, n in enumerate(COUNTS):
        line = "|".join(f"{float(found.ability.loss[found.place(name), i]):.3f}" for name in columns)
        assert f"|{n}|{line}" in text
    tasks = found.ability.tasks["tiny_facts"]
    assert "ranking|0 heads|6 heads" in text
    for name in STATIC:
        assert f"{name}|" + "|".join(f"{100 * float(v):.1f}\u00a0%" for v in tasks[found.place(name)]) in text
    assert text.count(RANDOM) == 1, "in the table of losses alone"
    whole = found.ability.loss[1, -1], tasks[1, -1]  # the first row, that of run time, has none
    assert f"The untouched model has {float(whole[0]):.3f} nats a token." in text
    assert f"the untouched model has {100 * float(whole[1]):.1f}\u00a0%." in text


def test_few_rankings_need_one_chart() -> None:
    """With six rows or fewer there is no second set; with one ranking nothing to correlate; without draws no level."""
    names = [part.name for part in article(a_comparison(("copying",), draws=False)).sections]
    assert names == ["curves", "areas", "standing", "ability", "orders"]
    assert "random" not in section(rendered(a_comparison(("copying",), draws=False)), "areas")


def test_any_text_is_shown_literally() -> None:
    """A page with hostile names has the elements of one with harmless ones; all hostile texts stand in one."""

    def page(word: str) -> Page:
        names = (word, *STATIC)
        comparison, record = a_comparison(names, word), a_record(model=word, command=word)
        return Page(render_article(article_of(comparison, orders(names), record), record))

    text = "".join(HOSTILE)
    plain, hostile = page("harmless"), page(text)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert len(hostile.scripts) == 3
    assert text in {trace.get("name") for figure in data_of(hostile)["charts"] for trace in figure["data"]}
    assert "".join(hostile.text).count(text) >= "".join(plain.text).count("harmless") - 1


def test_the_page_asks_the_network_for_nothing(tmp_path: Path) -> None:
    """The policy forbids every request, links lead inside, and no address stands in our own text."""
    path = write_article(tmp_path, article_of(a_comparison(), orders(), a_record()), a_record())
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in [a for tag, a in page.tags if tag == "meta"]
    loading = {"src", "srcset", "action", "data", "poster"}
    assert [(tag, name) for tag, a in page.tags for name in a if name in loading] == []
    assert all(str(a["href"]).startswith("#") for tag, a in page.tags if tag == "a")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", source.replace(max(page.scripts, key=len), ""))
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


WHOLE = (test_the_page_asks_the_network_for_nothing,)
