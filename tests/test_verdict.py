"""The verdicts on studies whose answers are known: as the paper says, its opposite, and what lies between."""

import math
from typing import Any

import pytest
from bounds import close
from hypothesis import given
from hypothesis import strategies as st
from verdict_studies import (
    ACROSS,
    BASE,
    DEPTHS,
    HEADS,
    JAMBA,
    LENGTHS,
    LIKE,
    RG,
    TWICE,
    benchmarks,
    by_id,
    curve,
    hundred,
    outcome,
    paper_like,
    row,
    table,
)

from analyses.study.benchmarks.results import BenchmarkRow
from analyses.study.claim_rules import few
from analyses.study.evidence import Check, Evidence, ModelFacts, judge
from analyses.study.groups import Estimate
from analyses.study.verdict import CLAIMS, verdicts
from analyses.study.views import ANSWERINGS, READINGS
from hybridlens.errors import ResultsError
from hybridlens.results import Cell, paired_difference


def test_a_study_as_the_paper_says() -> None:
    """Every claim of H1 and H2 that one model can decide holds; a rule turned round would say otherwise."""
    steps = {k: 0.0 if k < 2 else 5.0 for k in range(HEADS + 1)}
    twice = curve({0: 0.0, 1: 0.0, 2: 5.0, 8: 5.0}, lengths=TWICE, jrt=True)
    jamba = by_id(curve(steps) + curve(steps, phase="prefill") + twice, LIKE, JAMBA)
    expected = {claim.id for claim in CLAIMS if claim.hypothesis in ("H1", "H2")}
    expected -= {"h1-prefill-drop", "h2-glue-order", *ACROSS}
    assert {name for name, one in jamba.items() if one.outcome == "holds"} == expected
    assert "undecided" in jamba["h2-glue-order"].reason
    assert jamba["h1-prefill-drop"].reason == "the paper says it of recurrentgemma models"
    assert {name for name, one in jamba.items() if one.outcome == "fails"} == set()
    dropping = curve({k: 5.0 if k > 7 else 1.0 for k in range(HEADS + 1)}, phase="prefill")
    rg = by_id(curve(steps) + dropping + twice)
    assert rg["h1-prefill-drop"].outcome == "holds"
    assert rg["h1-prefill-alike"].reason == "the paper says it of jamba models"
    assert rg["h1-ablated"].outcome == "fails", "20 % at k = 0 in the prefill version is not zero"


def test_table_1_as_the_paper_says() -> None:
    """All claims of H3 hold but those about the window, for which no prompt is long enough."""
    found = by_id(table({("keep", "keep"): 2.5}), facts=RG._replace(window=512))
    third = {name: one.outcome for name, one in found.items() if one.hypothesis == "H3"}
    windows = {"h3-beyond-window", "h3-omit-window"}
    assert {name for name, said in third.items() if said == "holds"} == set(third) - windows
    assert "leaves the window of 512 tokens" in found["h3-beyond-window"].reason
    assert "no window" in by_id(table({("keep", "keep"): 2.5}), facts=RG._replace(window=None))["h3-omit-window"].reason


def test_the_opposite_of_the_paper() -> None:
    """Attention does nothing: every head can go, every manipulation passes, benchmarks break."""
    flat = dict.fromkeys(range(HEADS + 1), 5.0)
    cells = curve(flat) + curve({**flat, 0: 0.0, 1: 0.0, 2: 0.0, 3: 0.0}, phase="prefill")
    cells += curve(dict.fromkeys((0, 1, 2, 8), 5.0), lengths=TWICE, jrt=True)
    cells += table({(r, a): 5.0 for r in READINGS for a in ANSWERINGS})
    rows = benchmarks((0.80, 0.40, 0.30), (0.60, 0.30, 0.58), (1.0, 1.0, 1.0))
    found = by_id(cells, rows)
    assert {name for name, one in found.items() if one.outcome == "fails"} == {
        "h1-ablated", "h1-twice-ablated", "h1-tipping", "h1-prefill-drop", "h2-few-prefill", "h2-general-sparse",
        "h2-general-ablated", "h2-contrast", "h2-mmlu-sparse", "h2-mmlu-ablated", "h2-glue-order", "h3-omit",
        "h3-no-context", "h3-weights", "h3-omit-window",
    }  # fmt: skip


