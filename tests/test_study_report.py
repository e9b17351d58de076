"""The report of a study: what it shows is what was measured, and no text breaks it.

A synthetic study stands in for a model: scores follow from a cell's place and condition, so that a swapped axis,
row or column shows.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import close

from analyses.study import views
from analyses.study.benchmarks.results import BenchmarkResult, BenchmarkRow
from analyses.study.experiments import EXPERIMENTS, Study
from analyses.study.finding import finding
from analyses.study.groups import Base
from analyses.study.report import Judged, page_of
from analyses.study.running import asked_for
from analyses.study.verdict import Verdict
from hybridlens.results import Cell
from hybridlens.viz.article import render_article, write_article
from hybridlens.viz.blocks import Explorer
from hybridlens.viz.entries import difference, entry, interval, percent
from hybridlens.viz.templating import POLICY, circuitsvis_bundle
from tests.report_pages import HOSTILE, Page, a_record, data_of

LENGTHS, DEPTHS, N_HEADS = (64, 96, 128), (0, 50, 100), 4
PAIRS = ((64, 120), (96, 184))
BASE = Base(N_HEADS, jrt_lengths=PAIRS)
ALL = tuple(EXPERIMENTS)
IDS = {"fig2", "fig3-jrt", "table1", "needles", "scope", "boundary", "semantics"}


def cells_of(condition: dict[str, Any], lengths: Sequence[int] = LENGTHS, text: str | None = None) -> list[Cell]:
    """A condition at every place, controls included: about k points, more or less by what its checksum says."""
    found: list[Cell] = []
    for length in lengths:
        for depth in (*DEPTHS, None):
            drawn = zlib.crc32(repr((sorted(condition.items()), length, depth)).encode())
            score = 0.5 * (2 * condition.get("k", N_HEADS) + drawn % 3) if depth is not None else 0.5 * (drawn % 2)
            said = f"said {score} at {length}, {depth}, {sorted(condition.items())}" if text is None else text
            span = (None, None) if depth is None else (3, 9)
            margin = 5e-5 if (length, depth, condition.get("k")) == (64, 0, 1) else 0.5
            named = {"phase": "generation", "k": N_HEADS, **condition}
            common = {"length": length, "depth": depth, "control": depth is None, "score": score, "text": said}
            extra = {"needle_start": span[0], "needle_end": span[1], "seconds": 0.25, "prompt_hash": "abc"}
            found.append(Cell(model="m", **named, **common, **extra, margin=margin, tokens=7))
    return found


def study_cells(text: str | None = None) -> list[Cell]:
    """The cells of every experiment; each key once."""
    conditions: list[dict[str, Any]] = [
        {"phase": phase, "k": k} for phase in ("generation", "prefill") for k in range(N_HEADS + 1)
    ]
    conditions += [
        {"reading": reading, "answering": answering}
        for reading in views.READINGS
        for answering in views.ANSWERINGS
        if (reading, answering) != ("keep", "keep")
    ]
    others: list[dict[str, Any]] = [{"needle": "oslo"}, {"scope": "model"}, {"boundary": "first_new_token"}]
    others.append({"semantics": "published"})
    conditions += [{"k": k, **other} for other in others for k in range(N_HEADS + 1)]
    found = [cell for condition in conditions for cell in cells_of(condition, text=text)]
    twice = tuple(length for _, length in PAIRS)
    for k in (0, 1, 2, N_HEADS):
        found += cells_of({"k": k, "jrt": True}, twice, text)
    assert len({cell.key for cell in found}) == len(found)
    return found


def a_study(*experiments: str) -> Study:
    """A study of some experiments, as far as the report reads it."""
    return Study({}, experiments, BASE, ())


def bench_row(task: str, k: int, score: float, metric: str = "acc") -> BenchmarkRow:
    """A score over four documents."""
    return BenchmarkRow(task, k, metric, score, 0.125, 4, True, (score,) * 4 if metric == "acc" else None)


BENCHMARKS = [
    bench_row(task, k, score)
    for task, scores in {"alone": (0.75, 0.5, 0.25), "mmlu": (0.5, 0.5, 0.0), "mmlu_law": (1.0, 0.75, 0.5)}.items()
    for k, score in zip((4, 2, 0), scores, strict=True)
] + [bench_row("loss", k, 12.5 + k, "word_perplexity") for k in (4, 2, 0)]

VERDICTS = [
    Verdict("a", "H1", "Claim one.", "0 %", "k = 0: 1.0 %; k = 1: 2.0 %", "holds", "Rule one.", ""),
    Verdict("b", "H1", "Claim two.", "–", "x: 50.0 % (40.0 to 60.0)", "fails", "Rule two.", ""),
    Verdict("c", "H3", "Claim three.", "–", "–", "not tested here", "Rule three.", "undecided: so"),
]
CLAIMS = (
    "Of the 2 claims of the paper that were tested, 1 holds, 1 fails: H1 (retrieval depends on attention alone); 1 was "
    "not tested here."
)


def rendered(
    experiments: Sequence[str] = ALL, cells: Sequence[Cell] | None = None, notes: Sequence[str] = (), **more: Any
) -> str:
    """A page of the study above; it may leave parts out."""
    record = a_record(**more.get("record", {}))
    shown = study_cells() if cells is None else list(cells)
    found = Judged(a_study(*experiments), shown, more.get("rows", BENCHMARKS), more.get("verdicts", VERDICTS), notes)
    return render_article(page_of(found, record, more.get("ran", experiments)), record)


def section(source: str, name: str) -> str:
    """The text that is seen in a section, tables cell by cell with "|" between."""
    found = re.search(rf'<section id="{name}">(.*?)</section>', source, re.DOTALL)
    assert found is not None, f"no section {name}"
    return "|".join(Page(found[1]).text)


def ids(source: str) -> list[str]:
    """Names of the sections, in order."""
    return [str(a["id"]) for tag, a in Page(source).tags if tag == "section"]


@pytest.fixture(scope="module")
def full() -> str:
    """The page with everything on it."""
    return rendered()


def test_the_finding_answers_the_papers_question() -> None:
    """Scores set by hand: what dropping heads takes or leaves, and where; little is lost where chance is as good."""

    def said(scores: dict[int, float], chance: float, phase: str = "generation") -> tuple[str, ...]:
        cells = [
            replace(cell, score=chance if cell.control else scores[cell.k])
            for k in scores for cell in cells_of({"phase": phase, "k": k}, LENGTHS[:1])
        ]  # fmt: skip
        return finding(cells, (), VERDICTS, BASE, "m")

    first, claims = said({0: 0.0, 1: 2.0, 2: 5.0, 4: 5.0}, 0.0)
    assert first == (
        "Dropping attention heads while answering takes m's retrieval of the needle from 100\u00a0% with all 4 heads "
        "of each layer to 0\u00a0% without attention, chance being 0\u00a0%; accuracy falls under half at k = 1 head."
    )
    assert claims == CLAIMS
    assert finding((), (), VERDICTS[1:], BASE, "m") == (
        "The one claim of the paper that was tested fails: H1 (retrieval depends on attention alone); 1 was not tested "
        "here.",
    )
    first, _ = said({1: 4.0, 4: 5.0}, 0.0, "prefill")
    assert first == (
        "Dropping attention heads while reading and answering leaves m's retrieval of the needle at 80\u00a0% with "
        "1 head of each layer, of 100\u00a0% with all 4 heads of each layer, chance being 0\u00a0%; accuracy never "
        "falls under half."
    )
    _, close_to, _ = said({0: 1.0, 4: 1.0}, 1.0)
    assert close_to.startswith("That is close to chance")


def test_sections_are_those_that_ran(full: str) -> None:
    """All of them in the order of the page; of one experiment only its own, and what every study has."""
    order = ["verdicts", "fig2", "fig3-jrt", "table1", "maps", "benchmarks", "needles", "scope", "boundary"]
    assert ids(full) == [*order, "semantics", "near-ties", "costs", "provenance"]
    for name in IDS:
        assert ids(rendered([name], rows=(), verdicts=())) == [
            *sorted({name, "maps"}, key=order.index if name in order else ["maps", name].index),
            "near-ties",
            "costs",
            "provenance",
        ]
    links = {a["href"] for tag, a in Page(full).tags if tag == "a"}
    assert links == {f"#{name}" for name in ids(full)}
    earlier = {"sessions": [{"settings": {"experiments": ["scope"]}}, {"settings": {"experiments": ["fig2"]}}]}
    asked = asked_for(a_record(**earlier)) | {"fig2"}
    assert {"scope", "fig2"} <= set(ids(rendered(["fig2"], record=earlier, ran=asked)))


def test_fig2_shows_the_numbers_of_the_view(full: str) -> None:
    """Each accuracy, interval and chance of the view stands in the table and in the figure, at its k."""
    view = views.fig2(study_cells(), BASE)
    figure = data_of(Page(full))["charts"][0]
    for i in range(2):
        line, dotted = figure["data"][2 * i : 2 * i + 2]
        assert [round(x) for x in line["x"]] == list(view.ks)
        close(torch.tensor(line["y"]), 100 * view.accuracy.mean[i])
        tops = torch.tensor(line["y"]) + torch.tensor(line["error_y"]["array"])
        bottoms = torch.tensor(line["y"]) - torch.tensor(line["error_y"]["arrayminus"])
        close(tops, 100 * view.accuracy.high[i])
        close(bottoms, 100 * view.accuracy.low[i])
        close(torch.tensor(dotted["y"]), 100 * view.accuracy.chance[i])
    assert len({round(y, 3) for y in figure["data"][0]["y"]}) > 3, "the values differ, so a swap would show"
    shown = section(full, "fig2")
    for j, k in enumerate(view.ks):
        parts = [part for i in range(2) for part in entry(view.accuracy.value(i, j))]
        assert "|".join([f"k\u00a0=\u00a0{k}", *parts]) in shown
    assert view.tipping[0] is not None
    assert {shape["x0"] for shape in figure["layout"]["shapes"]} == set(view.tipping)
    spread = view.intervals[0]
    assert spread is not None
    for k, share in spread.shares.items():
        if share > 0.001:
            assert f"{'none' if k is None else f'k = {k}'} in {percent(share)}" in shown


def test_every_other_view_stands_in_its_section(full: str) -> None:
    """Means, intervals and differences of each view, as text, in the order of the view's axes."""
    cells = study_cells()
    twice, table, many = views.jrt(cells, BASE), views.table1(cells, BASE), views.needles(cells, BASE)
    shown = section(full, "fig3-jrt")
    for j, k in enumerate(twice.ks):
        parts = [*entry(twice.accuracy.value(0, j)), *entry(twice.accuracy.value(1, j))]
        parts += [*difference(twice.gain.value(j)), *difference(twice.above_half.value(j))]
        assert "|".join([f"k\u00a0=\u00a0{k}", *parts]) in shown
    for name, found in (("table1", table.accuracy), ("needles", many.accuracy)):
        shown, rows = section(full, name), range(found.mean.shape[0])
        for i in rows:
            line = [found.value(i, j) for j in range(found.mean.shape[1])]
            assert len({v.mean for v in line}) > 1
            assert "|".join(f"{percent(v.mean)}|{interval(v)}|chance {percent(v.chance)}" for v in line) in shown
    for name, contrast in (("scope", views.scopes(cells, BASE)), ("boundary", views.boundaries(cells, BASE))):
        for j, k in enumerate(contrast.ks):
            parts = [*entry(contrast.accuracy.value(0, j)), *entry(contrast.accuracy.value(1, j))]
            parts += difference(contrast.difference.value(j))
            assert "|".join([f"k\u00a0=\u00a0{k}", *parts]) in section(full, name)
    both = views.semantics_difference(cells, BASE)
    shown = section(full, "semantics")
    assert f"Of {both.n_cells:,} cells" in shown
    assert f"{both.n_text:,} have another text and {both.n_score:,} another score" in shown
    for j in range(len(both.conditions)):
        parts = [*entry(both.accuracy.value(0, j)), *entry(both.accuracy.value(1, j))]
        assert "|".join([*parts, *difference(both.difference.value(j))]) in shown


