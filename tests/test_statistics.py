"""Intervals over prompts: what they cover, what they rest on, and where the tipping point lies."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bounds import close
from hypothesis import given
from hypothesis import strategies as st

from analyses.study.report import accuracy_table
from hybridlens.errors import ResultsError
from hybridlens.results import (
    Cell,
    accuracy_points,
    bootstrap_interval,
    finding,
    paired_difference,
    tipping_interval,
    tipping_point,
)
from hybridlens.results.statistics import FEW, resampled_means


def coverage(mean: float, n: int, samples: int = 300) -> float:
    """Share of samples of n scores of 0 or 1 whose interval holds the mean they were drawn with."""
    rng = np.random.default_rng(7)
    held = 0
    for i in range(samples):
        scores = [float(x) for x in rng.random(n) < mean]
        found = bootstrap_interval(scores, draws=1000, seed=i)
        held += found.low <= mean <= found.high
    return held / samples


@pytest.mark.parametrize(("mean", "n", "most"), [(0.5, 50, 0.99), (0.8, 100, 0.99), (0.97, 60, 1.0)])
def test_intervals_hold_the_mean_as_often_as_they_say(mean: float, n: int, most: float) -> None:
    """Nominal 95 %. An interval of one standard error covers 68 %, one of three 99.7 %.

    At a mean of 0.97 the percentiles alone cover 82 %: a sixth of the samples hold no miss at all.
    """
    assert 0.90 <= coverage(mean, n) <= most


def test_the_interval_is_the_textbook_one_where_that_is_good() -> None:
    """For 400 scores with mean 0.5 the normal approximation is close: 0.5 ± 1.96 · 0.5 / √400, to a percent."""
    found = bootstrap_interval([0.0, 1.0] * 200)
    assert found.low == pytest.approx(0.5 - 1.96 * 0.5 / 20, abs=0.006)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.5 / 20, abs=0.006)  # two scores, and the draws' own error


@pytest.mark.parametrize("distinct", [2, FEW, FEW + 1, 30])
def test_both_ways_of_drawing_have_the_bootstraps_mean_and_spread(distinct: int) -> None:
    """The variance of a bootstrap mean is exactly that of the scores over n, whichever way they are drawn."""
    scores = np.random.default_rng(1).permutation(np.arange(60.0) % distinct)
    means = resampled_means(np.stack([scores, -2 * scores], axis=1), 10_000, 3)
    assert means.shape == (10_000, 2)
    assert means[:, 0].mean() == pytest.approx(scores.mean(), abs=4 * scores.std() / math.sqrt(60 * 10_000))
    assert means[:, 0].var() == pytest.approx(scores.var() / 60, rel=0.06)  # 4 √(2 / 10,000)
    close(means[:, 1], -2 * means[:, 0], what="the columns have to share their prompts")


def test_equal_scores_still_leave_room() -> None:
    """By hand: 100 of 100 right leaves 0.025^(1/100) = 0.9638, the bound of Clopper and Pearson."""
    close(bootstrap_interval([1.0] * 100), (0.025**0.01, 1.0))
    close(bootstrap_interval([0] * 100), (0.0, 1 - 0.025**0.01))
    close(bootstrap_interval([0.4] * 100), (0.4 * 0.025**0.01, 0.4 + 0.6 * (1 - 0.025**0.01)))
    close(bootstrap_interval([5] * 3, level=0.8, highest=5), (5 * 0.1 ** (1 / 3), 5.0))
    close(paired_difference([1.0] * 100, [1.0] * 100), (0.025**0.01 - 1, 1 - 0.025**0.01))
    near = bootstrap_interval([1.0] * 99 + [0.0])
    assert near.low < 0.025**0.01, "one miss may not make the interval end higher than none"


@given(st.lists(st.integers(0, 10), min_size=1, max_size=40), st.integers(0, 3))
def test_an_interval_holds_its_mean_and_keeps_its_bounds(tenths: list[int], seed: int) -> None:
    """Any scores: between the bounds, around the mean, the same for the same seed, in any order and any unit."""
    scores = [x / 10 for x in tenths]
    found = bootstrap_interval(scores, draws=200, seed=seed)
    mean = sum(scores) / len(scores)
    assert 0 <= found.low <= mean + 1e-12
    assert mean - 1e-12 <= found.high <= 1
    assert found == bootstrap_interval(scores, draws=200, seed=seed)
    scaled = bootstrap_interval([5 * x for x in scores], draws=200, seed=seed, highest=5)
    close((scaled.low / 5, scaled.high / 5), found)


def test_seeds_and_levels_matter() -> None:
    """Another seed draws others; a higher level is wider."""
    scores = [x / 10 for x in (0, 1, 3, 10, 9, 7, 2, 2, 5, 10, 4)] * 3
    assert bootstrap_interval(scores, seed=0) != bootstrap_interval(scores, seed=1)
    wide, narrow = bootstrap_interval(scores, level=0.99), bootstrap_interval(scores, level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_paired_difference_is_of_pairs() -> None:
    """Scores that vary much but differ by 0.1 everywhere: pairs know it to ±0.09, two samples would not.

    Unpaired, the difference of two means with standard deviation 0.4 and 40 prompts is uncertain by ±0.18.
    """
    a = [0.9, 0.1] * 20
    b = [0.8, 0.0] * 20
    found = paired_difference(a, b)
    unseen = 1 - 0.025 ** (1 / 40)
    close(found, (0.1 - unseen * 1.1, 0.1 + unseen * 0.9))
    mixed = paired_difference([1.0] * 30 + [0.0] * 10, [0.0] * 10 + [1.0] * 30)
    assert mixed.low < 0 < mixed.high
    close(paired_difference(b, a).high, -found.low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([]), "no score to average"),
        (lambda: bootstrap_interval([0.5, 1.5]), r"score 1\.5 given, expected one between 0 and 1"),
        (lambda: bootstrap_interval([float("nan")]), "score nan given"),
        (lambda: bootstrap_interval([0.5], draws=0), "0 bootstrap draws asked for"),
        (lambda: bootstrap_interval([0.5], level=95.0), r"level 95\.0 given, expected one between 0 and 1"),
        (lambda: paired_difference([0.5], [0.5, 1.0]), "1 scores beside 2 given"),
        (lambda: paired_difference([2.0], [2.0]), r"score 2\.0 given"),
    ],
)
def test_what_has_no_interval_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        call()


def cells_of(scores: dict[int, list[float]], **change: Any) -> list[Cell]:
    """Cells of one phase: k -> the scores of its prompts, which are told apart by their length."""
    return [
        replace(
            Cell("m", "generation", k, 100 + i, 0, False, score, "", 3, 9, 0.1, "abc"),
            **change,
        )
        for k, row in scores.items()
        for i, score in enumerate(row)
    ]


def test_accuracy_points_have_the_interval_of_their_scores() -> None:
    """Each point's interval is that of its own k, in units of the highest score; controls have no part in it."""
    scores = {0: [0.0] * 6, 2: [0.0, 5.0, 5.0, 2.5, 1.0, 5.0], 4: [5.0] * 6}
    control = [replace(c, control=True, depth=None, needle_start=None, needle_end=None) for c in cells_of(scores)]
    for point in accuracy_points([*cells_of(scores), *control], "generation", 5.0):
        expected = bootstrap_interval([s / 5 for s in scores[point.k]])
        close((point.low, point.high), expected)
        assert point.low <= point.accuracy <= point.high