def test_nothing_run_is_nothing_tested() -> None:
    """Every claim says why, and none holds by default; measured is a dash."""
    for facts in (RG, JAMBA):
        for one in verdicts([], [], facts):
            assert (one.outcome, one.measured, one.paper) == ("not tested here", "–", "–")
            assert one.reason


def test_a_model_that_does_not_retrieve_proves_nothing() -> None:
    """All zero: accuracy at k = 0 is zero too, and says nothing of attention."""
    cells = curve(dict.fromkeys(range(HEADS + 1), 0.0)) + table(
        dict.fromkeys([(r, a) for r in READINGS for a in ANSWERINGS], 0.0)
    )
    found = by_id(cells)
    assert {one.outcome for one in found.values()} == {"not tested here"}
    assert found["h1-ablated"].reason == "the untouched model itself does not retrieve"
    lucky = curve(dict.fromkeys(range(HEADS + 1), 2.0), control=3.0)
    assert by_id(lucky)["h1-ablated"].reason == "the untouched model itself does not retrieve", "controls do better"


def some(right: int) -> Any:
    """A score for each of 100 prompts: 5 for the first `right`, else 0."""
    order = {(length, depth): i for i, (length, depth) in enumerate((a, b) for a in LENGTHS for b in DEPTHS)}
    return lambda length, depth: 5.0 if order[length, depth] < right else 0.0


@pytest.mark.parametrize(
    ("right", "said"), [(0, "holds"), (2, "holds"), (8, "not tested here"), (13, "not tested here"), (30, "fails")]
)
def test_zero_is_under_ten_percent(right: int, said: str) -> None:
    """Of 100 prompts: 2 right end at 5 %; 8 and 13 straddle ten, and say so; 30 start at 21 %."""
    found = by_id(curve({0: some(right), HEADS: 5.0}))["h1-ablated"]
    assert found.outcome == said
    assert found.reason.startswith("undecided: the interval holds the threshold in k = 0") == (right in (8, 13))
    assert f"k = 0, generation: {right:.1f} %" in found.measured
    assert "n = 100, chance 0.0 %" in found.measured


@pytest.mark.parametrize(("right", "said"), [(100, "holds"), (98, "holds"), (92, "not tested here"), (70, "fails")])
def test_near_perfect_is_ninety_percent_of_the_untouched_model(right: int, said: str) -> None:
    """k = 2 of 8 heads. With the untouched model at half its marks, half its marks are perfect."""
    cells = curve({2: some(right), HEADS: 5.0})
    assert outcome("h1-few", cells) == said
    assert outcome("h2-few-prefill", curve({2: some(right)}, phase="prefill") + curve({HEADS: 5.0})) == said
    assert outcome("h1-few", curve({2: 2.5, HEADS: 2.5})) == "holds"
    assert outcome("h1-stable", curve({6: some(right), HEADS: 5.0})) == said


def test_fifteen_percent_of_heads() -> None:
    assert [few(n) for n in (32, 16, 10, 8, 4)] == [5, 3, 2, 2, 1]


@pytest.mark.parametrize(
    ("lost", "said"),
    [((), "not tested here"), ((0,), "fails"), ((0, 1), "holds"), (range(5), "holds"), (range(6), "fails")],
)
def test_tipping_points_of_one_to_four_heads(lost: Any, said: str) -> None:
    """Retrieval lost at these k. At 0 only: one head is enough, which is not what the paper says."""
    found = by_id(curve({k: 0.0 if k in lost else 5.0 for k in range(HEADS + 1)}))["h1-tipping"]
    assert found.outcome == ("fails" if not lost else said)
    tips = max(lost, default="none")
    assert found.measured == f"tipping point {tips} of 8 heads ({tips} to {tips})"


def test_an_uncertain_tipping_point_decides_nothing() -> None:
    """At k = 5 half of the prompts are right: drawn again, the tipping point is at 5 or at 4."""
    cells = curve({k: 0.0 if k < 5 else some(50) if k == 5 else 5.0 for k in range(HEADS + 1)})
    found = by_id(cells)["h1-tipping"]
    assert (found.outcome, found.reason) == ("not tested here", "undecided: the interval reaches beyond 1 … 4")
    assert "(4 to 5)" in found.measured


def test_an_abrupt_fall_ends_at_zero() -> None:
    """18 % at the tipping point, as the tiny RecurrentGemma has, is not zero."""
    cells = {k: 0.0 if k < 1 else some(30) if k == 1 else 5.0 for k in range(HEADS + 1)}
    assert outcome("h1-abrupt", curve(cells)) == "fails"
    assert outcome("h1-abrupt", curve({**cells, 1: some(1)})) == "holds"


