"""`Point`: one number that was measured of a model, with its interval, or why there is none.

How it fails: asking a point that was not measured for its value raises `ResultsError` with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hybridlens.display import Displayed, number
from hybridlens.errors import ResultsError


@dataclass(frozen=True)
class Point(Displayed):
    """One quantity of one model.

    Attributes:
        quantity: its name.
        value: None where it was not measured.
        low: lower end of its 95 % interval; None without one.
        high: upper end.
        n: prompts, pairs of prompts or steps behind it; 0 for what is read off the weights.
        absent: why it was not measured; empty where it was.
        where: which place or what it is of, where that was found; empty where its name says all.
    """

    quantity: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    absent: str = ""
    where: str = ""

    def summary(self) -> str:
        """The number and its interval, or why there is none."""
        if self.value is None:
            return f"{self.quantity}: not measured, {self.absent}"
        ends = "" if self.low is None or self.high is None else f", 95 %: {number(self.low)} to {number(self.high)}"
        return f"{self.quantity} {number(self.value, 3)}{ends}"

    @property
    def lowest(self) -> float:
        """The lower end of what it may be: the value itself where there is no interval.

        Raises:
            ResultsError: it was not measured.
        """
        return self.known if self.low is None else self.low

    @property
    def highest(self) -> float:
        """The upper end likewise."""
        return self.known if self.high is None else self.high

    @property
    def known(self) -> float:
        """The value; errors as `lowest`."""
        if self.value is None:
            raise ResultsError(f"{self.quantity} was not measured: {self.absent}")
        return self.value


def measured(quantity: str, value: float, interval: Sequence[float], n: int) -> Point:
    """A point that is a mean of `n` scores, with its interval."""
    low, high = interval
    return Point(quantity, value, low, high, n)


def absent(quantities: Sequence[str], reason: str) -> list[Point]:
    """Points without a number, for one reason."""
    return [Point(quantity, None, absent=reason) for quantity in quantities]
