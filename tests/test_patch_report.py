"""What the report of patching says, tested on results made by hand, whose every number is known."""

import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from random_lens import benchmark_lens
from report_pages import HOSTILE, Page, a_record, data_of

from analyses.patching import choosing, maps, pairs, report, sections, sweeps
from analyses.patching.direct import DirectAttribution
from analyses.patching.effects import Patched
from analyses.patching.metrics import LogitDifference
from analyses.patching.results import Axis, PatchResult
from analyses.patching.writers import Writer
from hybridlens import niah
from hybridlens.viz.article import render_article
from hybridlens.viz.blocks import Chart, ChartGrid, Table, Words

pytestmark = pytest.mark.usefixtures("small_bundles")

LENGTH, NEEDLE = 90, (40, 60)


@cache
def base() -> pairs.Pair:
    """A pair of 90 tokens and what stands behind them, whose needle stands at 40–59 as far as the report knows."""
    lens = benchmark_lens("jamba")
    pair = choosing.make_pair(lens, "needle", niah.PAPER_NEEDLE, LENGTH, 80)
    return replace(pair, clean_prompt=replace(pair.clean_prompt, needle_span=NEEDLE, needle_spans=(NEEDLE,)))


def a_result(name: str, peaks: dict[tuple[int, ...], float], direction: str = "denoise") -> PatchResult:
    """A sweep of two layers in which only `peaks` move anything, by these effects; clean is 8 and corrupt −2."""
    pair = base()
    sizes = {"p": len(pair.clean_tokens), "h": 3, "g": 2, "x": 4, "c": 2}
    named = {"p": "pos", "h": "head", "g": "kv_head", "x": "expert", "c": "channel"}
    tokens = [f"{i} {a}" for i, a in enumerate(pair.strings[0])]
    axes = [Axis("layer", ("2", "5"))]
    for letter in sweeps.SWEEPS[name].over:
        labels = tokens if letter == "p" else [str(i) for i in range(sizes[letter])]
        axes.append(Axis(named[letter], tuple(labels)))
    moved = torch.zeros([len(axis.labels) for axis in axes], dtype=torch.float64)
    for place, effect in peaks.items():
        moved[place] = effect
    raw = -2 + 10 * moved if direction == "denoise" else 8 - 10 * moved
    return PatchResult(
        raw, tuple(axes), -2.0, ("x",), clean=8.0, metric="m", direction=direction, model="model",
        clean_tokens=pair.clean_tokens, corrupt_tokens=pair.corrupt_tokens, forwards=3,
    )  # fmt: skip


def patched(
    exact: dict[str, PatchResult],
    estimated: dict[str, PatchResult] | None = None,
    metric: str = "logit-difference",
    **more: Any,
) -> Patched:
    pair = base()
    measure = choosing.Measure(metric, LogitDifference(1, 2), pair.clean_tokens, pair.corrupt_tokens)
    given: dict[str, Any] = {"edges": None, "direct": None, **more}
    return Patched(pair, ("a", "b"), measure, exact, estimated or {}, **given)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(
    ("keys", "values", "state", "says"),
    [
        (0.1, 0.9, 0.2, r"The needle is carried by values: .* L5 KV head 1 at position 50 “.* 0\.90 .*states at most"),
        (0.0, 0.1, 0.8, r"by recurrent states: .* L2 at position 50 “.* 0\.80 of the logit difference, values at most"),
        (0.7, 0.6, 0.0, r"More than one memory .* keys most .* 0\.70 .* values at most 0\.60 .*states under 0\.01"),
        (0.4, 0.3, 0.0, r"More than one memory .* keys most .* 0\.40 .* values at most 0\.30 .*states under 0\.01"),
        (0.0, 0.01, 0.33, r"A part of the needle is carried by recurrent states, next to nothing by other .* 0\.33 of"),
        (0.1, 0.2, 0.0, r"No keys, values or recurrent state .* by itself: .* KV head 1 at position 50 “.* 0\.20 of"),
    ],
)
def test_the_finding_says_which_memory(keys: float, values: float, state: float, says: str, direction: str) -> None:
    """Strengths set by hand, either way of patching; the strongest place of each is named with its number."""
    found = patched({
        "k_by_position": a_result("k_by_position", {(0, 0, 45): keys}, direction),
        "v_by_position": a_result("v_by_position", {(1, 1, 50): values}, direction),
        "state": a_result("state", {(0, 50): state}, direction),
    })  # fmt: skip
    (said,) = report.finding(found)
    assert re.search(says, said), said
    assert ("restores" in said) == (direction == "denoise")
    assert ("destroys" in said) == (direction == "noise")


