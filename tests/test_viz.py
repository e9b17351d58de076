"""Pictures of results: what the figures hold, and a report that no text breaks and that needs no network."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from bounds import close
from hypothesis import given
from hypothesis import strategies as st
from packed import attention
from report_pages import HOSTILE, KS, Page, a_cell, a_pattern, a_record, data_of, rendered, sweep

import hybridlens.viz
from analyses.study.groups import Base
from analyses.study.report import niah_page
from hybridlens.errors import InputError, ResultsError
from hybridlens.results import accuracy_points, environment, finding
from hybridlens.viz import MAX_TOKENS, accuracy_curve, headline, retrieval_map
from hybridlens.viz.article import write_article
from hybridlens.viz.patterns import props
from hybridlens.viz.templating import POLICY, circuitsvis_bundle, inline, templates


def test_accuracy_curve_holds_the_means_and_the_chance_beside_them() -> None:
    """Means worked out by hand from the scores of `sweep`; each phase has its own dotted chance curve."""
    figure = accuracy_curve(sweep(), 5.0, 8)
    drawn = {trace.name: ([round(x) for x in trace.x], list(trace.y), trace.line.dash) for trace in figure.data}
    assert drawn == {
        "Generation only": ([0, 2, 8], [0, 60, 100], None),
        "Generation only, needle left out (chance)": ([0, 2, 8], [5, 5, 5], "dot"),
        "Prefill and generation": ([0, 2, 8], [10, 20, 100], None),
        "Prefill and generation, needle left out (chance)": ([0, 2, 8], [5, 5, 5], "dot"),
    }
    axis = figure.layout.xaxis
    assert "read from right to left" in axis.title.text
    assert list(axis.ticktext) == ["0<br>no attention", "2", "8<br>all heads"]
    assert "chance is not known" in headline([finding(points_without_controls(), "generation")], "m", 8)[0]
    assert len(accuracy_curve([c for c in sweep() if not c.control]).data) == 2
    with pytest.raises(ResultsError, match="no cell with a needle to draw"):
        accuracy_curve([c for c in sweep() if c.control])


def test_accuracy_curve_shows_the_intervals() -> None:
    """Bars and hover numbers are those of the points; a chance curve, of two prompts, has none."""
    cells = [replace(c, score=float(i % 6)) for i, c in enumerate(sweep())]
    figure = accuracy_curve(cells)
    for trace, phase in ((figure.data[0], "generation"), (figure.data[2], "prefill")):
        points = accuracy_points(cells, phase, 5.0)
        tops = [y + more for y, more in zip(trace.y, trace.error_y.array, strict=True)]
        bottoms = [y - less for y, less in zip(trace.y, trace.error_y.arrayminus, strict=True)]
        close(tops, [100 * p.high for p in points])
        close(bottoms, [100 * p.low for p in points])
        rows = [[f"k = {p.k}", p.n, 100 * p.low, 100 * p.high] for p in points]
        assert [list(row) for row in trace.customdata] == rows
        assert len({round(p.high - p.low, 3) for p in points}) > 1, "the intervals differ, so a swap would show"
    assert figure.data[1].error_y.array is None


def points_without_controls() -> Any:
    """Accuracy of the generation phase when no control was run."""
    return accuracy_points([c for c in sweep() if not c.control], "generation", 5.0)


def test_many_heads_keep_the_axis_readable() -> None:
    """With 129 values of k at most 22 ticks are shown, the two ends always among them."""
    cells = [a_cell("generation", k, 64, 0, 5.0) for k in range(129)]
    ticks = list(accuracy_curve(cells).layout.xaxis.tickvals)
    assert len(ticks) <= 22
    assert (ticks[0], ticks[-1]) == (0, 128)


def test_retrieval_map_puts_every_score_in_its_place() -> None:
    """Each of the six prompts and two controls gets a score of its own, so a swapped axis cannot pass."""
    cells = [replace(c, score=i / 2) for i, c in enumerate(c for c in sweep() if c.phase == "prefill" and c.k == 2)]
    trace = retrieval_map([*cells, *(c for c in sweep() if c.k == 8)], "prefill", 2).data[0]
    assert list(trace.x) == ["64", "128"]
    assert list(trace.y) == [
        "0 %<br>start of the context",
        "50 %",
        "100 %<br>end, next to the question",
        " ",
        "needle left out",
    ]
    assert [list(row) for row in trace.z] == [[0, 40], [10, 50], [20, 60], [None, None], [30, 70]]
    missing = retrieval_map([c for c in cells if (c.length, c.depth) != (128, 50)], "prefill", 2).data[0]
    assert [list(row) for row in missing.z][1] == [10, None]
    with pytest.raises(ResultsError, match=r"no cell of phase 'prefill' with k = 5"):
        retrieval_map(cells, "prefill", 5)


def test_headline_states_the_measured_numbers() -> None:
    """Every number in the sentences is worked out by hand: half of 100 % is missed at k = 0 and at k = 2."""
    found = [finding(accuracy_points(sweep(), p, 5.0), p) for p in ("generation", "prefill")]
    lines = [line.replace("\u00a0", " ") for line in headline(found, "m", 8)]
    assert lines == [
        "With all 8 heads, m finds the needle with 100 % accuracy; without a needle in the prompt, chance "
        "alone scores 5 %.",
        "When heads are dropped only while answering, accuracy falls under half of the full model's at k = 0 (0 %).",
        "When they are dropped while reading the prompt too, accuracy falls under half of the full model's "
        "at k = 2 (20 %); with no attention it is 10 %, the chance level being 5 %.",
    ]
    flat = [replace(c, score=0.5) for c in sweep()]
    words = headline([finding(accuracy_points(flat, "generation", 5.0), "generation")], "m", 16)
    assert words[0].startswith("With 8 heads kept, m")
    assert "close to chance" in words[1]
    assert "never falls under half of the full model's: with no attention it is" in words[2]
    with pytest.raises(ResultsError, match="nothing to state"):
        headline([], "m", 8)


def test_report_holds_every_cell_and_pattern(tmp_path: Path) -> None:
    """The page's data is parsed back and compared with what went in, 48 cells and the pattern's weights."""
    figure = a_pattern(["a", "b", "c"])
    path = write_article(tmp_path, niah_page(sweep("written"), a_record(), Base(8), [figure], ["a note"]), a_record())
    assert path == tmp_path / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    data = data_of(page)
    (sheet,) = data["explorer"]["sheets"]
    assert (sheet["lengths"], sheet["depths"]) == ([64, 128], [0, 50, 100, None])
    assert sheet["groups"][0]["maps"][1]["points"] == [[3, 3], [3, 3], [3, 3], [0.25, 0.25]]
    assert [[m["label"] for m in g["maps"]] for g in sheet["groups"]] == [["k 0", "k 2", "k 8"]] * 2
    assert data["explorer"]["facts"] == ["needle", "time", "prompt hash"]
    shown = {
        (g["title"], m["words"], n, depth): (m["points"][y][x], data["texts"][m["texts"][y][x]], m["facts"][y][x])
        for g in sheet["groups"] for m in g["maps"]
        for y, depth in enumerate(sheet["depths"]) for x, n in enumerate(sheet["lengths"])
    }  # fmt: skip
    titles = {"generation": "Generation only", "prefill": "Prefill and generation"}
    kept = {0: "no attention", 2: "2 heads kept", 8: "all heads kept"}
    assert shown == {
        (titles[c.phase], f"{titles[c.phase]}, {kept[c.k]}", c.length, c.depth): (
            c.score, c.text, ["not in the prompt" if c.control else "tokens 3 to 8", "0.1 s", "abc"]
        )
        for c in sweep("written")
    }  # fmt: skip
    assert [round(x) for x in data["charts"][0]["data"][0]["x"]] == list(KS)
    np.testing.assert_allclose(attention(data["patterns"][0]), figure.pattern, rtol=0, atol=0.5 / 32767)  # 16 bits
    text = " ".join(page.text)
    for words in ("With all 8 heads", "k = 2", "start of the context", "end, next to the question", "a note"):
        assert words in text
    assert "hybridlens niah --model m" in text
    assert re.search(r"k = 0, the tipping point.*k = 2, the tipping point", text, re.DOTALL)
    assert f"transformers {environment()['packages']['transformers']}" in text
    assert "not complete" not in text
    waiting = Page(rendered(sweep(), a_record(status="interrupted", cells_done=48, cells=96)))
    assert "not complete: 48 of 96 cells" in " ".join(waiting.text)


def test_report_asks_the_network_for_nothing() -> None:
    """The policy forbids every request, and no element names a source, so nothing is loaded on opening it."""
    source = rendered(sweep(), a_record(), [a_pattern(["a", "b"])])
    page = Page(source)
    metas = [a for tag, a in page.tags if tag == "meta"]
    assert POLICY == "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
    assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in metas
    loading = {"src", "srcset", "action", "data", "poster"}
    assert [(tag, name) for tag, a in page.tags for name in a if name in loading] == []
    links = [str(a["href"]) for tag, a in page.tags if tag == "a"]
    assert links == [f"#{a['id']}" for tag, a in page.tags if tag == "section"]
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "img", "object", "embed", "base"}
    assert "sourceMappingURL" not in source
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", source)
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


@pytest.mark.parametrize("text", HOSTILE)
def test_report_shows_any_text_literally(text: str) -> None:
    """A page with hostile text has the same elements as one with harmless text, and gives the text back.

    Had one character been read as markup, an element would be added, a script cut, or the text changed.
    """

    def page(word: str) -> Page:
        record = a_record(model=word, command=word, arguments={word: [word]}, facts={"n_heads": 8, word: word})
        figure = a_pattern([word, "b"], title=word, note=word, heads=[word, "h"])
        return Page(rendered(sweep(word), record, [figure], [word]))

    plain, hostile = page("harmless"), page(text)
    assert [t for t, _ in hostile.tags] == [t for t, _ in plain.tags]
    assert len(hostile.scripts) == len(plain.scripts) == 4
    data = data_of(hostile)
    assert data["texts"] == [text]
    assert data["patterns"][0]["tokens"] == [text, "b"]
    assert data["patterns"][0]["attentionHeadNames"] == [text, "h"]
    shown = "".join(hostile.text)
    assert shown.count(text) >= "".join(plain.text).count("harmless") - 1
    assert "HybridlensPattern.draw" in hostile.scripts[3]


JSON = templates().from_string("{{ value | tojson }}")


@given(st.text())
def test_json_can_end_no_script(text: str) -> None:
    """For any text the JSON parses back to it and holds no character that HTML acts on within a script."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return
    written = JSON.render(value={text: [text]})
    assert json.loads(written) == {text: [text]}
    assert not set(written) & set("<>&\u2028\u2029")


