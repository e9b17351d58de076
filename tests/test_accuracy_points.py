"""Accuracy over k and the tipping point, worked by hand."""

from dataclasses import replace

import pytest
from bounds import close
from small_runs import cell

from hybridlens.errors import ResultsError
from hybridlens.results import Cell, accuracy_points, finding


def scored(k: int, score: float, control: bool = False) -> Cell:
    """A cell of the generation phase with a given score."""
    base = cell("generation", k, 64, None if control else 0)
    return replace(base, score=score)


def test_accuracy_and_the_tipping_point_by_hand() -> None:
    """Worked by hand: means 0.1, 0.4, 0.3, 0.9 of 5 points; half of 0.9 is 0.45: k = 2 is the last below."""
    cells = [
        *(scored(k, s) for k, s in ((0, 0), (0, 1), (1, 2), (1, 2), (2, 1), (2, 2), (8, 4), (8, 5))),
        scored(0, 1, control=True),
        scored(8, 0, control=True),
    ]
    points = accuracy_points(cells, "generation", 5.0)
    assert [p.k for p in points] == [0, 1, 2, 8]
    close([p.accuracy for p in points], [0.1, 0.4, 0.3, 0.9])
    assert [p.chance for p in points] == [0.2, None, None, 0.0]  # 1 of 5, which is rounded once
    assert [(p.n, p.n_control) for p in points] == [(2, 1), (2, 0), (2, 0), (2, 1)]
    found = finding(points, "generation")
    assert (found.k_full, found.tipping_point, found.k_least) == (8, 2, 0)
    close((found.full, found.at_tipping_point, found.least, found.chance), (0.9, 0.3, 0.1, 0.1))
    assert finding(points[3:], "generation").tipping_point is None
    with pytest.raises(ResultsError, match="no cell of phase 'prefill'"):
        accuracy_points(cells, "prefill", 5.0)