def test_the_finding_says_what_it_is_about() -> None:
    """A needle that the model does not tell is not what is carried; a divergence is removed; shares are those above 0.

    A score's prompts end before the answers' beginning, and divergences are of no two tokens: neither is said.
    """
    exact = {"v_by_position": a_result("v_by_position", {(1, 1, 50): 0.9})}
    (said,) = report.finding(patched({"v_by_position": a_result("v_by_position", {(1, 1, 50): 0.4})}))
    assert said.startswith("A part of the needle is carried by values: ")
    (said,) = report.finding(patched(exact, points=5.0))
    assert said.startswith("The needle is carried by values")
    untold, said = report.finding(patched(exact, points=1.0))
    assert "does not tell the needle" in untold
    assert "(1 of 5 points)" in untold
    assert said.startswith("The difference between the two runs is carried by values")
    (said,) = report.finding(patched(exact, metric="kl"))
    assert "alone removes 0.90 of the divergence" in said
    shares = torch.tensor([-3.0, 0.5, 1.5, -0.25])
    parts = (Writer("embed"), Writer("head", 2, 0), Writer("head", 2, 1), Writer("mlp", 2))
    one = torch.ones(1, 1, dtype=torch.float64)
    direct = DirectAttribution(shares[:, None, None].double(), parts, (3,), ("a less b",), one, one, one[0], "m", (1,))
    assert report.finding(patched(exact, direct=direct))[-1].endswith("comes from L2 head 1 (+1.5), L2 head 0 (+0.5).")
    noisy = replace(direct, logits=one + 1e-7)  # as a device may round what has no cap
    capped = replace(direct, logits=one / 2)
    for found, says in ((direct, False), (noisy, False), (capped, True)):
        (words, _) = sections.direct(found, "logit difference").blocks
        assert isinstance(words, Words)
        assert ("soft cap" in words.text) == says
        assert ("soft cap" in found._repr_html_()) == says
    begun, tokens = "with which both answers begin", "(tokens "
    for metric, clean, expected in (
        ("logit-difference", base().clean_tokens, (bool(base().begun), True)),
        ("kl", base().clean_tokens, (bool(base().begun), False)),
        ("score", base().clean_prompt.tokens, (False, False)),
    ):
        found = patched(exact, metric=metric)
        found = found._replace(measure=found.measure._replace(clean=clean))
        (words, _) = sections.prompts(found).blocks
        assert isinstance(words, Words)
        assert (begun in words.text, tokens in words.text) == expected


def test_nothing_is_called_strong_that_moves_nothing() -> None:
    """Of a sweep in which nothing moves no patch is named: in tables, in the terminal, and by gradients."""
    exact = {
        "v": a_result("v", {(1, 1): 0.5, (0, 0): 0.004}),
        "k": a_result("k", {(0, 1): 0.004, (0, 0): -0.002, (1, 0): 0.001}),
    }
    estimated = {"v": exact["v"], "k": a_result("k", {(0, 1): 0.001, (1, 1): 0.004})}
    found = patched(exact, estimated)
    for made in (sections.places(found), sections.gradients(found)):
        table = next(block for block in made.blocks if isinstance(block, Table))
        values, keys = table.rows
        assert ("L5 KV head 1", "0.50") in values
        assert "none moves 0.01" in keys
        assert not any("KV head" in str(entry) for entry in keys)
        assert "–" not in (*values, *keys)
    assert "lowest " in report.finding(found)[-1]
    assert "k, where none moves 0.01)" in report.finding(found)[-1]
    rows = report.patch_table(found, "m").splitlines()
    assert any(row.split() == ["k", "none", "moves", "0.01", "0.00", "0.00"] for row in rows)


