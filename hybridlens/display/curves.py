"""Lines over one axis as a small picture.

How it fails: lines and places that do not fit raise `InputError`; what is not finite is a gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

from hybridlens.display.markup import COLORS, Alone, Numbers, legend, noted, number, titled
from hybridlens.errors import InputError

_POINTS = 100
"""Of a line at most."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 460, 8, 112
"""Where the axes are, in pixels."""
_NOTHING = 1e-3
"""An end of the axis that is so near 0, by its length, is written as 0."""


@dataclass(frozen=True)
class Curve(Alone):
    """Lines over one axis.

    Attributes:
        x: places, ascending.
        lines: name -> a value for each place; NaN for a gap.
        across: what x is, with its unit.
        up: what the values are, with their unit.
        title: above it; none where empty.

    Raises:
        InputError: a line has not one value a place, or there are more lines than colours.
    """

    x: Numbers
    lines: Mapping[str, Numbers]
    across: str
    up: str
    title: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        for name, values in self.lines.items():
            if len(values) != len(self.x):
                raise InputError(f"line {name!r} has {len(values)} values for {len(self.x)} places")
        if len(self.lines) > len(COLORS):
            raise InputError(f"{len(self.lines)} lines given, expected at most {len(COLORS)}; choose among them")

    def html(self) -> str:
        """A small picture of the lines, with the ends of both axes written."""
        finite = [float(value) for values in self.lines.values() for value in values if math.isfinite(value)]
        if not finite:
            return titled(self.title) + noted(f"{self.up}, over {self.across}: there is no number")
        low, high = min(finite), max(finite)
        step = -(-len(self.x) // _POINTS)
        lines = zip(COLORS, self.lines.values(), strict=False)
        drawn = "".join(_stroke(run, color) for color, values in lines for run in self._runs(values, step, low, high))
        frame = f'<path d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}" fill="none" stroke="currentColor" stroke-opacity=".3"/>'
        top, bottom = (0.0 if abs(end) < _NOTHING * (high - low) else end for end in (high, low))
        texts = (
            f'<text x="54" y="12" text-anchor="end">{number(top, 3)}</text>'
            f'<text x="54" y="114" text-anchor="end">{number(bottom, 3)}</text>'
            f'<text x="{_LEFT}" y="127">{number(self.x[0])}</text>'
            f'<text x="{_RIGHT}" y="127" text-anchor="end">{number(self.x[-1])}</text>'
        )
        label = escape(f"{self.up}, over {self.across}")
        svg = f'<svg viewBox="0 0 470 132" width="470" role="img" aria-label="{label}">{frame}{drawn}{texts}</svg>'
        names = legend(dict(zip(self.lines, COLORS, strict=False))) if len(self.lines) > 1 else ""
        named = f"{next(iter(self.lines))}: " if len(self.lines) == 1 and next(iter(self.lines)) else ""
        thin = f"; one place of {step} is drawn" if step > 1 else ""
        return titled(self.title) + svg + names + noted(f"{named}{self.up}, over {self.across}{thin}")

    def _runs(self, values: Numbers, step: int, low: float, high: float) -> Iterator[list[str]]:
        """Points of each stretch of a line that has no gap in it."""
        first, width = float(self.x[0]), (float(self.x[-1]) - float(self.x[0])) or 1.0
        last = len(self.x) - 1
        run: list[str] = []
        for i in [*range(0, last, step), last]:
            if math.isfinite(values[i]):
                across = _LEFT + (_RIGHT - _LEFT) * (float(self.x[i]) - first) / width
                up = _TOP + (_BOTTOM - _TOP) * (high - float(values[i])) / ((high - low) or 1.0)
                run.append(f"{across:.0f},{up:.1f}")
            elif run:
                yield run
                run = []
        if run:
            yield run


def _stroke(points: list[str], color: str) -> str:
    """Points as a line, or one as a dot."""
    if len(points) > 1:
        return f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" stroke-width="1.8"/>'
    x, y = points[0].split(",")
    return f'<circle cx="{x}" cy="{y}" r="2.5" fill="{color}"/>'