def test_the_maps_hold_every_answer(full: str) -> None:
    """Each cell is found once more on the page, with its points and text; the maps of the view are among them."""
    data, cells = data_of(Page(full)), study_cells()
    seen: list[tuple[int, float | None, float, str]] = []
    for sheet in data["explorer"]["sheets"]:
        for one in (m for group in sheet["groups"] for m in group["maps"]):
            for depth, points, texts in zip(sheet["depths"], one["points"], one["texts"], strict=True):
                pairs = zip(sheet["lengths"], points, texts, strict=True)
                seen += [(n, depth, float(p), data["texts"][t]) for n, p, t in pairs if p is not None]
    wanted = cells_of({"phase": "generation", "k": N_HEADS})[0].key
    place = {"length": wanted.length, "depth": wanted.depth, "control": wanted.control}
    untouched = [cell for cell in cells if cell.key._replace(**place) == wanted]
    assert len(untouched) == 12, "which stand in the strip of k and in that of manipulations"
    expected = [(c.length, c.depth, float(c.score), c.text) for c in (*cells, *untouched)]
    assert sorted(map(repr, seen)) == sorted(map(repr, expected))
    assert len(data["texts"]) == len(set(data["texts"]))
    view = views.maps(cells, BASE)
    own = data["explorer"]["sheets"][0]
    drawn = {m["words"]: m["points"] for group in own["groups"] for m in group["maps"]}
    assert len(drawn) == len(view.conditions)
    i = view.conditions.index(views.Condition("generation", N_HEADS, "omit", "only"))
    points = torch.tensor(drawn["Omit while reading, only while answering"], dtype=torch.float32) / 5
    close(points[:-1], view.score[i].T)
    close(points[-1], view.chance[i])


