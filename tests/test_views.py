"""The figures from synthetic cells: by hand, by plain loops, and with cells missing."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from bounds import close
from hypothesis import given, settings
from hypothesis import strategies as st
from study_cells import DEPTHS, LENGTHS, N, cell, grid, sweep

from analyses.study import views
from analyses.study.groups import Group, accuracy, compare
from analyses.study.views import Base, Condition, curves, tipping_spread
from hybridlens.errors import ResultsError
from hybridlens.results import Cell, bootstrap_interval, paired_difference

BASE = Base(N)
CURVE = {0: 0.0, 1: 2.0, 2: 4.0, 3: 5.0, 4: 5.0}
JRT = ((160, 300), (180, 340), (200, 380), (220, 420))


def drawn(seed: int, **fields) -> list[Cell]:
    """A grid of random scores in steps of half a point."""
    rng = random.Random(seed)
    scores = {(length, depth): rng.randrange(11) / 2 for length in LENGTHS for depth in DEPTHS}
    return grid(lambda length, depth: scores[length, depth], control=rng.randrange(3) / 2, **fields)


def noise() -> list[Cell]:
    """Cells of every other experiment, all with full marks: a view that lets one in is off."""
    return [
        *sweep({0: 5, N: 5}, needle="oslo"),
        *sweep({0: 5, N: 5}, scope="model"),
        *sweep({0: 5, N: 5}, boundary="first_new_token"),
        *sweep({0: 5, N: 5}, semantics="published"),
        *grid(5, lengths=(300, 340), k=0, jrt=True),
        *grid(5, reading="omit"),
        *grid(5, answering="omit"),
    ]


def plain_accuracy(cells: list[Cell], **fields) -> tuple[float, float, float, int]:
    """Mean, chance and count of the cells with these fields, by one loop."""
    total, count, floor, controls = 0.0, 0, 0.0, 0
    for one in cells:
        if all(getattr(one, name) == value for name, value in fields.items()):
            if one.control:
                floor, controls = floor + one.score, controls + 1
            else:
                total, count = total + one.score, count + 1
    return total / count / 5, floor / controls / 5 if controls else math.nan, count, controls


def test_figure_2_by_hand() -> None:
    """Scores 0, 2, 4, 5, 5 of 5: under half of the full model's from k = 1 down. Other experiments change nothing."""
    cells = sweep(CURVE) + sweep({**CURVE, 2: 2.0}, phase="prefill", control=1)
    for given_cells in (cells, noise() + cells, cells + noise()):
        found = views.fig2(given_cells, BASE)
        assert found.phases == ("generation", "prefill")
        assert found.ks == (0, 1, 2, 3, 4)
        close(found.accuracy.mean[0], torch.tensor([0, 0.4, 0.8, 1, 1]))
        close(found.accuracy.chance, torch.tensor([[0.0] * 5, [0.2] * 5]))
        assert found.accuracy.n.tolist() == [[20] * 5] * 2
        assert found.accuracy.n_control.tolist() == [[4] * 5] * 2
        assert found.tipping == (1, 2)
        assert [None if one is None else one.shares for one in found.intervals] == [
            {None: 0.0, 0: 0.0, 1: 1.0, 2: 0.0, 3: 0.0},
            {None: 0.0, 0: 0.0, 1: 0.0, 2: 1.0, 3: 0.0},
        ]


@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_figure_2_is_what_plain_loops_say(seed: int) -> None:
    """Random scores under every k and phase: means by a loop, intervals by the statistics on one list of scores."""
    cells = [
        one for k in range(N + 1) for phase in ("generation", "prefill") for one in drawn(seed + k, k=k, phase=phase)
    ]
    cells = [one for one in cells if one.phase == "generation" or one.k > 0]
    random.Random(seed).shuffle(cells)
    found = views.fig2(cells, BASE)
    for i, phase in enumerate(found.phases):
        for j, k in enumerate(found.ks):
            if phase == "prefill" and k == 0:
                assert math.isnan(found.accuracy.mean[i, j])
                assert math.isnan(found.accuracy.low[i, j])
                assert found.accuracy.n[i, j] == 0
                continue
            mean, floor, n, controls = plain_accuracy(cells, phase=phase, k=k)
            close(found.accuracy.mean[i, j], mean)
            close(found.accuracy.chance[i, j], floor)
            assert (found.accuracy.n[i, j], found.accuracy.n_control[i, j]) == (n, controls)
            scores = [
                one.score
                for one in sorted(cells, key=lambda c: (c.length, c.depth or 0))
                if (one.phase, one.k, one.control) == (phase, k, False)
            ]
            low, high = bootstrap_interval(scores, highest=5)
            close((found.accuracy.low[i, j], found.accuracy.high[i, j]), (low / 5, high / 5))
        full = plain_accuracy(cells, phase=phase, k=N)[0]
        under = [
            k for k in range(1 if phase == "prefill" else 0, N) if plain_accuracy(cells, phase=phase, k=k)[0] < full / 2
        ]
        assert found.tipping[i] == max(under, default=None)