def test_reading_twice_is_measured_against_reading_twice() -> None:
    """All heads reach 40 % read twice: 5 % is lost then, and 35 % is not, whatever was reached read once."""
    once = curve({0: 0.0, 1: 0.0, 2: 5.0, HEADS: 5.0})

    def twice(at_1: float, at_2: float = 2.0) -> list[Cell]:
        return once + curve({0: 0.25, 1: at_1, 2: at_2, HEADS: 2.0}, lengths=TWICE, jrt=True)

    assert outcome("h1-twice-ablated", twice(0.25)) == "holds"
    assert outcome("h1-twice-few", twice(0.25)) == "holds", "k = 2 was never lost, so it has nothing to bring back"
    assert outcome("h1-twice-few", twice(1.75)) == "fails"
    kept = [one for one in twice(0.25) if one.jrt] + curve({1: 5.0, 2: 5.0, HEADS: 5.0})
    assert "nothing to bring back" in by_id(kept)["h1-twice-few"].reason
    assert "not run: k = 1, read once" in by_id(curve({HEADS: 2.0}, lengths=TWICE, jrt=True))["h1-twice-few"].reason


def test_versions_alike_in_the_mean_over_k() -> None:
    """A difference at one of eight k counts an eighth: 5 points in all; at every k it is 40 points."""
    generation = curve(dict.fromkeys(range(HEADS), 2.0) | {HEADS: 5.0})
    alike = generation + curve({k: 4.0 if k == 3 else 2.0 for k in range(HEADS)} | {HEADS: 5.0}, phase="prefill")
    found = by_id(alike, facts=JAMBA)["h1-prefill-alike"]
    assert (found.outcome, found.measured.count("+5.0 points")) == ("holds", 1)
    apart = generation + curve(dict.fromkeys(range(HEADS), 4.0) | {HEADS: 5.0}, phase="prefill")
    assert outcome("h1-prefill-alike", apart, facts=JAMBA) == "fails"
    assert outcome("h1-prefill-alike", generation, facts=JAMBA) == "not tested here"


@pytest.mark.parametrize(("claim", "pair"), [
    ("h3-omit", ("null", "omit")), ("h3-no-context", ("only", "only")), ("h3-weights", ("keep", "binary")),
])  # fmt: skip
def test_one_exception_refutes_what_is_said_of_all(claim: str, pair: tuple[str, str]) -> None:
    """One combination that retrieves fails its claim, also where others were not run; a missing one leaves it open."""
    cells = table({("keep", "keep"): 2.5, pair: 3.5})
    assert outcome(claim, cells) == "fails"
    rest = [c for c in cells if (c.reading, c.answering) in (("keep", "keep"), pair)]
    assert outcome(claim, rest) == "fails"
    missing = [c for c in table({("keep", "keep"): 2.5}) if (c.reading, c.answering) != pair]
    found = by_id(missing)[claim]
    assert (found.outcome, found.reason) == (
        "not tested here",
        f"not run: {pair[1].capitalize()}-{pair[0].capitalize()}",
    )


def test_names_of_combinations_are_generation_first() -> None:
    """Omit while answering, Null while reading is Omit-Null; the other way round it is Null-Omit."""
    measured = by_id(table({("keep", "keep"): 2.5, ("null", "omit"): 1.0}))["h3-omit"].measured
    assert "Omit-Null: 20.0 %" in measured
    assert "Null-Omit" not in measured


def test_improvement_needs_room() -> None:
    """At full marks nothing can be better; at 50 % it can, and one that is worse refutes the claim."""
    assert by_id(table({("keep", "keep"): 5.0}))["h3-improves"].reason == "Keep-Keep leaves no room above it"
    assert outcome("h3-improves", table({("keep", "keep"): 2.5})) == "holds"
    assert outcome("h3-improves", table({("keep", "keep"): 2.5, ("null", "keep"): 1.5})) == "fails"


