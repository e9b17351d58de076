"""When a comparison of rankings has read enough: looks at more and more prompts, and what each look can tell.

* Pairs. Any two rankings are compared by the difference of their areas over the same prompts, each prompt's difference
  being one observation. Its interval is Student's t, widened as `hybridlens.results.statistics` says to what a kind
  of prompt could change that none of those read shows.
* Looks. The first look is at the prompts of the grid, each further one at twice as many, up to as many as half the
  precision takes, at `ERRORS` standard errors, where differences spread by `SPREAD`. Looking again is paid for by alpha
  spending (Lan and DeMets, Biometrika 70, 1983) with Kim and DeMets' function α t (Biometrika 74, 1987): a look spends
  of the 5 % the share that its new prompts are of the most that there can be. The levels are put together by
  Bonferroni's bound, which asks nothing of how looks depend on each other, and neither on when one stops. The
  schedule depends on the grid and the precision, not on the budget, which may be raised later.
* Pairs share a look's level equally, so that in 95 % of studies every interval of every look holds what it is about.
* The rule. A ranking is *equal* to the best within the precision where no other's area can be more than that above its
  own; it is *behind* where another's is above it for sure; else it is *open*. While one is open, the next look is
  taken. So by how much a ranking falls short of the best is bounded as in Hsu's multiple comparisons with the best
  (Annals of Statistics 12, 1984), over all pairs.

In 200 simulated studies of three and of eight equal rankings each, looked at up to seven times whatever was found, some
ranking was said to be behind in 1.5 to 4.5 %: of four kinds of spread, rare and large differences among them.

How it fails: prompts are taken for independent draws of one kind. Those of the first look share their filler, and its
interval alone is about this filler; later ones have fillers of their own (`analyses.study.rankings.fillers`). The t
interval leans on sums being nearly normal. Rows that were run at fewer counts are compared at these, where "above" need
not be transitive: then every ranking may be behind another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.heads.ranking import check_name
from analyses.study.rankings.curves import Value, common_areas
from hybridlens.display import Displayed, Piece, Table, listed, many
from hybridlens.errors import ResultsError

ALPHA = 0.05
"""The share of studies in which some interval may be wrong."""

SPREAD = 0.2
"""Standard deviation over prompts of the difference of two areas that schedules are laid out for."""

ERRORS = 3.0


def schedule(first: int, precision: float) -> tuple[int, ...]:
    """The numbers of prompts at the looks, each twice the one before.

    Args:
        first: prompts of the grid.
        precision: the difference in area that has to be told apart.
    """
    most = (2 * ERRORS * SPREAD / precision) ** 2
    looks = [first]
    while looks[-1] < most:
        looks.append(2 * looks[-1])
    return tuple(looks)


def error_of(looks: Sequence[int], look: int) -> float:
    """What one look spends of `ALPHA`."""
    return ALPHA * (looks[look] - (looks[look - 1] if look else 0)) / looks[-1]


class _Pairs(NamedTuple):
    """Differences of areas, row less column: mean and standard deviation over prompts, and how far they could go."""

    mean: Float[Tensor, "ranking ranking"]
    spread: Float[Tensor, "ranking ranking"]
    bound: Float[Tensor, "ranking ranking"]

    def reach(self, prompts: int, error: float) -> tuple[Tensor, Tensor]:
        """Lower and upper ends when so many prompts are read and all pairs together may err so often."""
        from scipy.stats import t

        n = len(self.mean)
        outside = error / max(1, n * (n - 1))  # on each side of each pair
        if prompts < 2:
            return -self.bound, self.bound
        sure = float(t.isf(outside, prompts - 1)) / math.sqrt(prompts) * self.spread
        unseen = 1 - outside ** (1 / prompts)
        low = torch.minimum(self.mean - sure, self.mean - unseen * (self.mean + self.bound))
        high = torch.maximum(self.mean + sure, self.mean + unseen * (self.bound - self.mean))
        return torch.maximum(low, -self.bound).fill_diagonal_(0), torch.minimum(high, self.bound).fill_diagonal_(0)


@dataclass(frozen=True, eq=False)
class Decision(Displayed, Stored, text=True):
    """What one look at a comparison can tell.

    Attributes:
        names: the rankings, the paper's method among them where it was run; not the random level.
        precision: the difference in area that has to be told apart.
        looks: the numbers of prompts at all looks that there can be.
        look: which this is, from 0.
        difference: area of the row's ranking less that of the column's, over the same prompts.
        low: lower end of its interval; all pairs of all looks hold together.
        high: upper end.
        needed: prompts of the look at which nothing should be open any more, as the prompts read spread; None where
            nothing is open now, or no look is enough.
    """

    names: tuple[str, ...]
    precision: float
    looks: tuple[int, ...]
    look: int
    difference: Float[Tensor, "ranking ranking"]
    low: Float[Tensor, "ranking ranking"]
    high: Float[Tensor, "ranking ranking"]
    needed: int | None

    @property
    def prompts(self) -> int:
        """How many were read."""
        return self.looks[self.look]

    @property
    def equal(self) -> tuple[str, ...]:
        """The rankings that keep as much as the best, within the precision."""
        return self._of(_equal(self.high, self.precision))

    @property
    def behind(self) -> tuple[str, ...]:
        """The rankings that keep less than another, and are not equal to the best."""
        return self._of(_behind(self.low) & ~_equal(self.high, self.precision))

    @property
    def open(self) -> tuple[str, ...]:
        """The rankings of which neither can be said."""
        return self._of(_open(self.low, self.high, self.precision))

    def shortfall(self, name: str) -> Value:
        """By how much a ranking falls short of the best of the others, with its interval; below 0 where it is ahead.

        Raises:
            UnknownNameError: it was not compared.
        """
        check_name(name, self.names, "was not compared")
        at = self.names.index(name)
        others = [i for i in range(len(self.names)) if i != at]
        ends = (self.difference, self.low, self.high)
        return Value(*(float(values[others, at].max()) if others else 0.0 for values in ends))

    def standing(self, name: str) -> str:
        """Whether a ranking is "equal", "behind" or "open"; errors as `shortfall`."""
        check_name(name, self.names, "was not compared")
        return "equal" if name in self.equal else "behind" if name in self.behind else "open"

    def summary(self) -> str:
        """What was found, and on how many prompts."""
        found = ((word, getattr(self, word)) for word in ("equal", "behind", "open"))
        said = "; ".join(f"{word}: {listed(names, 3)}" for word, names in found if names)
        return f"{many(self.prompts, 'prompt')}, to {self.precision:g} of area; {said}"

    def table(self) -> Table:
        """A row for each ranking: by how much it falls short of the best, and what that says."""
        rows = [(name, *self.shortfall(name), self.standing(name)) for name in self.names]
        meanings = {"short": "area less than that of the best of the others", "standing": "equal, behind or open"}
        return Table(("ranking", "short", "low", "high", "standing"), rows, meanings)

    def view(self) -> tuple[Piece, ...]:
        """The table."""
        return (self.table(),)

    def _of(self, chosen: Tensor) -> tuple[str, ...]:
        return tuple(itertools.compress(self.names, chosen.tolist()))


def decide(
    rows: Mapping[str, Float[Tensor, "prompt count"]],
    counts: Sequence[int],
    precision: float,
    looks: Sequence[int] | None = None,
) -> Decision:
    """What can be told of rankings whose scores are these.

    Args:
        rows: scores of each ranking at the same prompts, 0 … 1, NaN where it was not run; as many prompts as one look.
            Rankings that share a tensor are the same, whatever the prompt.
        counts: heads kept.
        precision: the difference in area that has to be told apart.
        looks: the schedule; None where there was to be no look but this.

    Raises:
        ResultsError: rankings of other prompts or counts than each other, or of as many prompts as no look has; and see
            `common_areas`.
    """
    names, prompts = tuple(rows), len(next(iter(rows.values())))
    looks = (prompts,) if looks is None else tuple(looks)
    other = next((name for name, scores in rows.items() if scores.shape != (prompts, len(counts))), None)
    if other is not None:
        raise ResultsError(
            f"{other} has scores of {tuple(rows[other].shape)} prompts and counts, expected {(prompts, len(counts))}: "
            "rankings are compared over the same prompts"
        )
    if prompts not in looks:
        raise ResultsError(f"{many(prompts, 'prompt')} given, but looks are at {listed(looks)}")
    look = looks.index(prompts)
    n = len(names)
    mean, spread, bound = torch.zeros(3, n, n, dtype=torch.float64)
    for i, j in itertools.combinations(range(n), 2):
        if rows[names[i]] is rows[names[j]]:
            continue
        first, second, bound[i, j] = common_areas(rows[names[i]], rows[names[j]], counts)
        mean[i, j] = (first - second).mean()
        spread[i, j] = (first - second).std() if prompts > 1 else 0.0
    pairs = _Pairs(mean - mean.T, spread + spread.T, bound + bound.T)
    low, high = pairs.reach(prompts, error_of(looks, look))
    needed = None
    if bool(_open(low, high, precision).any()):
        later = range(look + 1, len(looks))
        enough = (at for at in later if not _open(*pairs.reach(looks[at], error_of(looks, at)), precision).any())
        needed = next((looks[at] for at in enough), None)
    return Decision(names, precision, looks, look, pairs.mean, low, high, needed)


def _equal(high: Float[Tensor, "ranking ranking"], precision: float) -> Tensor:
    """Which columns no row can be above by more than the precision."""
    return (high <= precision).all(0)


def _behind(low: Float[Tensor, "ranking ranking"]) -> Tensor:
    """Which columns some row is above."""
    return (low > 0).any(0)


def _open(low: Float[Tensor, "ranking ranking"], high: Float[Tensor, "ranking ranking"], precision: float) -> Tensor:
    return ~_equal(high, precision) & ~_behind(low)