def test_k_on_a_coarser_grid_are_left_out_of_figure_2() -> None:
    """The experiment of needles runs k = 1 at two lengths only, where this model fails: not the same prompts."""
    found = views.fig2(sweep({0: 0.0, N: 5.0}) + grid(1.0, lengths=(160, 220), k=1), BASE)
    assert found.ks == (0, N)
    assert found.tipping == (0,)


def test_an_unfinished_sweep_is_shown_as_far_as_it_goes() -> None:
    """One cell short at the full model: the other k were run everywhere; nothing common, and no interval is stated."""
    cells = sweep({0: 0.0, 2: 5.0})
    assert views.fig2([*cells, *grid(5.0)[1:]], BASE).ks == (0, 2)
    halves = [*grid(5.0, lengths=(160,), k=1), *grid(5.0, lengths=(180,))]
    shown = views.fig2(halves, BASE)
    assert shown.ks == (1, N)
    assert shown.accuracy.n.tolist() == [[5, 5]]
    assert shown.intervals == (None,)


def test_a_prompt_that_stands_at_several_places_counts_once() -> None:
    """One answer is no more evidence for standing at four depths: means, differences and intervals take it once."""
    scores = {0: 5, 25: 5, 50: 5, 75: 5, 100: 0}

    def hashed(depth: int) -> str:
        return "the same" if depth < 100 else "another"

    def cells(k: int, score: Callable[[int], int]) -> list[Cell]:
        return [cell(160, depth, score(depth), k=k, prompt_hash=hashed(depth)) for depth in DEPTHS]

    found = [*cells(N, scores.__getitem__), *cells(1, lambda depth: 0)]
    curve = curves(found, Base(N))["generation"]
    assert accuracy(curve[N]) == accuracy(Group({(160, 0.0): 5.0, (160, 100.0): 0.0}))
    once_each = Group({(160, 0.0): 0.0, (160, 100.0): 0.0})
    assert compare(curve[N], curve[1]) == compare(Group({(160, 0.0): 5.0, (160, 100.0): 0.0}), once_each)
    few = [one for one in found if one.depth in (0, 100)]
    assert tipping_spread(found, Base(N), "generation") == tipping_spread(few, Base(N), "generation")
    within = curve[N].within({(160, 50.0), (160, 75.0)})
    assert accuracy(within) == accuracy(Group({(160, 50.0): 5.0}))


def test_lengths_beside_the_main_grid_are_read_where_semantics_are_compared_alone() -> None:
    """The other semantics may need longer prompts than the grid has; figure 2 stays that of the grid."""
    main, beside = grid(5, k=N), grid(0, lengths=(240,), k=N)
    theirs = [replace(one, semantics="published", score=0) for one in beside]
    base = Base(N, lengths=LENGTHS)
    found = [*main, *beside, *theirs]
    assert accuracy(curves(found, base)["generation"][N]) == accuracy(curves(main, Base(N))["generation"][N])
    both = views.semantics_difference(found, base)
    assert both.accuracy.n.tolist() == [[len(DEPTHS)], [len(DEPTHS)]]
    assert both.accuracy.mean.tolist() == [[0.0], [0.0]]


def test_the_tipping_point_is_strictly_under_half() -> None:
    """2.5 of 5 is half, and not under it; no k under half is no tipping point."""
    assert views.fig2(sweep({0: 2.5, N: 5.0}), BASE).tipping == (None,)
    assert views.fig2(sweep({0: 2.4, N: 5.0}), BASE).tipping == (0,)
    assert views.fig2(sweep({0: 2.4, 1: 3.0, 2: 2.0, N: 5.0}), BASE).tipping == (2,)


