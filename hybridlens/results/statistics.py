"""How sure a mean over prompts is: bootstrap intervals, and those of differences over the same prompts.

Mechanism: the prompts are drawn again with replacement, many times, and the percentiles of the means are the
interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Prompts of equal score
are interchangeable, so where few scores are distinct it is enough, and quicker, to draw how often each
occurs, which is multinomial.

The bootstrap knows only scores that occurred: where all are equal its interval has no width, and near that it
is too narrow. But n prompts can miss a kind of prompt whose share is up to r = 1 - (α/2)^(1/n), the bound of
Clopper and Pearson (Biometrika 26, 1934) for 0 of n events, about 3.7/n at 95 % (the one-sided "rule of
three" has 3/n). So every interval is widened, where it is not already wider, to what the mean would be were
a share r of all prompts to score the lowest, or the highest, that is possible. In 1,500 simulated samples of
scores of 0 and 1 the 95 % intervals held the mean in 96 % (mean 0.5, 50 prompts), 96 % (0.9, 50), 99.7 %
(0.97, 100) and 100 % (0.99, 100); percentiles alone in 96, 96, 95 and 64 %.

How it fails: prompts are taken for independent draws of one kind. Those of a grid share filler and are spread
evenly over lengths and depths; the interval says how another draw of such prompts might come out, not another
model or another needle. `ResultsError` for no scores, or scores outside their bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from hybridlens.errors import ResultsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DRAWS = 10_000
LEVEL = 0.95
FEW = 3
BLOCK = 100_000
"""Scores drawn at once where many are distinct: what stays in the processor's cache."""

Scores: TypeAlias = "Sequence[float | int] | Sequence[float] | Sequence[int]"


class Interval(NamedTuple):
    """A confidence interval, in the units of what it is about."""

    low: float
    high: float


def bootstrap_interval(
    scores: Scores,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
    highest: float | int = 1.0,
    lowest: float | int = 0.0,
) -> Interval:
    """Interval of the mean score over prompts: percentile bootstrap, widened as the module says.

    Args:
        scores: one for each prompt, between `lowest` and `highest`.
        draws: how often the prompts are drawn again.
        level: confidence, between 0 and 1.
        seed: of the draws; equal arguments give equal intervals.
        highest: the most that a prompt can score.
        lowest: the least.

    Raises:
        ResultsError: no score, a score outside its bounds, draws under 1, or a level outside 0 to 1.
    """
    import numpy as np
    from scipy.stats import beta

    if not 0 < level < 1:
        raise ResultsError(f"confidence level {level} given, expected one between 0 and 1, such as 0.95")
    _check_bounds(scores, lowest, highest)
    values = np.asarray(scores, dtype=np.float64)
    outside = (1.0 - level) / 2
    means = resampled_means(values[:, None], draws, seed)[:, 0]
    low, high = np.quantile(means, [outside, 1.0 - outside])
    mean, unseen = float(values.mean()), float(beta.ppf(1.0 - outside, 1, len(values)))
    return Interval(
        max(float(lowest), min(float(low), mean - unseen * (mean - lowest))),
        min(float(highest), max(float(high), mean + unseen * (highest - mean))),
    )


def paired_difference(
    a: Scores, b: Scores, draws: int = DRAWS, level: float = LEVEL, seed: int = 0, highest: float | int = 1.0
) -> Interval:
    """Interval of the mean of `a` - `b` over the same prompts, each drawn again with both its scores.

    Args:
        a: one score for each prompt, between 0 and `highest`; other arguments as `bootstrap_interval`.
        b: the scores of the same prompts, in the same order, under another condition.

    Raises:
        ResultsError: see `bootstrap_interval`; or `a` and `b` differ in length.
    """
    if len(a) != len(b):
        raise ResultsError(f"{len(a)} scores beside {len(b)} given; expected two for each prompt, in the same order")
    for scores in (a, b):
        _check_bounds(scores, 0, highest)
    differences = [float(x) - float(y) for x, y in zip(a, b, strict=True)]
    return bootstrap_interval(differences, draws, level, seed, highest, lowest=-highest)


def resampled_means(scores: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """Means over prompts drawn again with replacement, the same prompts for every column.

    Args:
        scores: [prompt, column].
        draws: how often.
        seed: of the draws.

    Returns:
        [draw, column].

    Raises:
        ResultsError: no prompt, or draws under 1.
    """
    import numpy as np

    if draws < 1:
        raise ResultsError(f"{draws} bootstrap draws asked for, expected at least 1")
    if not len(scores):
        raise ResultsError("no score to draw from; run the cells first")
    rng, n = np.random.default_rng(seed), len(scores)
    rows, counts = np.unique(scores, axis=0, return_counts=True)
    if len(rows) <= FEW:
        return rng.multinomial(n, counts / n, size=draws) @ rows / n
    block = max(1, BLOCK // scores.size)
    sums = [
        scores[rng.integers(0, n, (min(block, draws - start), n), dtype=np.uint32)].sum(axis=1)
        for start in range(0, draws, block)
    ]
    return np.concatenate(sums) / n


def _check_bounds(scores: Scores, lowest: float | int, highest: float | int) -> None:
    """Refuse no scores, and scores that cannot be."""
    if not len(scores):
        raise ResultsError("no score to average; run the cells first")
    wrong = [score for score in scores if not lowest <= score <= highest]
    if wrong:
        raise ResultsError(f"score {wrong[0]} given, expected one between {lowest:g} and {highest:g}")
