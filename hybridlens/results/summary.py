"""The numbers that a report states, computed from cells: accuracy, chance level, tipping point.

Accuracy is the mean score over the highest score the rubric gives. The chance level is the same number over
the controls, whose prompts hold no needle. How it fails: an empty selection raises `ResultsError`.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hybridlens.errors import ResultsError
from hybridlens.results.cells import PHASES, Cell


class AccuracyPoint(NamedTuple):
    """Accuracy with k heads kept per layer, between 0 and 1, beside its chance level.

    `chance` is None where no control was run; `n` and `n_control` count the prompts.
    """

    k: int
    accuracy: float
    chance: float | None
    n: int
    n_control: int


class Finding(NamedTuple):
    """What a sweep of one phase says.

    Attributes:
        phase: "generation" or "prefill".
        k_full: the largest k run, taken as the untouched model.
        full: accuracy there.
        tipping_point: the largest k at which accuracy is under half of `full`; None when there is none.
        at_tipping_point: accuracy there.
        k_least: the smallest k run.
        least: accuracy there.
        chance: chance level over all controls of the phase; None where no control was run.
    """

    phase: str
    k_full: int
    full: float
    tipping_point: int | None
    at_tipping_point: float | None
    k_least: int
    least: float
    chance: float | None


def phases_of(cells: Iterable[Cell]) -> list[str]:
    """The phases that occur, in the paper's order."""
    present = {cell.phase for cell in cells}
    return [phase for phase in PHASES if phase in present]


def ks_of(cells: Iterable[Cell], phase: str) -> list[int]:
    """The numbers of heads kept that occur in a phase with a needle, ascending."""
    return sorted({cell.k for cell in cells if cell.phase == phase and not cell.control})


def accuracy_points(cells: Sequence[Cell], phase: str, max_score: float | int) -> list[AccuracyPoint]:
    """Accuracy and chance level for every k of a phase, k ascending.

    Args:
        cells: cells of one model.
        phase: "generation" or "prefill".
        max_score: the most points the rubric gives.

    Raises:
        ResultsError: no cell of that phase holds a needle.
    """
    points: list[AccuracyPoint] = []
    for k in ks_of(cells, phase):
        scores = [c.score for c in cells if c.phase == phase and c.k == k and not c.control]
        controls = [c.score for c in cells if c.phase == phase and c.k == k and c.control]
        points.append(
            AccuracyPoint(
                k=k,
                accuracy=sum(scores) / len(scores) / max_score,
                chance=sum(controls) / len(controls) / max_score if controls else None,
                n=len(scores),
                n_control=len(controls),
            )
        )
    if not points:
        raise ResultsError(f"no cell of phase {phase!r} to average; phases present: {phases_of(cells)}")
    return points


def finding(points: Sequence[AccuracyPoint], phase: str) -> Finding:
    """The headline of one phase.

    Args:
        points: what `accuracy_points` returned for it, k ascending.
        phase: its name.
    """
    full, least = points[-1], points[0]
    fallen = [p for p in points if p.accuracy < full.accuracy / 2]
    controlled = [(p.chance, p.n_control) for p in points if p.chance is not None]
    total = sum(n for _, n in controlled)
    return Finding(
        phase=phase,
        k_full=full.k,
        full=full.accuracy,
        tipping_point=fallen[-1].k if fallen else None,
        at_tipping_point=fallen[-1].accuracy if fallen else None,
        k_least=least.k,
        least=least.accuracy,
        chance=sum(chance * n for chance, n in controlled) / total if total else None,
    )