def test_the_finding_follows_the_stream_and_names_heads() -> None:
    """Where the difference stands layer by layer; outputs of each kind; gradients by correlation and largest error."""
    last = len(base().clean_tokens) - 1
    exact = {
        "resid_pre": a_result("resid_pre", {(0, 50): 0.75, (1, last): 0.5}),
        "attn_out": a_result("attn_out", {(1, last): 0.625}),
        "mlp_out": a_result("mlp_out", {(0, 50): 0.25}),
        "z": a_result("z", {(1, 2): 0.375, (0, 0): 0.125}),
    }
    estimated = {"z": a_result("z", {(1, 2): 0.875, (0, 0): 0.125})}
    outputs, stream, gradients = report.finding(patched(exact, estimated))
    at = base().strings[0]
    assert f"attention 0.62 (L5 at position {last} “{at[last]}”), MLPs 0.25 (L2 at position 50 “{at[50]}”)" in outputs
    assert "Single heads: L5 H2 0.38, L2 H0 0.12" in outputs
    assert f"position 50 “{at[50]}”, layer 2 (0.75); position {last} “{at[last]}”, layer 5 (0.50)" in stream
    (spread,) = report.finding(patched({"resid_pre": a_result("resid_pre", {(0, 50): 0.75, (1, 50): 0.5})}))
    assert spread.endswith(f"the position that restores most: position 50 “{at[50]}”, layers 2 to 5 (0.50 to 0.75).")
    assert "largest error is 0.50, in z" in gradients


def test_maps_show_the_positions_that_matter_and_say_what_they_leave_out() -> None:
    """The needle, the differences, the end, and one more position that moves something; the rest by its largest."""
    exact = {
        "resid_pre": a_result("resid_pre", {(1, 50): 1.0, (0, 20): 0.05, (1, 10): 0.015}),
        "z": a_result("z", {(1, 2): 0.5}),
        "q_by_position": a_result("q_by_position", {(0, 1, 50): 0.3}),
    }
    found = patched(exact)
    length = len(base().clean_tokens)
    differ = {d.position for d in base().differences}
    shown = maps.shown_positions(found)
    assert shown == sorted({20, *range(*NEEDLE), *range(length - 4, length), *differ})
    words = maps.left_out(found, shown)
    assert f"show {len(shown)} of {length} positions" in words
    assert f"At the other {length - len(shown)} no patch moves more than 0.01" in words
    charts = [b for s in maps.maps(found) for block in s.blocks
              for b in (block.charts if isinstance(block, ChartGrid) else [block]) if isinstance(b, Chart)]  # fmt: skip
    traces = {chart.title.split("(")[-1].rstrip(")"): chart.figure.to_plotly_json()["data"][0] for chart in charts}
    wide = traces["resid_pre"]
    assert (list(wide["y"]), wide["zmax"]) == (["L2", "L5"], 1.0)
    assert [label.split()[0] for label in wide["x"]] == [str(i) for i in shown]
    assert wide["z"][1][shown.index(50)] == 1.0
    assert wide["z"][0][shown.index(20)] == 0.05
    assert traces["z"]["z"][1][2] == 0.5
    assert list(traces["q_by_position"]["y"]) == [f"L{layer} H{head}" for layer in (2, 5) for head in range(3)]
    assert traces["q_by_position"]["z"][1][shown.index(50)] == 0.3
    weak = maps.maps(patched({"q": a_result("q", {(0, 0): -0.01})}))[0].blocks[0]
    assert isinstance(weak, ChartGrid)
    assert weak.charts[0].figure.to_plotly_json()["data"][0]["zmax"] == 0.1


def test_hostile_tokens_are_shown_literally() -> None:
    """A page whose tokens, answers and model are hostile has the elements of a harmless one.

    All hostile texts stand in one, where each could still end a script or open an element; axes have each of its parts.
    """

    def page(word: str) -> Page:
        pair = base()
        strings = tuple([word, *HOSTILE][i % 11] for i in range(len(pair.clean_tokens)))
        hostile = replace(pair, strings=(strings, strings), said=(word, word))
        result = a_result("v_by_position", {(1, 1, 50): 0.9})
        *others, positions = result.axes
        labels = tuple(f"{i} {text}" for i, text in enumerate(strings))
        result = replace(result, axes=(*others, Axis(positions.name, labels)), metric=word)
        found = patched({"v_by_position": result, "z": a_result("z", {})}, {"v_by_position": result})
        found = found._replace(pair=hostile, answers=(word, word))
        record = a_record(model=word, command=word, arguments={"pair": word, "depth": word})
        return Page(render_article(report.article_of(found, record), record))

    plain, hostile = page("harmless"), page("".join(HOSTILE))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    labels = [label for chart in data_of(hostile)["charts"] for trace in chart["data"] for label in trace["x"]]
    assert any("&lt;img src=x" in label for label in labels)
    assert not any("<" in label or re.search(r"&(?!amp;|lt;|gt;)", label) for label in labels)