def test_needles_beyond_the_window() -> None:
    """Window 256, prompts of 400 tokens: the needle at depth 0 to 33 % ends before token 144, and has left.

    Keep-Omit retrieves inside the window only. Were the window ignored, its 60 % would not be lost.
    """

    def inside(length: int, depth: int) -> float:
        return 5.0 if depth > 33 else 0.0

    def study(lengths: tuple[int, ...], beyond: Any) -> list[Cell]:
        cells = hundred(5.0, lengths=lengths)
        return (
            cells
            + hundred(beyond, lengths=lengths, reading="omit")
            + hundred(inside, lengths=lengths, answering="omit")
        )

    long = tuple(range(400, 410))
    found = by_id(study(long, inside))
    assert found["h3-beyond-window"].outcome == "holds"
    assert "beyond the window: 0.0 %" in found["h3-beyond-window"].measured
    assert "n = 40" in found["h3-beyond-window"].measured
    assert found["h3-omit-window"].outcome == "holds"
    assert outcome("h3-beyond-window", study(long, 5.0)) == "fails"
    assert outcome("h3-beyond-window", study(LENGTHS[:6], inside)) == "not tested here"
    published = RG._replace(base=BASE._replace(semantics="published"))
    assert "published prompts" in by_id(study(long, inside), facts=published)["h3-beyond-window"].reason


@pytest.mark.parametrize(
    ("drop", "stderr", "said"),
    [(0.02, 0.005, "holds"), (0.30, 0.005, "fails"), (0.09, 0.02, "not tested here"), (0.02, None, "not tested here")],
)
def test_little_is_under_ten_points(drop: float, stderr: float | None, said: str) -> None:
    """By standard errors: 9 points ± 5.5 decide nothing, and no standard error decides nothing either."""
    rows = [row("tiny_grammar", 8, 0.9, stderr), row("tiny_grammar", 0, 0.9 - drop, stderr)]
    found = by_id([], rows)["h2-general-ablated"]
    assert found.outcome == said
    assert f"tiny_grammar, k = 0 of 8: −{100 * drop:.1f} points" in found.measured


def test_every_general_task_counts() -> None:
    """Grammar stays and facts go: the broad claim fails; MMLU is a claim of its own."""
    rows = [row(t, k, v) for t, k, v in (("tiny_grammar", 8, 0.9), ("tiny_grammar", 0, 0.9))]
    assert outcome("h2-general-ablated", [], rows) == "holds"
    rows += [row("tiny_facts", 8, 0.9), row("tiny_facts", 0, 0.3), row("mmlu", 8, 0.6), row("mmlu", 0, 0.1)]
    assert outcome("h2-general-ablated", [], rows) == "fails"
    assert outcome("h2-mmlu-ablated", [], rows) == "holds"
    assert outcome("h2-mmlu-sparse", [], rows) == "not tested here"


def test_the_contrast_is_between_losses() -> None:
    """Retrieval loses 75 points and grammar 1: far more. Equal losses refute it, and so do cells."""

    def rows(retrieval: float, grammar: float) -> list[BenchmarkRow]:
        return [row("tiny_retrieval", 8, 1.0), row("tiny_retrieval", 0, retrieval), row("tiny_grammar", 8, 0.9),
                row("tiny_grammar", 0, grammar)]  # fmt: skip

    assert outcome("h2-contrast", [], rows(0.25, 0.89)) == "holds"
    assert outcome("h2-contrast", [], rows(0.5, 0.4)) == "fails"
    assert outcome("h2-contrast", curve({0: 5.0, 8: 5.0}, phase="prefill"), rows(0.25, 0.89)) == "fails"
    gone = curve({0: 0.0, 8: 5.0}, phase="prefill")
    assert outcome("h2-contrast", gone, rows(0.25, 0.89)) == "holds"
    assert outcome("h2-contrast", gone, rows(0.25, 0.89)[2:]) == "holds"
    assert outcome("h2-contrast", gone) == "not tested here"


def test_changes_of_a_score() -> None:
    """Document by document where scores are kept; GLUE's standard error from its tasks; NaN where none is known."""
    many = (1.0, 0.0) * 50
    paired = [row("mmlu", 8, 0.5, scores=many), row("mmlu", 0, 0.4, scores=(*many[:80], *(0.0,) * 20))]
    change = Evidence([], paired, RG).change("mmlu", 0)
    close(change.mean, -0.1)
    assert change == Estimate(change.mean, *paired_difference(paired[1].scores, many), 100)
    glue = [row("glue", k, 0.8, None) for k in (8, 0)]
    assert math.isnan(Evidence([], glue, RG).change("glue", 0).low)
    parts = [row(task, k, 0.8, error) for k in (8, 0) for task, error in (("cola", 0.03), ("sst2", 0.04))]
    change = Evidence([], glue + parts, RG).change("glue", 0)
    close(change.high, 1.959964 * math.sqrt(2) * 0.05 / 2)
    assert Evidence([], glue, RG).change("glue", 5) is None
    first = [row("mmlu", 8, 0.6), row("mmlu", 8, 0.1), row("mmlu", 0, 0.6)]
    assert Evidence([], first, RG).change("mmlu", 0).mean == 0, "the first metric is the main one"
    sparse = Evidence([], [row("glue", k, 0.5) for k in (8, 5, 1, 0)], RG)
    assert (sparse.sparse_k(["glue"]), sparse.sparse_k(["mmlu"])) == (1, None)