def test_benchmarks_and_their_differences(full: str) -> None:
    """Scores in percent with errors, differences of the result; a part of MMLU is folded away, not drawn."""
    result = BenchmarkResult("m", N_HEADS, tuple(BENCHMARKS), {})
    source = re.search(r'<section id="benchmarks">(.*?)</section>', full, re.DOTALL)
    assert source is not None
    main, folded = source[1].split("<details>")
    shown = "|".join(Page(main).text)
    error = "\u00a0%|±\u00a012.5|"
    assert f"alone|acc, n\u00a0=\u00a04|75.0{error}50.0{error}25.0{error}−25.0|" in shown
    assert result.difference("alone", 0).value == -50
    assert "|−50.0|" in shown
    assert "loss|word_perplexity, n\u00a0=\u00a04|16.500|±\u00a00.125|14.500" in shown
    assert "mmlu_law" not in shown
    assert "mmlu_law|acc" in "|".join(Page(folded).text)
    charts = [figure for figure in data_of(Page(full))["charts"] if figure["data"][0]["name"] == "alone"]
    assert [trace["name"] for trace in charts[0]["data"]] == ["alone", "mmlu"]
    assert charts[0]["data"][0]["y"] == [25, 50, 75]


def test_verdicts_stand_with_sign_and_word(full: str) -> None:
    """Every part of a verdict under its hypothesis; the outcome in words, with a sign that needs no colour."""
    shown = section(full, "verdicts")
    for verdict in VERDICTS:
        for part in (verdict.claim, verdict.outcome, f"Rule: {verdict.rule}", verdict.reason):
            assert part in shown
    assert VERDICTS[0].paper in shown
    assert "1 not tested here, and why" in shown
    assert "✓| |holds" in shown or "✓| holds" in shown
    assert "✗| fails" in shown
    assert "○| not tested here|undecided: so" in shown
    assert "1 holds, 1 fails" in shown
    assert shown.index("H1: ") < shown.index("Claim two") < shown.index("H3: ") < shown.index("Claim three")
    assert CLAIMS in " ".join(Page(full).text)


