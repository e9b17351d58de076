"""What one curve of accuracy against heads kept says: its area, the heads it needs, and how sure that is.

All of it starts from scores [prompt, count], 0 … 1, at counts that run from no head to all.

* Area: under straight lines between the counts, as a share of the whole width; 1 where retrieval survives with no
  head, and the mean accuracy where counts are evenly spread. It is linear in the scores, so that it is a mean over
  prompts of areas of their own, and its interval is that of a mean (`hybridlens.results.statistics`).
* Heads needed: the fewest from which on accuracy stays at or above half of the untouched model's. It is one count
  above `hybridlens.results.tipping_point`, the largest at which accuracy is under half.

How it fails: a ranking may lose retrieval and win it back with fewer heads; heads needed then count the last loss
only. Where the untouched model answers nothing, half of it is nothing, and no head is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.display import Displayed, many, number
from hybridlens.errors import ResultsError
from hybridlens.results.statistics import (
    DRAWS,
    LEVEL,
    bootstrap_interval,
    paired_difference,
    resampled_means,
)


class _Value(NamedTuple):
    """Fields of `Value`."""

    value: float
    low: float
    high: float


class Value(Displayed, _Value):
    """A number with its 95 % interval over prompts."""

    __slots__ = ()

    def summary(self) -> str:
        """The number and its interval."""
        return f"{number(self.value, 3)}, 95 %: {number(self.low, 3)} to {number(self.high, 3)}"

    @property
    def sign(self) -> int:
        """1 or -1 where the interval is on one side of 0, else 0: not told apart from nothing."""
        return (self.low > 0) - (self.high < 0)


class _Needed(NamedTuple):
    """Fields of `Needed`."""

    heads: int
    low: int
    high: int


class Needed(Displayed, _Needed):
    """The fewest heads from which on accuracy stays at or above half of the untouched model's, with its interval."""

    __slots__ = ()

    def summary(self) -> str:
        """The number and its interval."""
        return f"{many(self.heads, 'head')}, 95 %: {self.low} to {self.high}"


def areas(scores: Float[Tensor, "prompt count"], counts: Sequence[int]) -> Float[Tensor, "prompt"]:
    """Each prompt's area, 0 … 1, by the trapezoid rule.

    Raises:
        ResultsError: fewer than two counts, counts that do not rise, or not one for each column.
    """
    at = torch.tensor(list(counts), dtype=torch.float64)
    if len(at) < 2 or bool((at.diff() <= 0).any()) or scores.shape[1] != len(at):
        raise ResultsError(
            f"scores at {scores.shape[1]} counts with the counts {list(counts)} given; expected one for each, "
            "at least two, ascending"
        )
    return (torch.trapezoid(scores.double(), at) / (at[-1] - at[0])).clamp(0.0, 1.0)


def area(scores: Float[Tensor, "prompt count"], counts: Sequence[int]) -> Value:
    """The area over all prompts at the counts that were run, with its interval.

    Raises:
        ResultsError: see `areas`.
    """
    places = _run_at(scores)
    each = areas(scores[:, places], [counts[place] for place in places])
    return Value(float(each.mean()), *bootstrap_interval(each.tolist()))


def area_difference(
    scores: Float[Tensor, "prompt count"], reference: Float[Tensor, "prompt count"], counts: Sequence[int]
) -> Value:
    """By how much an area is above the reference's over the same prompts, at the counts that both were run at.

    With no head and with all heads the two are the same run. Only what lies between is compared, which also bounds
    how far two areas can be apart: 15/16 for 17 counts, evenly spread.

    Raises:
        ResultsError: see `areas`; or other prompts.
    """
    first, second, highest = common_areas(scores, reference, counts)
    interval = paired_difference(first.tolist(), second.tolist(), highest=highest)
    return Value(float((first - second).mean()), *interval)


def common_areas(
    scores: Float[Tensor, "prompt count"], reference: Float[Tensor, "prompt count"], counts: Sequence[int]
) -> tuple[Float[Tensor, "prompt"], Float[Tensor, "prompt"], float]:
    """Each prompt's two areas at the counts that both were run at, but for the ends, and the most that one can be.

    Raises:
        ResultsError: see `areas`.
    """
    places = _run_at(scores, reference)
    common = [counts[place] for place in places]
    between = torch.ones(1, len(places))
    between[:, [0, -1]] = 0.0
    first, second = (areas(rows[:, places] * between, common) for rows in (scores, reference))
    return first, second, float(areas(between, common))


def _run_at(*rows: Float[Tensor, "prompt count"]) -> list[int]:
    """The places of the counts at which all of these were run: scores are NaN at others."""
    return cast(list[int], (~torch.cat(rows).isnan().any(0)).nonzero()[:, 0].tolist())


def accuracies(scores: Float[Tensor, "prompt count"]) -> Float[Tensor, "3 count"]:
    """Mean over prompts, and the two ends of its interval, at each count; NaN at those not run."""
    found = torch.full((3, scores.shape[1]), float("nan"))
    found[0] = scores.mean(0)
    for place in _run_at(scores):
        found[1:, place] = torch.tensor(bootstrap_interval(scores[:, place].double().tolist()))
    return found


def needed(
    scores: Float[Tensor, "prompt count"],
    counts: Sequence[int],
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Needed:
    """How many heads it takes, with an interval: prompts are drawn again, each with its scores at every count.

    Raises:
        ResultsError: no count was run, or draws under 1.
    """
    places = _run_at(scores)
    if not places:
        raise ResultsError("no count was run at every prompt; run the cells first")
    ran = scores[:, places].double().numpy()
    ends = [(1 - level) / 2, (1 + level) / 2]
    drawn = np.quantile(_needed(resampled_means(ran, draws, seed)), ends, method="inverted_cdf")
    return Needed(*(counts[places[int(at)]] for at in (*_needed(ran.mean(0, keepdims=True)), *drawn)))


def _needed(means: np.ndarray) -> np.ndarray:
    """For each row [draw, count] the place of the first count from which on no mean is under half of the last."""
    fallen = means < means[:, -1:] / 2
    return (fallen * np.arange(1, means.shape[1] + 1)).max(axis=1)
