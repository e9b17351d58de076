"""The report of head circuits shows the numbers it is given, where they belong, and no text breaks it.

Random circuits stand in for a model's: every head has its own value of every metric, so that a swapped layer, head,
writer or metric shows.
"""

import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import close, written
from packed import attention

from analyses.circuits.composition import KINDS, Composition
from analyses.circuits.labels import MEANING, number
from analyses.circuits.report import article_of, circuits_table, finding
from analyses.circuits.results import METRICS, HeadCircuits
from analyses.heads.needle_heads import Look
from analyses.heads.ranking import HeadRanking
from hybridlens.viz.article import Article, render_article, write_article
from hybridlens.viz.blocks import Chart, ChartGrid
from hybridlens.viz.templating import POLICY, circuitsvis_bundle
from tests.report_pages import HOSTILE, Page, a_record, data_of

LAYERS, SSM, HEADS, LAGS, BACK = (2, 5), (0, 1, 3, 4), 3, 2, 40
DISTANCES = (1, 2, 16)
NAMES = [f"L{layer} H{head}" for layer in LAYERS for head in range(HEADS)]


def random_composition(draw: torch.Generator) -> Composition:
    """Scores and expectations between 0 and 1; NaN where the writer is not earlier."""
    heads, recurrent = [], []
    for _ in range(2):
        heads.append(torch.rand(3, 2, HEADS, 2, HEADS, generator=draw))
        heads[-1][:, 0] = math.nan
        heads[-1][:, 1, :, 1] = math.nan
        recurrent.append(torch.rand(3, 2, HEADS, len(SSM), LAGS, generator=draw))
        recurrent[-1][:, 0, :, 2:] = math.nan
    return Composition(heads[0], recurrent[0], heads[1], recurrent[1])


def random_circuits(seed: int = 0, rotary: bool = True, **changes: Any) -> HeadCircuits:
    """Circuits of six heads, a different number everywhere."""
    draw = torch.Generator().manual_seed(seed)

    def signed(*more: int) -> torch.Tensor:
        return 2 * torch.rand(2, HEADS, *more, generator=draw) - 1

    at = len(DISTANCES) if rotary else 1
    return replace(
        HeadCircuits(
            model="m",
            layers=LAYERS,
            ssm_layers=SSM,
            sample=725,
            distances=DISTANCES if rotary else (0,),
            copying=signed(),
            copying_share=signed().abs(),
            ov_eigenvalues=torch.complex(signed(4), signed(4)),
            matching=signed(at),
            matching_rotary=signed(at) if rotary else None,
            matching_free=signed() if rotary else None,
            matching_share=signed().abs(),
            qk_eigenvalues=torch.complex(signed(4), signed(4)),
            profile=torch.softmax(4 * signed(BACK), dim=-1),
            composition=random_composition(draw),
            linearised="at the mean of 99 tokens",
            path_error=torch.tensor([0.25, 0.5, 0.75, 0.875]),
            lag_share=torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.125, 0.875], [0.375, 0.625]]),
            induction=torch.tensor([[0.0, 0.5, 0.25], [0.0, 0.125, 0.75]]),
            induction_writer=torch.tensor([[-1, 1, 0], [-1, 3, 5]]),
            induction_match=signed(),
            retrieval=signed().abs(),
        ),
        **changes,
    )


def a_look(text: str = "a", seed: int = 0) -> Look:
    """Attention of six heads over four tokens."""
    draw = torch.Generator().manual_seed(seed)
    patterns = torch.rand(2, HEADS, 4, 4, generator=draw).tril()
    ranking = HeadRanking(torch.rand(2, HEADS, generator=draw), LAYERS, "needle mass", lower_is_better=False)
    return Look(ranking, [5, 6, 7, 8, 9], [0, 2, 3, 4], [3], patterns, [text, "b", "c", "d"])


@cache
def standard() -> HeadCircuits:
    """The circuits that most tests look at, so that their page is made once."""
    return random_circuits()


@cache
def article(circuits: HeadCircuits) -> Article:
    return article_of(circuits, a_record())


def rendered(circuits: HeadCircuits) -> str:
    return render_article(article(circuits), a_record())


@pytest.fixture(autouse=True)
def bundles(request: pytest.FixtureRequest) -> None:
    """Pages without three megabytes of other people's code, but where a test looks at it."""
    if request.function not in WHOLE:
        request.getfixturevalue("small_bundles")


def section(source: str, name: str) -> str:
    """The text that is seen in a section, with "|" between its parts."""
    found = re.search(rf'<section id="{name}">(.*?)</section>', source, re.DOTALL)
    assert found is not None, f"no section {name}"
    return "|".join(Page(found[1]).text)