def test_answers_stand_side_by_side(full: str) -> None:
    """The cells that differ between semantics, and those that nearly tied, with both texts looked up by number."""
    data, cells = data_of(Page(full)), study_cells()
    both, tied = data["answers"]
    pairs = views.semantics_difference(cells, BASE).differing
    told = [[row[0], data["texts"][row[2]], data["texts"][row[4]]] for row in both["rows"]]
    assert told == [[p.clean.key.words(), p.clean.text, p.published.text] for p in pairs]
    assert both["texts"] == [2, 4]
    near = views.near_ties(cells)
    assert near
    assert {(row[0], data["texts"][row[3]]) for row in tied["rows"]} == {(c.key.words(), c.text) for c in near}
    assert f"In {len(near)} of {len(cells)} cells" in section(full, "near-ties")


def test_notes_stand_where_they_belong() -> None:
    """What was left out is said at the top, a note of an experiment in its section, costs in theirs."""
    notes = ["left out: x has none", "fig3-jrt: pairs <b>", "Prompts were read once: 1.000 of the distinct ones."]
    source = rendered(notes=notes)
    top = " ".join(Page(source[: source.index("</header>")]).text)
    assert "left out: x has none" in top
    assert "pairs <b>" in section(source, "fig3-jrt")
    assert "1.000 of the distinct ones" in section(source, "costs")
    total = len(study_cells())
    assert f"seconds, all sessions|{0.25 * total:,.1f}" in section(source, "costs")
    assert f"each cell counted by itself|{7 * total:,}" in section(source, "costs")