def test_reading_twice_by_hand() -> None:
    """Equal contexts are compared: 420 tokens read twice with 220 read once, at the same depth."""
    once = sweep({0: 0.0, 1: 2.0, N: 4.0}) + grid(5.0, lengths=(240,), k=1)
    lengths = [twice for _, twice in JRT]
    twice = [
        *grid(0.0, lengths=lengths, k=0, jrt=True),
        *grid(lambda length, depth: 5.0 if length == 420 else 1.0, lengths=lengths, k=1, jrt=True, control=0.5),
        *grid(5.0, lengths=lengths, jrt=True),
    ]
    found = views.jrt(once + twice, BASE._replace(jrt_lengths=JRT))
    assert found.ks == (0, 1, N)
    close(found.accuracy.mean, torch.tensor([[0, 0.4, 0.8], [0, 0.4, 1.0]]))
    close(found.gain.mean, torch.tensor([0, 0.0, 0.2]))
    close(found.above_half.mean, torch.tensor([-0.5, -0.1, 0.5]))
    assert found.gain.n.tolist() == [20, 20, 20]
    low, high = paired_difference([1.0] * 15 + [5.0] * 5, [2.0] * 20, highest=5)
    close((found.gain.low[1], found.gain.high[1]), (low / 5, high / 5))
    close(found.accuracy.chance[:, 1].tolist(), [0.0, 0.1], dtype=torch.float32)
    with pytest.raises(ResultsError, match="no lengths to compare given"):
        views.jrt(once + twice, BASE)


@given(st.integers(0, 10**6))
@settings(max_examples=5)
def test_table_1_is_what_plain_loops_say(seed: int) -> None:
    """Every combination its own random scores; rows are readings, so a transposed table fails off its diagonal."""
    pairs = [(reading, answering) for reading in views.READINGS for answering in views.ANSWERINGS]
    cells = [
        one for i, (r, a) in enumerate(pairs) for one in drawn(seed + i, reading=r, answering=a)
        if (r, a) != ("null", "only")
    ]  # fmt: skip
    extra = sweep({0: 5.0, 1: 5.0})
    found = views.table1(extra + cells, BASE)
    keep = {(c.length, c.depth): c.score for c in cells if (c.reading, c.answering) == ("keep", "keep")}
    for i, reading in enumerate(found.readings):
        for j, answering in enumerate(found.answerings):
            if (reading, answering) == ("null", "only"):
                assert math.isnan(found.accuracy.mean[i, j])
                assert found.against_keep.n[i, j] == 0
                continue
            mean, floor, n, _ = plain_accuracy(cells, reading=reading, answering=answering)
            close(found.accuracy.mean[i, j], mean)
            close(found.accuracy.chance[i, j], floor)
            mine = [c for c in cells if (c.reading, c.answering) == (reading, answering) and not c.control]
            gap = sum(c.score - keep[c.length, c.depth] for c in mine) / n / 5
            close(found.against_keep.mean[i, j], gap)
            assert found.against_keep.low[i, j] <= gap + 1e-6
            assert found.against_keep.high[i, j] >= gap - 1e-6


def test_maps_put_each_score_in_its_place() -> None:
    """Every score says its own length and depth; conditions sorted, missing ones NaN, controls by length."""
    ladder = {place: i / 10 for i, place in enumerate((length, depth) for length in LENGTHS for depth in DEPTHS)}
    cells = sweep({N: lambda length, depth: ladder[length, depth], 0: 0.0}, control=1)
    cells += grid(2.0, reading="omit", lengths=(160, 200), control=None)
    found = views.maps(cells[::-1], BASE)
    assert found.conditions == (
        Condition("generation", 0),
        Condition("generation", N),
        Condition("generation", N, "omit"),
    )
    assert (found.lengths, found.depths) == (LENGTHS, DEPTHS)
    for i, length in enumerate(LENGTHS):
        for j, depth in enumerate(DEPTHS):
            close(found.score[1, i, j], ladder[length, depth] / 5)
            assert math.isnan(found.score[2, i, j]) == (length not in (160, 200))
    close(found.chance[:2], torch.full((2, 4), 0.2))
    assert bool(found.chance[2].isnan().all())
    twice = views.maps(cells + grid(5.0, lengths=(300,), k=0, jrt=True), BASE, read_twice=True)
    assert (twice.conditions, twice.lengths) == ((Condition("generation", 0),), (300,))


