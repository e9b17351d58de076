"""When rankings are told apart: intervals by other means, the rule on planted scores, errors over repeated looks."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from bounds import close
from random_lens import benchmark_lens
from scipy import stats

from analyses.experiment.options.rankings import RankingsConfig
from analyses.study.rankings.calibration import calibration_haystack, judging_prompts
from analyses.study.rankings.deciding import ALPHA, Decision, decide, error_of, schedule
from analyses.study.rankings.fillers import copied_prompts
from hybridlens import niah
from hybridlens.errors import ResultsError, UnknownNameError

COUNTS = tuple(range(9))
INSIDE = 7 / 8
"""Of the width: what a difference at every count but the ends has of the area."""


def rows_of(levels: np.ndarray) -> dict[str, torch.Tensor]:
    """Rankings whose scores are these at each prompt and at every count between none and all: [ranking, prompt]."""
    scores = torch.from_numpy(levels)[..., None].repeat(1, 1, len(COUNTS))
    scores[..., 0], scores[..., -1] = 0.0, 1.0
    return dict(zip("abcdefgh", scores, strict=False))


def some_levels(means: list[float], prompts: int, draw: np.random.Generator, spread: float = 0.2) -> np.ndarray:
    """Scores that prompts share, more or less, so that rankings go together."""
    shared = draw.choice([-spread, spread], size=prompts)
    own = draw.choice([-spread / 2, spread / 2], size=(len(means), prompts))
    return np.clip(np.array(means)[:, None] + shared + own, 0.0, 1.0)


def test_schedules_double_and_spend_the_error_once() -> None:
    """Up to as many prompts as half the precision takes at three standard errors of a spread of 0.2."""
    looks = schedule(30, 0.03)
    assert looks == (30, 60, 120, 240, 480, 960, 1920)
    assert looks[-2] < (3 * 0.2 / 0.015) ** 2 <= looks[-1]
    close(sum(error_of(looks, k) for k in range(len(looks))), ALPHA)
    close(error_of(looks, 6), ALPHA / 2)
    assert schedule(40, 0.5) == (40,)


def test_intervals_are_students_and_clopper_pearsons() -> None:
    """The wider of scipy's paired t interval and of what a share not seen could do, at a look's share of the error."""
    draw, looks, wider = np.random.default_rng(0), (40, 80, 320), set[bool]()
    for prompts in (80, 320):
        levels = some_levels([0.6, 0.45, 0.5], prompts, draw)
        found = decide(rows_of(levels), COUNTS, 0.03, looks)
        level = 1 - ALPHA * {80: 1 / 8, 320: 3 / 4}[prompts] / 3  # three pairs
        for i, j in ((0, 1), (2, 0), (1, 2)):
            first, second = INSIDE * levels[i], INSIDE * levels[j]
            t = stats.ttest_rel(first, second).confidence_interval(level)
            unseen = stats.beta.ppf((1 + level) / 2, 1, prompts)
            mean = (first - second).mean()
            low, high = mean - unseen * (mean + INSIDE), mean + unseen * (INSIDE - mean)
            close(float(found.difference[i, j]), mean)
            close(float(found.low[i, j]), min(t.low, low), dtype=torch.float32)
            close(float(found.high[i, j]), max(t.high, high), dtype=torch.float32)
            wider.add(bool(t.low < low))
        close(found.low, -found.high.T)
    assert wider == {True, False}


def test_the_rule_on_planted_scores() -> None:
    """Three best that are equal, one that is better by less than the precision, one behind, and one not to be told."""
    draw, looks = np.random.default_rng(1), schedule(30, 0.03)
    n = looks[-2]
    levels = some_levels([0.5, 0.5, 0.5, 0.5, 0.5], n, draw)
    levels[1:] = levels[0]
    levels[1] -= 0.01
    levels[2] -= 0.1
    levels[3] -= 0.026 + draw.choice([-0.3, 0.3], size=n)
    found = decide(rows_of(levels), COUNTS, 0.03, looks)
    assert (found.equal, found.behind, found.open) == (("a", "b", "e"), ("c",), ("d",))
    assert found.prompts == n
    assert found.needed == looks[-1]
    assert [found.standing(name) for name in "bcd"] == ["equal", "behind", "open"]
    short = found.shortfall("c")
    close(short.value, 0.1 * INSIDE, dtype=torch.float32)
    assert 0 < short.low < short.value < short.high
    assert found.shortfall("a").value == 0
    early = decide({name: row[:30] for name, row in rows_of(levels).items()}, COUNTS, 0.03, looks)
    assert early.open == tuple("abcde")
    coarse = decide(rows_of(levels), COUNTS, 0.2, looks)
    assert (coarse.open, coarse.needed) == ((), None)
    with pytest.raises(UnknownNameError, match="'f' was not compared"):
        found.shortfall("f")


def test_few_prompts_or_rankings() -> None:
    """One prompt tells nothing; one ranking needs no telling; a row with holes is compared where both were run."""
    one = decide(rows_of(np.array([[1.0], [0.0]])), COUNTS, 0.03)
    assert (one.open, one.needed) == (("a", "b"), None)
    close(one.high, torch.tensor([[0, INSIDE], [INSIDE, 0]], dtype=torch.float64))
    alone = decide(rows_of(np.array([[1.0, 0.0]])), COUNTS, 0.03)
    assert (alone.equal, alone.open) == (("a",), ())
    same = rows_of(some_levels([0.5, 0.4], 30, np.random.default_rng(1)))
    assert decide({"a": same["a"], "b": same["a"]}, COUNTS, 0.03, (30, 60)).equal == ("a", "b")
    rows = rows_of(some_levels([0.8, 0.3], 400, np.random.default_rng(2)))
    rows["a"][:, 1::2] = math.nan
    found = decide(rows, COUNTS, 0.03)
    close(float(found.difference[0, 1]), float((rows["a"][:, 2] - rows["b"][:, 2]).double().mean()) * 0.75)
    assert found.behind == ("b",)


def test_scores_of_other_prompts_are_refused() -> None:
    """Differences are taken prompt by prompt."""
    rows = {"one": torch.rand(30, 3), "two": torch.rand(20, 3)}
    with pytest.raises(ResultsError, match=r"two has scores of \(20, 3\) prompts and counts, expected \(30, 3\)"):
        decide(rows, (0, 1, 2), 0.03)
    with pytest.raises(ResultsError, match="30 prompts given, but looks are at 20, 40"):
        decide({"one": rows["one"]}, (0, 1, 2), 0.03, (20, 40))


def test_errors_over_repeated_looks() -> None:
    """Studies of equal rankings, looked at four times: how many ever say that one keeps less, or that all is equal.

    Looking each time at plain 95 % intervals errs in many. True shortfalls above the precision are seldom said to be
    equal, and never by how far the differences spread in truth.
    """
    draw, looks, studies = np.random.default_rng(3), (12, 24, 48, 96), 40
    wrong = naive = equal = 0
    for _ in range(studies):
        levels = some_levels([0.5, 0.5, 0.5], looks[-1], draw, 0.4)
        seen = [decide(rows_of(levels[:, :n]), COUNTS, 0.03, looks) for n in looks]
        wrong += any(one.behind for one in seen)
        naive += any(stats.ttest_1samp(levels[i, :n] - levels[j, :n], 0).pvalue < 0.05
                     for n in looks for i, j in ((0, 1), (0, 2), (1, 2)))  # fmt: skip
        levels = some_levels([0.5, 0.4, 0.5], looks[-1], draw, 0.1)
        equal += any("b" in decide(rows_of(levels[:, :n]), COUNTS, 0.08, looks).equal for n in looks)
    allowed = ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / studies)
    assert wrong / studies <= allowed < naive / studies
    assert equal / studies <= allowed


def test_differences_of_the_precision_are_told_apart() -> None:
    """At the last look of the schedule, where differences spread no more than it is laid out for."""
    draw, looks = np.random.default_rng(4), schedule(30, 0.06)
    for apart, standing in ((0.06, "behind"), (0.0, "equal")):
        levels = 0.5 + np.array([apart / INSIDE, 0.0])[:, None] + draw.choice([-0.1, 0.1], size=(2, looks[-1]))
        found = decide(rows_of(levels), COUNTS, 0.06, looks)
        assert found.standing("b") == standing
        assert found.standing("a") == "equal"


def test_a_decision_is_stored_whole(tmp_path: Path) -> None:
    found = decide(rows_of(some_levels([0.5, 0.4], 30, np.random.default_rng(5))), COUNTS, 0.03, (30, 60))
    read = Decision.load(found.save(tmp_path / "decision.json"))
    close(read.low, found.low)
    assert (read.names, read.looks, read.needed) == (found.names, found.looks, found.needed)


def test_copies_of_the_grid_have_fillers_of_their_own() -> None:
    """As long as the grid's, no two of one text, nothing of the calibration, and independent of what else is asked."""
    lens = benchmark_lens("jamba")
    config = RankingsConfig(model="toy", lengths=(110, 131), depths=(0, 100), needles=(niah.PAPER_NEEDLE,))
    assert config.first == 4
    assert copied_prompts(lens, config, 0) == judging_prompts(lens, config)
    (grid,), (name, copy) = judging_prompts(lens, config).values(), *copied_prompts(lens, config, 2).items()
    assert name == "paper, filler 3"
    assert [(len(p.tokens), p.length, p.depth) for p in copy] == [(len(p.tokens), p.length, p.depth) for p in grid]
    fillers = [tuple(niah.Haystack("", p.text.replace(niah.PAPER_NEEDLE.sentence, "")).sentences[1:3]) for p in copy]
    assert len(set(fillers)) == len(copy)
    calibration = set(calibration_haystack(config).sentences)
    assert not any(sentence in calibration for filler in fillers for sentence in filler)
    (fewer,) = copied_prompts(lens, config.but(lengths=(131,), depths=(100, 0)), 2).values()
    assert [p.hash for p in fewer] == [copy[3].hash, copy[2].hash]
    own = niah.Haystack("own", " ".join(f"Word number {i} is here." for i in range(300)))
    (given,) = copied_prompts(lens, config.but(haystack=own), 1).values()
    assert len({p.text for p in given}) == len(given)
    assert all("Word number" in p.text for p in given)
