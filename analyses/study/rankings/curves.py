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
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hybridlens.errors import ResultsError
from hybridlens.results.statistics import (
    DRAWS,
    LEVEL,
    Interval,
    bootstrap_interval,
    paired_difference,
    resampled_means,
)


class Value(NamedTuple):
    """A number with its 95 % interval over prompts."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval is on one side of 0, else 0: not told apart from nothing."""
        return (self.low > 0) - (self.high < 0)


class Needed(NamedTuple):
    """The fewest heads from which on accuracy stays at or above half of the untouched model's, with its interval."""

    heads: int
    low: int
    high: int


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
    """The area over all prompts, with its interval.

    Raises:
        ResultsError: see `areas`.
    """
    each = areas(scores, counts)
    low, high = bootstrap_interval(each.tolist())
    return Value(float(each.mean()), low, high)


def area_difference(
    scores: Float[Tensor, "prompt count"], reference: Float[Tensor, "prompt count"], counts: Sequence[int]
) -> Value:
    """By how much an area is above the reference's over the same prompts, at the counts that both were run at.

    With no head and with all heads the two are the same run. Only what lies between is compared, which also bounds
    how far two areas can be apart: 15/16 for 17 counts, evenly spread.

    Raises:
        ResultsError: see `areas`; or other prompts.
    """
    both = run_at(scores) & run_at(reference)
    places = [place for place, ran in enumerate(both.tolist()) if ran]
    common = [counts[place] for place in places]
    first, second = (areas(_inside(rows[:, places]), common) for rows in (scores, reference))
    room = float(areas(_inside(torch.ones(1, len(places))), common))
    low, high = paired_difference(first.tolist(), second.tolist(), highest=room)
    return Value(float((first - second).mean()), low, high)


def _inside(scores: Float[Tensor, "prompt count"]) -> Float[Tensor, "prompt count"]:
    """The scores with 0 at both ends."""
    inside = scores.clone()
    inside[:, [0, -1]] = 0.0
    return inside


def run_at(scores: Float[Tensor, "prompt count"]) -> Bool[Tensor, "count"]:
    """True for the counts that were run: scores are NaN at others."""
    return ~scores.isnan().any(0)


def accuracies(scores: Float[Tensor, "prompt count"]) -> tuple[Float[Tensor, "count"], list[Interval]]:
    """Mean over prompts and its interval at each count; NaN at those not run."""
    intervals = [
        bootstrap_interval(column.double().tolist()) if ran else Interval(float("nan"), float("nan"))
        for column, ran in zip(scores.T, run_at(scores).tolist(), strict=True)
    ]
    return scores.mean(0), intervals


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
    places = [place for place, ran in enumerate(run_at(scores).tolist()) if ran]
    if not places:
        raise ResultsError("no count was run at every prompt; run the cells first")
    ran = scores[:, places].double().numpy()
    found = [counts[place] for place in places]
    middle = _needed(ran.mean(0, keepdims=True))[0]
    drawn = _needed(resampled_means(ran, draws, seed))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Needed(found[int(middle)], found[int(low)], found[int(high)])


def _needed(means: np.ndarray) -> np.ndarray:
    """For each row [draw, count] the place of the first count from which on no mean is under half of the last."""
    fallen = means < means[:, -1:] / 2
    return (fallen * np.arange(1, means.shape[1] + 1)).max(axis=1)
