"""The numbers that a report states, computed from cells: accuracy, chance level, tipping point, their intervals.

Accuracy is the mean score over the highest score the rubric gives. The chance level is the same number over
the controls, whose prompts hold no needle. How it fails: an empty selection raises `ResultsError`, and so does
one that mixes conditions, since a mean over them would be of nothing; needles, lengths and depths may mix.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hybridlens.display import Several, many
from hybridlens.errors import ResultsError
from hybridlens.results.cells import PHASES, Cell
from hybridlens.results.statistics import DRAWS, LEVEL, bootstrap_interval, resampled_means

_CONDITIONS = ("model", "jrt", "reading", "answering", "scope", "semantics", "boundary", "ranking")


class AccuracyPoint(NamedTuple):
    """Accuracy with k heads kept per layer, between 0 and 1, beside its chance level.

    `chance` is None where no control was run; `n` and `n_control` count the prompts. `low` and `high` are the
    95 % interval of the accuracy over prompts (`hybridlens.results.statistics`).
    """

    k: int
    accuracy: float
    chance: float | None
    n: int
    n_control: int
    low: float
    high: float


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


class TippingInterval(NamedTuple):
    """Where the tipping point lies when the prompts are drawn again.

    Attributes:
        shares: tipping point -> share of the draws, None (accuracy never falls under half) first, then every k
            but the largest, ascending; they sum to 1.
        low: lower end of the central interval; None: no tipping point, which counts as below every k.
        high: its upper end.
    """

    shares: dict[int | None, float]
    low: int | None
    high: int | None


def phases_of(cells: Iterable[Cell]) -> list[str]:
    """The phases that occur, in the paper's order."""
    present = {cell.phase for cell in cells}
    return [phase for phase in PHASES if phase in present]


def ks_of(cells: Iterable[Cell], phase: str) -> list[int]:
    """The numbers of heads kept that occur in a phase with a needle, ascending."""
    return sorted({cell.k for cell in cells if cell.phase == phase and not cell.control})


def accuracy_points(cells: Sequence[Cell], phase: str, max_score: float | int) -> Several[AccuracyPoint]:
    """Accuracy and chance level for every k of a phase, k ascending.

    Args:
        cells: cells of one model.
        phase: "generation" or "prefill".
        max_score: the most points the rubric gives.

    Raises:
        ResultsError: no cell of that phase holds a needle, or the cells mix conditions.
    """
    points = Several[AccuracyPoint]()
    for k in _comparable_ks(cells, phase):
        scores = [c.score for c in cells if c.phase == phase and c.k == k and not c.control]
        controls = [c.score for c in cells if c.phase == phase and c.k == k and c.control]
        low, high = bootstrap_interval(scores, highest=max_score)
        points.append(
            AccuracyPoint(
                k=k,
                accuracy=sum(scores) / len(scores) / max_score,
                chance=sum(controls) / len(controls) / max_score if controls else None,
                n=len(scores),
                n_control=len(controls),
                low=low / max_score,
                high=high / max_score,
            )
        )
    return points


def tipping_point(points: Sequence[AccuracyPoint]) -> int | None:
    """The largest k at which accuracy falls under half of that at the largest k run; None when there is none.

    Args:
        points: what `accuracy_points` returned, k ascending.
    """
    fallen = [p.k for p in points if p.accuracy < points[-1].accuracy / 2]
    return fallen[-1] if fallen else None


def tipping_interval(
    cells: Sequence[Cell], phase: str, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> TippingInterval:
    """How sure the tipping point of a phase is: the prompts are drawn again, each with its scores at every k.

    Args:
        cells: cells of one model; controls are left out.
        phase: "generation" or "prefill".
        draws: how often the prompts are drawn again.
        level: confidence of the interval.
        seed: of the draws.

    Raises:
        ResultsError: no cell of that phase holds a needle, the cells mix conditions, or some prompt was not run
            at every k.
    """
    import numpy as np

    ks = _comparable_ks(cells, phase)
    found = {c.key: c.score for c in cells if c.phase == phase and not c.control}
    prompts = dict.fromkeys(key._replace(k=0) for key in found)
    missing = [key for prompt in prompts for k in ks if (key := prompt._replace(k=k)) not in found]
    if missing:
        lacking = many(len(missing), "cell is", "cells are")
        raise ResultsError(f"{lacking} missing, first {missing[0].words()}; run the sweep to its end")
    scores = np.array([[float(found[prompt._replace(k=k)]) for k in ks] for prompt in prompts])
    means = resampled_means(scores, draws, seed)
    fallen = means[:, :-1] < means[:, -1:] / 2
    # 0 where no k has fallen, else one more than the place of the largest that has.
    places = (fallen * np.arange(1, len(ks))).max(axis=1, initial=0)
    counts = np.bincount(places, minlength=len(ks))
    names: list[int | None] = [None, *ks[:-1]]
    ends = np.quantile(places, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    low, high = (names[int(end)] for end in ends)
    return TippingInterval({name: int(n) / draws for name, n in zip(names, counts, strict=True)}, low, high)


def _comparable_ks(cells: Sequence[Cell], phase: str) -> list[int]:
    """`ks_of`; refuses cells that differ in more than k and prompt, and none at all."""
    chosen = [cell for cell in cells if cell.phase == phase]
    for name in _CONDITIONS:
        values = list(dict.fromkeys(getattr(cell, name) for cell in chosen))
        if len(values) > 1:
            raise ResultsError(
                f"cells of {name} {values[0]!r} and {values[1]!r} given together; select one before averaging"
            )
    ks = ks_of(chosen, phase)
    if not ks:
        raise ResultsError(f"no cell of phase {phase!r} to average; phases present: {phases_of(cells)}")
    return ks


def finding(points: Sequence[AccuracyPoint], phase: str) -> Finding:
    """The headline of one phase.

    Args:
        points: what `accuracy_points` returned for it, k ascending.
        phase: its name.
    """
    full, least, tipping = points[-1], points[0], tipping_point(points)
    controlled = [(p.chance, p.n_control) for p in points if p.chance is not None]
    total = sum(n for _, n in controlled)
    return Finding(
        phase=phase,
        k_full=full.k,
        full=full.accuracy,
        tipping_point=tipping,
        at_tipping_point=next((p.accuracy for p in points if p.k == tipping), None),
        k_least=least.k,
        least=least.accuracy,
        chance=sum(chance * n for chance, n in controlled) / total if total else None,
    )
