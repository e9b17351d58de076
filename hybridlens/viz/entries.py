"""Shares, intervals and differences as tables write them.

How it fails: pure; what is NaN is a dash, and an interval that is not known is empty.
"""

import math
from typing import NamedTuple, TypeAlias

from hybridlens.viz.words import DASH

Entry: TypeAlias = "str | tuple[str, str]"
"""What stands in a cell of a table; of two, the second is small and below the first."""


class Value(NamedTuple):
    """A measured share or score; NaN where it was not measured.

    Attributes:
        mean: the value.
        low: lower end of its 95 % interval.
        high: upper end.
        n: prompts or documents.
        chance: what guessing earns; NaN where not measured.
    """

    mean: float
    low: float
    high: float
    n: int
    chance: float = math.nan

    @property
    def known(self) -> bool:
        """Whether it was measured."""
        return not math.isnan(self.mean)

    @property
    def sure(self) -> bool:
        """Whether its interval is known."""
        return not (math.isnan(self.low) or math.isnan(self.high))


def percent(value: float) -> str:
    """A share as tables have it: "97.3 %", "−0.1 %"; what rounds to zero has no sign, and NaN is a dash."""
    return DASH if math.isnan(value) else f"{100 * value:z.1f}\u00a0%".replace("-", "−")


def interval(value: Value) -> str:
    """The interval of a share: "95.0 to 98.8"; empty where there is none."""
    return "" if math.isnan(value.low) else f"{100 * value.low:z.1f} to {100 * value.high:z.1f}".replace("-", "−")


def entry(value: Value) -> Entry:
    """A share above its interval, its number of prompts and the chance level."""
    if not value.known:
        return DASH
    guessed = "" if math.isnan(value.chance) else f"chance {percent(value.chance)}"
    parts = [interval(value), f"n\u00a0=\u00a0{value.n}", guessed]
    return percent(value.mean), ", ".join(part for part in parts if part)


def difference(value: Value) -> Entry:
    """A difference of shares in points above its interval."""
    if not value.known:
        return DASH
    return signed(100 * value.mean), "" if math.isnan(value.low) else signed(100 * value.low, 100 * value.high)


def signed(*points: float) -> str:
    """Points with their signs, "+1.5" or "−2.0 to +3.1"."""
    return " to ".join(f"{x:+z.1f}".replace("-", "−") for x in points)