def charts(circuits: HeadCircuits, name: str) -> dict[str, Any]:
    """Title -> figure as JSON values, of one section."""
    (found,) = (part for part in article(circuits).sections if part.name == name)
    blocks = [c for block in found.blocks for c in (block.charts if isinstance(block, ChartGrid) else [block])]
    return {chart.title: chart.figure.to_plotly_json() for chart in blocks if isinstance(chart, Chart)}


def test_every_metric_has_a_map_with_its_values() -> None:
    """Each of six values at its layer and head; matching is the mean over distances, previous the profile at 1."""
    circuits = standard()
    drawn = charts(circuits, "scores")
    assert set(drawn) == {m.replace("_", " ") for m in METRICS} | {"matching, dimensions that no distance turns"}
    expected = {m.replace("_", " "): getattr(circuits, m) for m in METRICS if m not in ("matching", "previous")}
    expected["matching"] = sum(circuits.matching[..., i] for i in range(3)) / 3
    expected["previous"] = circuits.profile[:, :, 1]
    expected["matching, dimensions that no distance turns"] = circuits.matching_free
    for title, figure in drawn.items():
        trace = figure["data"][0]
        assert (list(trace["y"]), list(trace["x"])) == (["L2", "L5"], ["H0", "H1", "H2"])
        written(trace["z"], expected[title])
    text = section(rendered(circuits), "scores")
    assert all(MEANING[metric] in text for metric in METRICS)


def test_tables_have_every_score() -> None:
    """The best four of each metric with their scores and the median; every head's line with its writer."""
    circuits = standard()
    text = section(rendered(circuits), "heads")
    for metric in METRICS:
        scores = dict(zip(NAMES, circuits.score(metric).flatten().tolist(), strict=True))
        best = sorted(scores, key=lambda name: -scores[name])[:4]
        if len(set(scores.values())) == len(scores):
            line = "|".join(part for name in best for part in (name, number(scores[name])))
            assert f"{metric.replace('_', ' ')}|{METRICS[metric].words}|{line}|" in text
    for place, name in enumerate(NAMES):
        values = [number(circuits.score(metric).flatten()[place].item()) for metric in METRICS]
        writer = ["–", "L1 lag 1", "L0 lag 1", "–", "L4 lag 1", "L2 H1"][place]
        assert "|".join([name, *values, writer]) in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (-0.5, "−0.500"), (0.0, "0"), (0.0004, "under 0.0005"), (-1e-9, "over −0.0005")],
)
def test_numbers_of_tables(value: float, text: str) -> None:
    assert number(value) == text
    assert number(math.nan) == "–"


def test_the_finding_says_what_was_given() -> None:
    """Counts above one half and the best heads, set by hand."""
    circuits = random_circuits(
        copying=torch.tensor([[0.9, 0.6, -0.9], [0.5, 0.1, 0.51]]),
        matching=torch.tensor([[0.0, 0.9, 0.1], [0.2, 0.3, -0.4]])[..., None].expand(2, 3, 3),
        retrieval=torch.tensor([[0.1, 0.2, 0.3], [0.7, 0.6, 0.5]]),
    )
    retrieve, copy, match, induct, linear = finding(circuits)
    assert "L5 H0 (0.700), L5 H1 (0.600), L5 H2 (0.500)" in retrieve
    assert copy.startswith("3 of 6 heads copy")
    assert copy.endswith("most: L2 H0 (0.900), L2 H1 (0.600), L5 H2 (0.510).")
    assert match.startswith("1 of 6 heads matches equal tokens")
    assert "above 0 for 4 of 6 heads and highest for L5 H2 (0.750, through L2 H1)" in induct
    assert "convolution for 3 of them, from another head for 1" in induct
    assert "at the mean of 99 tokens; on real activations that misses 0.250 to 0.875" in linear
    rest = finding(replace(circuits, path_error=None, linearised="at rest", induction=torch.zeros(2, 3)))
    assert rest[3].startswith("No head has an induction strength above 0: how much a head's keys read of what tells")
    assert "the eigenvalues λ of the OV circuit" in copy
    assert "× how much the head copies, is above 0" in induct
    assert rest[4].endswith("at rest; how far that is off was not measured.")
    source = rendered(replace(circuits, path_error=None, linearised="at rest"))
    assert section(source, "linearisation").count("not measured") == 1 + len(SSM)