def test_the_table_prints_the_interval() -> None:
    """The row of each k, with numbers worked out from the interval itself; no control, so its column is empty."""
    cells = cells_of({0: [0.0] * 100, 4: [5.0] * 50 + [2.5] * 50})
    low, high = (100 * end for end in bootstrap_interval([1.0] * 50 + [0.5] * 50))
    lines = accuracy_table(cells, "m").splitlines()
    assert "(95 % interval over prompts)" in lines[0]
    assert [line.split() for line in lines[1:]] == [
        ["heads", "kept", "generation", "chance"],
        ["4", "75.0", f"({low:.1f}", "to", f"{high:.1f})"],
        ["0", "0.0", "(0.0", "to", "3.6)"],
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"jrt": True}, {"reading": "omit"}, {"answering": "null"}, {"scope": "model"}, {"semantics": "published"},
        {"boundary": "first_new_token"}, {"model": "other"},
    ],
)  # fmt: skip
def test_conditions_are_not_averaged_together(change: dict[str, Any]) -> None:
    """A store holds cells of several experiments; a mean over two of them would be of nothing."""
    mixed = [*cells_of({0: [1.0], 4: [5.0]}), *cells_of({4: [0.0]}, **change)]
    for call in (lambda: accuracy_points(mixed, "generation", 5.0), lambda: tipping_interval(mixed, "generation")):
        with pytest.raises(ResultsError, match=f"cells of {next(iter(change))} .* select one before averaging"):
            call()
    needles = [*cells_of({4: [5.0]}), *cells_of({4: [0.0]}, needle="oslo")]
    assert accuracy_points(needles, "generation", 5.0)[0].accuracy == 0.5