def test_missing_cells_leave_a_line_and_no_more() -> None:
    """An experiment that was asked for without a cell of it keeps its place, with the line of the error."""
    source = rendered(["fig2", "fig3-jrt"], cells_of({"k": 1}) + cells_of({"k": 4}))
    assert "no cell of fig3-jrt to show" in section(source, "fig3-jrt")
    assert "accuracy falls under half of that with all heads at k = 1" in section(source, "fig2")
    assert ids(rendered(["fig2"], [], rows=(), verdicts=())) == ["fig2", "provenance"]


@pytest.mark.parametrize("text", HOSTILE)
def test_report_shows_any_text_literally(text: str) -> None:
    """A page with hostile text has the elements of one with harmless text, and gives the text back unchanged.

    The text stands for what a model wrote, a model's, task's and needle's name, notes, and every part of a verdict.
    """

    def page(word: str) -> Page:
        cells = [
            *(cell for k in (1, 4) for cell in cells_of({"k": k}, text=word)),
            *(cell for k in (1, 4) for cell in cells_of({"k": k, "needle": word}, text=word)),
            *cells_of({"k": 1, "semantics": "published"}, text=word + "!"),
        ]
        record = a_record(model=word, command=word, arguments={word: [word]}, growing={word: word})
        verdict = Verdict("a", "H1", word, word, f"{word}; {word}", "holds", word, word)
        rows = [bench_row(word, k, 0.5) for k in (4, 2)]
        study = a_study("fig2", "needles", "semantics")
        made = page_of(Judged(study, cells, rows, [verdict], [word, f"left out: {word}"]), record, ALL)
        return Page(render_article(made, record))

    plain, hostile = page("harmless"), page(text)
    assert [t for t, _ in hostile.tags] == [t for t, _ in plain.tags]
    assert len(hostile.scripts) == 3
    data, tame = data_of(hostile), data_of(plain)
    assert data["texts"] == [text, text + "!"]
    assert text in {trace["name"] for figure in data["charts"] for trace in figure["data"]}
    assert [row[2:] for row in data["answers"][0]["rows"]] == [row[2:] for row in tame["answers"][0]["rows"]]
    assert "".join(hostile.text).count(text) >= "".join(plain.text).count("harmless") - 1


def test_report_asks_the_network_for_nothing(full: str) -> None:
    """The policy forbids every request; what the page links to is itself, and no address stands in our own text."""
    page = Page(full)
    assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in [a for tag, a in page.tags if tag == "meta"]
    loading = {"src", "srcset", "action", "data", "poster"}
    assert [(tag, name) for tag, a in page.tags for name in a if name in loading] == []
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "img", "object", "embed", "base"}
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", full)
    assert circuitsvis_bundle() not in page.scripts, "a megabyte that this page has no use for"


def test_a_text_is_stored_once(tmp_path: Path) -> None:
    """Many cells with one long text cost little more than the text; were it stored with each, it would be 5 MB."""
    cells, short = study_cells("x" * 10_000), study_cells("x")
    sizes = [
        write_article(
            tmp_path, page_of(Judged(a_study(*ALL), found, BENCHMARKS, VERDICTS), a_record(), ALL), a_record()
        )
        .stat()
        .st_size
        for found in (short, cells)
    ]
    assert len(cells) > 500
    assert sizes[1] - sizes[0] < 11_000
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_explorer_leaves_no_cell_out() -> None:
    """A cell that differs from the study's settings in several ways at once still has its place."""
    odd = cells_of({"needle": "oslo", "jrt": True, "scope": "model", "boundary": "first_new_token", "k": 2})
    page = page_of(Judged(a_study(*ALL), [*study_cells(), *odd]), a_record(), ALL)
    blocks = [block for found in page.sections for block in found.blocks if isinstance(block, Explorer)]
    titles = [g.title for groups in blocks[0].sheets.values() for g in groups]
    assert any("'oslo'" in title and "read twice" in title and "scope model" in title for title in titles)