def test_no_head_is_named_where_all_are_equal() -> None:
    """Strengths of 0 throughout, as of a real model: sentences, both tables and the display name no best head."""
    zero = torch.zeros(2, HEADS)
    circuits = random_circuits(retrieval=zero, induction=zero, induction_writer=zero.long() - 1)
    first, *rest = finding(circuits)
    assert "no attention head of m is better made for retrieval than another" in first
    assert any("No head has an induction strength above 0" in line for line in rest)
    assert "most retrieval strength of no head, all are equal" in circuits.summary()
    line = next(line for line in circuits_table(circuits).splitlines() if line.startswith("retrieval"))
    assert line.split()[:3] == ["retrieval", "all", "0.00"]
    assert not any(name in line for name in NAMES)
    text = section(rendered(circuits), "heads")
    assert f"retrieval|{METRICS['retrieval'].words}|{'|'.join(['–', '0'] * 4)}|" in text


def test_composition_maps_and_graph() -> None:
    """Every square is score less expectation of the named pair, in plain loops; lines are the highest of each kind."""
    circuits = standard()
    composed = circuits.composition
    expected: dict[tuple[str, str, str], float] = {}
    for k, kind in enumerate(KINDS):
        for a, layer in enumerate(LAYERS):
            for head in range(HEADS):
                reader = f"L{layer} H{head}"
                for s, writer in enumerate(SSM):
                    for lag in range(LAGS):
                        place = (k, a, head, s, lag)
                        value = float(composed.recurrent[place]) - float(composed.recurrent_expected[place])
                        expected[kind, f"L{writer} lag {lag}", reader] = value
                for b, writer in enumerate(LAYERS):
                    for other in range(HEADS):
                        place = (k, a, head, b, other)
                        value = float(composed.heads[place]) - float(composed.heads_expected[place])
                        expected[kind, f"L{writer} H{other}", reader] = value
    drawn = charts(circuits, "composition")
    for kind in KINDS:
        trace = drawn[f"{kind.upper()}-composition"]["data"][0]
        assert list(trace["x"]) == NAMES
        rows = [name for name in trace["y"] if not name.startswith("L5")]
        assert rows == list(trace["y"]), "no head reads layer 5"
        assert [int(name[1]) for name in rows] == sorted(int(name[1]) for name in rows)
        assert len(rows) == LAGS * len(SSM) + HEADS
        for writer, values in zip(trace["y"], trace["z"], strict=True):
            for reader, value in zip(trace["x"], values, strict=True):
                wanted = expected[kind, writer, reader]
                assert value is None if math.isnan(wanted) else value == pytest.approx(wanted, rel=5.01e-4)
    graph = drawn[""]
    lines = [t for t in graph["data"] if t["mode"] == "lines" and t.get("customdata")]
    found = {(t["legendgroup"], *t["customdata"][0][:2]) for t in lines}
    for kind in KINDS:
        above = [key for key, value in expected.items() if key[0] == kind and value > 0]
        best = sorted(above, key=lambda key: -expected[key])[:12]
        assert len(best) == 12
        assert {key for key in found if key[0] == kind} == set(best)
    source = rendered(circuits)
    text = section(source, "composition")
    total = sum(not math.isnan(value) for value in expected.values())
    above = sum(value > 0 for value in expected.values())
    assert f"the strongest 36, at most 12 of a kind, of the {above}" in text
    assert f"in all there are {total}." in text
    kind, writer, reader = max(expected, key=lambda key: -1 if math.isnan(expected[key]) else expected[key])
    assert f"{writer}|{reader}|{kind.upper()}|" in text


def test_eigenvalues_are_of_the_heads_named() -> None:
    """Of six heads all are drawn; the magnitudes and angles of each are its own, under its own score."""
    circuits = standard()
    drawn = list(charts(circuits, "eigenvalues").values())
    for figure, values, score in zip(
        drawn, (circuits.ov_eigenvalues, circuits.qk_eigenvalues), ("copying", "matching"), strict=True
    ):
        names = {trace["name"].split(" (")[0]: trace for trace in figure["data"]}
        assert set(names) == set(NAMES)
        order = [f"L{layer} H{head}" for layer, head in circuits.ranking(score).order]
        assert list(names) == order
        for place, name in enumerate(NAMES):
            seen = [complex(re, im) for re, im, _ in names[name]["customdata"]]
            own = values.flatten(0, 1)[place].tolist()
            assert seen == [pytest.approx(value, rel=5.01e-4) for value in own]  # four digits