def test_templates_refuse_what_they_cannot_write() -> None:
    """A misspelt name and a number that JSON has not raise, where Jinja2 alone writes nothing and "NaN"."""
    with pytest.raises(jinja2.UndefinedError, match="'missing' is undefined"):
        templates().from_string("{{ missing }}").render()
    with pytest.raises(ValueError, match="not JSON compliant"):
        JSON.render(value=float("nan"))
    assert templates().from_string("{{ x }}").render(x="<b>'\"&") == "&lt;b&gt;&#39;&#34;&amp;"


def test_text_is_called_safe_in_one_place() -> None:
    """`Markup` is made by `inline` alone, which is given files only; no template switches escaping off."""
    package = Path(hybridlens.viz.__file__).parent
    sources = {path.name: path.read_text(encoding="utf-8") for path in package.glob("*.py")}
    assert [name for name, text in sources.items() for _ in re.findall(r"\bMarkup\(", text)] == ["templating.py"]
    found = "\n".join(path.read_text(encoding="utf-8") for path in (package / "templates").iterdir())
    assert "gathered" in found
    assert not re.search(r"\|\s*safe|autoescape|Markup", found)


def test_bundles_cannot_end_their_script() -> None:
    """The bundle holds `</script>` in a string of its code; inlined as it is, that would end the script."""
    import circuitsvis

    raw = (Path(circuitsvis.__file__).parent / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    assert "</script" in raw, "the danger this guards against is there"
    assert "</script" not in circuitsvis_bundle()
    assert len(circuitsvis_bundle()) > 1_000_000
    assert inline('"</script><!--"') == '"<\\/script><\\!--"'


def test_cropped_tokens_keep_their_positions_and_show_gaps() -> None:
    """A place and a gap in the wrong order would put a token's weights beside another's name."""
    drawn = props(a_pattern(["a", "b", "c", "d"], positions=(0, 7, 8, 20)))
    assert drawn["places"] == [0, None, 7, 8, None, 20]
    assert drawn["tokens"] == ["a", "", "b", "c", "", "d"]
    whole = props(a_pattern(["a", "b", "c", "d"]))
    assert whole["places"] == [0, 1, 2, 3]
    kept = [0, 2, 3, 5]
    for with_gaps, head in zip(attention(drawn), attention(whole), strict=True):
        assert [[with_gaps[q][k] for k in kept] for q in kept] == head
        assert all(with_gaps[q][k] is None for q in range(6) for k in range(6) if not {q, k} <= set(kept))


def test_signed_values_get_a_symmetric_range() -> None:
    """Circuitsvis assumes -1 to 1; values beyond it would all look the same."""
    signed = a_pattern(["a", "b"], pattern=np.array([[[3.0, 0], [-7, 1]], [[1, 0], [0, 1]]]))
    assert (props(signed)["minValue"], props(signed)["maxValue"]) == (-7.0, 7.0)
    assert props(a_pattern(["a", "b"]))["maxValue"] == 1.0


def test_weights_are_packed_as_they_are_drawn() -> None:
    """Of 16 bits each; of a causal pattern only what is drawn, of another all, none of it hidden as if it were."""
    whole = np.random.default_rng(0).normal(size=(2, 5, 5))
    for pattern, kept in ((np.tril(whole), 15), (whole, 25)):
        drawn = props(a_pattern(list("abcde"), pattern=pattern))
        assert drawn["maskUpperTri"] == (kept == 15)
        assert len(drawn["packed"]) == 4 * -(-2 * 2 * kept // 3)
        np.testing.assert_allclose(attention(drawn), pattern, rtol=0, atol=0.51 * np.abs(pattern).max() / 32767)
    assert np.array_equal(attention(props(a_pattern(["a", "b"], pattern=np.zeros((2, 2, 2))))), np.zeros((2, 2, 2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": ["one"]}, r"has shape \(2, 2, 2\); 1 heads over 2 tokens need \(1, 2, 2\)"),
        ({"tokens": ["a", "b", "c"]}, r"2 heads over 3 tokens need \(2, 3, 3\)"),
        ({"pattern": np.full((2, 2, 2), np.nan)}, "not finite; mask them to 0 first"),
        ({"positions": (3,)}, "has 2 tokens, and 1 positions were given for them; expected one for each, ascending"),
        ({"positions": (4, 3)}, "expected one for each, ascending"),
        (
            {"tokens": ["t"] * (MAX_TOKENS + 1), "pattern": np.zeros((2, MAX_TOKENS + 1, MAX_TOKENS + 1))},
            r"has 129 tokens, and circuitsvis paints 1 to 128; crop it",
        ),
    ],
)
def test_a_pattern_that_cannot_be_drawn_is_refused(changes: dict[str, Any], message: str) -> None:
    """The message has the shape or number given and the one expected."""
    with pytest.raises(InputError, match=message):
        a_pattern(["a", "b"], **changes)


def test_a_report_that_cannot_be_made_leaves_the_old_one(tmp_path: Path) -> None:
    """With no cell to show the error comes before anything is written."""
    path = write_article(tmp_path, niah_page(sweep(), a_record(), Base(8), [], []), a_record())
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="nothing to state"):
        write_article(tmp_path, niah_page([], a_record(), Base(8), [], []), a_record())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
