"""Areas under curves, heads needed, and how far rankings agree, by plain loops over random cases."""

import itertools
import math

import pytest
import torch
from bounds import close
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.heads.ranking import HeadRanking
from analyses.study.rankings.agreement import kendall, spearman
from analyses.study.rankings.curves import Value, area, area_difference, areas, needed
from hybridlens.errors import InputError, ResultsError
from hybridlens.results import Cell, accuracy_points, tipping_interval, tipping_point


def ranking(scores: torch.Tensor, layers: tuple[int, ...] = (1, 5), lower: bool = False) -> HeadRanking:
    return HeadRanking(scores, layers, "by hand", lower)


@settings(max_examples=15)
@given(st.data())
def test_areas_and_heads_needed_by_plain_loops(data: st.DataObject) -> None:
    """Random scores at random counts, and heads needed against the tipping point of the results' own summary."""
    counts = (0, *sorted(data.draw(st.sets(st.integers(1, 15), min_size=1, max_size=5))), 16)
    value = st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0])
    rows = data.draw(st.lists(st.lists(value, min_size=len(counts), max_size=len(counts)), min_size=2, max_size=6))
    scores = torch.tensor(rows)
    plain = [
        sum((b - a) * (row[i] + row[i + 1]) / 2 for i, (a, b) in enumerate(itertools.pairwise(counts))) / 16
        for row in rows
    ]
    close(areas(scores, counts).tolist(), plain, dtype=torch.float32)
    found = area(scores, counts)
    close(found.value, sum(plain) / len(plain), dtype=torch.float32)
    assert 0 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= 1
    means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
    heads = needed(scores, counts, draws=500)
    under = [n for n, mean in zip(counts, means, strict=True) if mean < means[-1] / 2 - 1e-9]
    if all(abs(mean - means[-1] / 2) > 1e-6 for mean in means):
        assert heads.heads == (counts[counts.index(max(under)) + 1] if under else 0)
    assert heads.low <= heads.high
    cells = [
        Cell("m", "prefill", n, 110 + i, 50, False, 5 * s, "", 3, 9, 0.0, "h", scope="model", ranking="one")
        for i, row in enumerate(rows)
        for n, s in zip(counts, row, strict=True)
    ]
    tipping = tipping_point(accuracy_points(cells, "prefill", 5.0))
    interval = tipping_interval(cells, "prefill", draws=500)
    above = {None: counts[0], **dict(itertools.pairwise(counts))}
    if all(abs(mean - means[-1] / 2) > 1e-6 for mean in means):
        assert heads.heads == above[tipping]
    close(sum(interval.shares.values()), 1)


def test_heads_needed_have_the_tipping_points_interval() -> None:
    """Scores whose sums are exact in binary: the same draws give the same ends, one count higher."""
    rows = [[0, 0, 0.5, 1, 1], [0, 0.5, 0, 1, 1], [0, 0, 0, 1, 1], [0, 1, 1, 0, 1], [0, 1, 0, 0, 1], [0, 1, 1, 1, 1]]
    counts = (0, 2, 3, 5, 8)
    cells = [
        Cell("m", "prefill", n, 110 + i, 50, False, s, "", 3, 9, 0.0, "h")
        for i, row in enumerate(rows)
        for n, s in zip(counts, row, strict=True)
    ]
    interval = tipping_interval(cells, "prefill")
    above = {None: counts[0], **dict(itertools.pairwise(counts))}
    found = needed(torch.tensor(rows), counts)
    assert (found.low, found.high) == (above[interval.low], above[interval.high])
    assert found.low < found.high


def test_differences_of_areas_are_paired() -> None:
    """A curve that is better by as much at every prompt is told apart, though the prompts differ more than that."""
    counts = tuple(range(9))
    level = torch.rand(60, 1, generator=torch.Generator().manual_seed(0)).expand(60, 9) * 0.5
    worse, better = level.clone(), level + 0.3
    better[:, [0, -1]] = worse[:, [0, -1]]
    found = area_difference(better, worse, counts)
    close(found.value, 0.3 * 7 / 8, dtype=torch.float32)
    assert found.sign == 1
    assert area_difference(worse, better, counts).sign == -1
    assert area_difference(worse, worse, counts).sign == 0
    holed = better.clone()
    holed[:, 1::2] = float("nan")
    close(area_difference(holed, worse, counts).value, 0.3 * 3 / 4, dtype=torch.float32)  # at 0, 2, 4, 6, 8
    assert Value(0.1, -0.1, 0.3).sign == 0
    with pytest.raises(ResultsError, match="expected one for each, at least two, ascending"):
        areas(worse, counts[:-1])


@settings(max_examples=20)
@given(st.data())
def test_correlations_by_plain_loops(data: st.DataObject) -> None:
    """Few distinct scores, so that ties are many; the definitions written out pair by pair."""
    few = st.lists(st.integers(-2, 2), min_size=8, max_size=8)
    first, second = data.draw(few), data.draw(few)
    lower = data.draw(st.booleans())
    pair = [ranking(torch.tensor([v[:4], v[4:]]).float(), lower=lower and v is second) for v in (first, second)]
    if lower:
        second = [-v for v in second]

    def ranks(values: list[int]) -> list[float]:
        return [sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2 for v in values]

    def cosine(a: list[float], b: list[float]) -> float:
        norm = math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
        return sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else float("nan")

    def signs(values: list[int]) -> list[float]:
        return [float((a > b) - (a < b)) for a, b in itertools.combinations(values, 2)]

    rho = cosine(*([r - 3.5 for r in ranks(values)] for values in (first, second)))
    tau = cosine(signs(first), signs(second))
    close(float(spearman(pair)[0, 1]), rho, equal_nan=True, dtype=torch.float32)
    close(float(kendall(pair)[0, 1]), tau, equal_nan=True, dtype=torch.float32)


def test_correlations_of_one_order_and_its_reverse() -> None:
    scores = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
    rows = [ranking(scores), ranking(scores.exp()), ranking(scores, lower=True)]
    for found in (spearman(rows), kendall(rows)):
        close(found, torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]]))
    with pytest.raises(InputError, match=r"rankings of layers \[1, 5\] and \[2, 5\]"):
        spearman([rows[0], ranking(scores, (2, 5))])