def test_distances_and_profiles() -> None:
    """Rotary and free dimensions apart; profiles are those of the heads named, the nearest and the farthest."""
    circuits = standard()
    drawn = charts(circuits, "distance")
    for title, values in (
        ("all dimensions of the head", circuits.matching),
        ("only those that rotary embedding turns", circuits.matching_rotary),
    ):
        for trace in drawn[title]["data"]:
            wanted = values.flatten(0, 1)[NAMES.index(trace["name"])]
            written(trace["y"], wanted)
            assert trace["customdata"] == list(DISTANCES)
    *heads, even = drawn[""]["data"]
    close(even["y"][0], 1 / BACK)
    own = dict(zip(NAMES, circuits.profile.flatten(0, 1).tolist(), strict=True))
    near = sorted(NAMES, key=lambda name: -own[name][1])[:4]
    far = sorted(NAMES, key=lambda name: -sum(own[name][-BACK // 10 :]))[:2]
    assert {t["name"] for t in heads} == {*near, *far}
    for trace in heads:
        wanted = circuits.profile.flatten(0, 1)[NAMES.index(trace["name"])]
        written(trace["y"], wanted)
    whole = replace(circuits, matching_free=None)
    assert set(charts(whole, "distance")) == {"all dimensions of the head", ""}
    assert "Then the dimensions that turn" not in section(rendered(whole), "distance")


def test_a_model_without_rotary_embedding() -> None:
    """No map of the previous token, and the section says why; what there is to show is there."""
    circuits = random_circuits(rotary=False)
    source = rendered(circuits)
    assert charts(circuits, "distance") == {}
    assert "no position embedding" in section(source, "distance")
    assert "previous" not in charts(circuits, "scores")
    assert "previous" not in section(source, "heads")


def test_patterns_stand_beside_their_scores() -> None:
    """The heads of most retrieval strength, each with its own pattern and score; the bundle once and only then."""
    circuits, seen = standard(), a_look()
    source = render_article(article_of(circuits, a_record(), seen), a_record())
    read = Page(source)
    data = data_of(read)
    (drawn,) = data["patterns"]
    assert [at for at in drawn["places"] if at is not None] == seen.shown
    scores = dict(zip(NAMES, circuits.retrieval.flatten().tolist(), strict=True))
    assert [name.split(":")[0] for name in drawn["attentionHeadNames"]] == sorted(scores, key=lambda n: -scores[n])
    for label, pattern in zip(drawn["attentionHeadNames"], attention(drawn), strict=True):
        name, score = label.split(": ")
        assert float(score) == pytest.approx(scores[name], abs=0.00501)
        wanted = seen.patterns.flatten(0, 1)[NAMES.index(name)]
        rows = [[value for value in row if value is not None] for row in pattern]  # gaps between cropped tokens
        close(torch.tensor([row for row in rows if row]), wanted, extra=5e-5)  # of 16 bits
    text = section(source, "patterns")
    for name in NAMES:
        mass = float(seen.ranking.scores.flatten()[NAMES.index(name)])
        assert re.search(rf"{name}\|[^L]*\|{100 * mass:.0f}\u00a0%", text)
    assert read.scripts.count("// the bundle of circuitsvis") == 1
    plain = rendered(circuits)
    assert "// the bundle of circuitsvis" not in Page(plain).scripts
    assert 'id="patterns"' not in plain


def test_any_text_is_shown_literally() -> None:
    """A page with hostile names, tokens and arguments has the elements of one with harmless ones.

    All hostile texts stand in one, where each could still end a script or open an element.
    """

    def page(word: str) -> Page:
        circuits = random_circuits(model=word, linearised=word)
        record = a_record(model=word, command=word, arguments={word: [word]}, facts={word: word})
        return Page(render_article(article_of(circuits, record, a_look(word)), record))

    text = "".join(HOSTILE)
    plain, hostile = page("harmless"), page(text)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert len(hostile.scripts) == 4
    assert data_of(hostile)["patterns"][0]["tokens"][0] == text
    assert "".join(hostile.text).count(text) >= "".join(plain.text).count("harmless") - 1


def test_the_page_asks_the_network_for_nothing(tmp_path: Path) -> None:
    """The policy forbids every request, links lead inside, and no address stands in our own text."""
    path = write_article(tmp_path, article_of(standard(), a_record(), a_look()), a_record())
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in [a for tag, a in page.tags if tag == "meta"]
    loading = {"src", "srcset", "action", "data", "poster"}
    assert [(tag, name) for tag, a in page.tags for name in a if name in loading] == []
    assert all(str(a["href"]).startswith("#") for tag, a in page.tags if tag == "a")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", source)
    assert circuitsvis_bundle() in page.scripts
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


def test_what_is_not_finite_is_left_out() -> None:
    """NaN and infinity have no JSON: a page with them is written, with the rest of its numbers."""
    spoilt = random_circuits(path_error=torch.tensor([0.5, math.inf, 0.5, 0.5]))
    spoilt.ov_eigenvalues[0, 0, 0] = complex(math.nan, math.inf)
    spoilt.profile[0, 1] = math.nan
    spoilt.matching_rotary[1, 1] = math.inf
    data = data_of(Page(rendered(replace(spoilt, profile=spoilt.profile.nan_to_num(nan=0.0)))))
    assert len(data["charts"]) > 10


WHOLE = (test_the_page_asks_the_network_for_nothing,)