@pytest.mark.parametrize(
    ("name", "heads", "paper"),
    [
        ("google/recurrentgemma-2b", 10, "1 of 10 heads"),
        ("google/recurrentgemma-2b-it", 10, "1 of 10 heads"),
        ("/somewhere/RecurrentGemma-9B/", 16, "2 of 16 heads"),
        ("ai21labs/AI21-Jamba-Mini-1.6", 32, "4 of 32 heads"),
        ("ai21labs/AI21-Jamba-Mini-1.5", 32, "–"),
        ("google/recurrentgemma-2b", 8, "–"),
        ("tiny-recurrentgemma", 8, "–"),
    ],
)
def test_the_papers_numbers_belong_to_its_models(name: str, heads: int, paper: str) -> None:
    """A model of the same family and another size, or one that only bears the name, has no number."""
    facts = ModelFacts(name, "recurrentgemma", 256, BASE._replace(n_heads=heads))
    assert by_id([], facts=facts)["h1-tipping"].paper == paper


def test_numbers_that_do_not_follow_are_asserted_nowhere() -> None:
    """84 % of MMLU and 2.8 points of GLUE are in the paper's text, and contradict its other numbers."""
    said = " ".join(f"{claim.sentence} {claim.rule} {claim.paper}" for claim in CLAIMS)
    assert "84" not in said
    assert "2.8" not in said
    for number in ("−6.6", "−9.1", "−6 points", "−42", "85.7", "53.0", "18.2", "17.0", "63.0", "70.6", "68.8", "3.7"):
        assert number in said, f"{number} is one of the paper's"
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    assert {claim.hypothesis for claim in CLAIMS} == {"H1", "H2", "H3"}


estimates = st.none() | st.tuples(st.floats(-1, 1), st.floats(0, 0.5), st.floats(0, 0.5)).map(
    lambda t: Estimate(t[0], t[0] - t[1], t[0] + t[2], 10)
)


@given(st.lists(st.tuples(estimates, st.booleans()), max_size=5))
def test_judging_is_what_a_loop_says(given_checks: list[tuple[Estimate | None, bool]]) -> None:
    """One on the wrong side refutes; else one missing, then one that straddles, leaves it open; else it holds."""
    expected = "holds" if given_checks else "not tested here"
    for found, _ in given_checks:
        if found is None or (found.low <= 0 <= found.high):
            expected = "not tested here"
    for found, above in given_checks:
        if found is not None and (found.high < 0 if above else found.low > 0):
            expected = "fails"
    finding = judge([Check(f"check {i}", found, above) for i, (found, above) in enumerate(given_checks)])
    assert finding.outcome == expected
    assert bool(finding.reason) == (expected != "holds")
    wrong = [i for i, (e, above) in enumerate(given_checks) if e is not None and (e.high < 0 if above else e.low > 0)]
    assert not wrong or finding.reason == "against it: " + ", ".join(f"check {i}" for i in wrong)


def test_other_experiments_change_no_verdict() -> None:
    """Cells of other needles, scopes, boundaries and semantics, all at full marks, are no evidence for these claims."""
    cells = paper_like()
    noise = [
        one
        for fields in (
            {"needle": "oslo"},
            {"scope": "model"},
            {"boundary": "first_new_token"},
            {"semantics": "published"},
        )
        for k in (0, 1, HEADS)
        for one in hundred(5.0, k=k, **fields)
    ]
    for both in (noise + cells, cells + noise):
        assert verdicts(both, [], RG) == verdicts(cells, [], RG)
    with pytest.raises(ResultsError, match="cells of toy and of other"):
        verdicts([*cells, *hundred(1.0, model="other")], [], RG)