def test_the_tipping_point_is_the_largest_k_under_half() -> None:
    """By hand; exactly half is not under half, and a k that recovers below it does not hide it."""
    cells = cells_of({0: [0.0, 0.0], 1: [5.0, 5.0], 2: [2.0, 2.0], 3: [2.0, 3.0], 4: [5.0, 5.0]})
    points = accuracy_points(cells, "generation", 5.0)
    assert tipping_point(points) == finding(points, "generation").tipping_point == 2
    assert tipping_point(points[4:]) is None
    nothing = accuracy_points(cells_of({0: [0.0], 4: [0.0]}), "generation", 5.0)
    assert tipping_point(nothing) is None


def test_the_tipping_points_distribution_by_hand() -> None:
    """Two prompts have four equally likely draws: both first, both second, or one of each (half of them).

    The first prompt tips at k = 1, the second never; together accuracy at k = 1 is half of the full model's,
    which is not under half, and at k = 0 a quarter, which is.
    """
    cells = cells_of({0: [0.0, 2.5], 1: [0.0, 5.0], 4: [5.0, 5.0]})
    found = tipping_interval(cells, "generation", seed=2)
    assert list(found.shares) == [None, 0, 1]
    assert found.shares == pytest.approx({None: 0.25, 0: 0.5, 1: 0.25}, abs=0.02)  # sampling
    assert (found.low, found.high) == (None, 1)
    narrow = tipping_interval(cells, "generation", level=0.4)
    assert (narrow.low, narrow.high) == (0, 0)


def test_prompts_are_drawn_jointly_over_k() -> None:
    """Each prompt alone tips at k = 0 and no draw can tip elsewhere, though scores differ widely.

    Were each k drawn by itself, 5 of the full model's prompts would often meet 1's of k = 2 and tip there.
    """
    cells = cells_of({0: [0.2, 2.0], 2: [0.6, 5.0], 4: [0.6, 5.0]})
    found = tipping_interval(cells, "generation", draws=2000)
    assert found.shares == {None: 0.0, 0: 1.0, 2: 0.0}
    assert (found.low, found.high) == (0, 0)


def test_a_tipping_interval_wants_every_prompt_at_every_k() -> None:
    """A missing cell would pair one prompt's scores with another's."""
    cells = cells_of({0: [0.0, 2.5], 4: [5.0, 5.0]})
    with pytest.raises(ResultsError, match="1 cell is missing, first generation, k 4, length 101, depth 0 %"):
        tipping_interval(cells[:-1], "generation")
    with pytest.raises(ResultsError, match="no cell of phase 'prefill'"):
        tipping_interval(cells, "prefill")
    alone = tipping_interval(cells[2:], "generation")
    assert (alone.shares, alone.low, alone.high) == ({None: 1.0}, None, None)