def test_needles_are_compared_at_common_places() -> None:
    """The paper's needle fails where only it was run; over needles the interval is that of their three means."""
    cells = sweep({0: 0.0, N: lambda length, depth: 5.0 if length in (160, 220) else 0.0})
    for name, score in (("oslo", 4.0), ("code", 3.0)):
        cells += sweep({0: 1.0, N: score}, lengths=(160, 220), needle=name, control=1)
    cells += grid(5.0, k=2)
    found = views.needles(cells[48:] + cells[:48], BASE)
    assert (found.needles, found.ks) == (("paper", "oslo", "code"), (0, N))
    close(found.accuracy.mean, torch.tensor([[0, 1.0], [0.2, 0.8], [0.2, 0.6]]))
    assert found.accuracy.n.unique().tolist() == [10]
    close(found.across.mean, torch.tensor([0.4 / 3, 0.8]))
    assert found.across.n.tolist() == [3, 3]
    close(found.across.chance.tolist(), [0.4 / 3] * 2, dtype=torch.float32)
    low, high = bootstrap_interval([1.0, 0.8, 0.6])
    close((found.across.low[1], found.across.high[1]), (low, high))


def test_contrasts_by_hand() -> None:
    """Second less first, at the places of both; the study's own value comes first, whichever it is."""
    cells = sweep(CURVE) + sweep({0: 0.0, 1: 3.0, N: 5.0}, lengths=(160, 200), scope="model")
    found = views.scopes(cells, BASE)
    assert (found.values, found.ks) == (("layer", "model"), (0, 1, N))
    close(found.accuracy.mean, torch.tensor([[0, 0.4, 1.0], [0, 0.6, 1.0]]))
    close(found.difference.mean, torch.tensor([0, 0.2, 0.0]))
    assert found.accuracy.n.unique().tolist() == [10]
    assert found.tipping == (1, 0)
    low, high = paired_difference([3.0] * 10, [2.0] * 10, highest=5)
    close((found.difference.low[1], found.difference.high[1]), (low / 5, high / 5))
    other = [*sweep({0: 1.0}, boundary="first_new_token"), *sweep({0: 3.0})]
    turned = views.boundaries(other, BASE._replace(boundary="first_new_token"))
    assert turned.values == ("first_new_token", "last_prompt_token")
    close(turned.difference.mean.tolist(), [0.4], dtype=torch.float32)


def test_semantics_cell_by_cell() -> None:
    """Of 48 pairs: one with another text of equal score, two with another score; what has no twin does not count."""
    clean = sweep({0: 0.0, N: 5.0})
    published = sweep({0: 0.0, N: 5.0}, semantics="published")
    published[0] = cell(160, 0, 0.0, k=0, semantics="published", text="other words")
    published[1] = cell(160, 25, 2.0, k=0, semantics="published")
    published[-1] = cell(220, None, 1.0, k=N, semantics="published")
    lonely = [*grid(3.0, k=1), *grid(3.0, k=2, semantics="published")]
    found = views.semantics_difference(lonely + published + clean, BASE)
    assert (found.n_cells, found.n_text, found.n_score) == (48, 3, 2)
    assert [(pair.clean.key, pair.published.text) for pair in found.differing] == [
        (clean[0].key, "other words"),
        (clean[1].key, "said 2.0"),
        (clean[-1].key, "said 1.0"),
    ]
    assert found.conditions == (Condition("generation", 0), Condition("generation", N))
    close(found.accuracy.mean, torch.tensor([[0, 1.0], [0.02, 1.0]]))
    close(found.difference.mean.tolist(), [0.02, 0.0], dtype=torch.float32)
    close(found.accuracy.chance[1].tolist(), [0.0, 0.05], dtype=torch.float32)


def test_near_ties_are_those_below() -> None:
    cells = [cell(160, depth, 1.0, margin=margin) for depth, margin in ((0, 0.0), (25, 9e-5), (50, 1e-4), (75, None))]
    assert [one.depth for one in views.near_ties(cells)] == [0, 25]
    assert [one.depth for one in views.near_ties(cells, 0.5)] == [0, 25, 50]


@pytest.mark.parametrize(
    ("view", "experiment"),
    [
        (views.fig2, "fig2"),
        (views.jrt, "fig3-jrt"),
        (views.table1, "table1"),
        (views.maps, "maps"),
        (views.needles, "needles"),
        (views.scopes, "scope"),
        (views.boundaries, "boundary"),
        (views.semantics_difference, "semantics"),
    ],
)
def test_what_was_not_run_is_said(view, experiment: str) -> None:
    """Nothing at all, or only cells of another kind: one line that names the experiment."""
    message = f"no cell of {experiment} to show; run it: hybridlens reproduce {experiment}"
    with pytest.raises(ResultsError, match=message):
        view([], BASE)
    if experiment not in ("fig2", "maps"):
        with pytest.raises(ResultsError, match=message):
            view(sweep(CURVE), BASE)
    if experiment != "semantics":
        with pytest.raises(ResultsError, match="cells of toy and of other given together"):
            view([*sweep(CURVE), *grid(1.0, model="other")], BASE)
