"""Text on a coloured square: black or white, whichever is read better there, on light pages and on dark ones.

Contrast is that of WCAG 2.2: (L + 0.05) ÷ (l + 0.05) of the relative luminances of the lighter and the darker colour.
Of black and white the better one has at least √21 = 4.58 on any colour, and so always the 4.5 that is asked of text
(https://www.w3.org/TR/WCAG22/#contrast-minimum).

A figure is made once and drawn on pages of either kind: `assets/theme.js` puts the colours of dark pages in the place
of those of light ones, the codes of `CODES` among them. So the choice is made here for both.

How it fails: pure; a share outside 0 … 1 has the colour of that end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

Scale: TypeAlias = Sequence[tuple[float, str]]
"""(share of the scale, colour), ascending from 0 to 1."""

Rgb: TypeAlias = tuple[float, float, float]
"""Red, green and blue, 0 … 255."""

DARK = {"#f3ece2": "#2a2e30", "#7db8b1": "#2f7d7c", "#0c5359": "#a6ebdd", "#d9956f": "#9c5a35", "#7c3210": "#f6c3a2"}
"""Colours of scales on light pages -> on dark ones, as in `assets/theme.js` and `assets/page.css`."""

MAP_COLORS: Scale = ((0.0, "#f3ece2"), (0.5, "#7db8b1"), (1.0, "#0c5359"))
"""Of shares, and of what is never below 0."""

BLACK, WHITE = "#000000", "#ffffff"
CODES = {(BLACK, BLACK): "#000000", (WHITE, WHITE): "#ffffff", (BLACK, WHITE): "#000001", (WHITE, BLACK): "#fffffe"}
"""(on light pages, on dark ones) -> the colour in the figure; the last two are exchanged on dark pages."""


def rgb(color: str) -> Rgb:
    """The channels of "#rrggbb"."""
    red, green, blue = (float(int(color[i : i + 2], 16)) for i in (1, 3, 5))
    return red, green, blue


def contrast(one: Rgb, other: Rgb) -> float:
    """Of two colours, 1 … 21."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def color_at(scale: Scale, share: float) -> Rgb:
    """The colour of a share of a scale, between the two colours around it."""
    share = min(max(share, scale[0][0]), scale[-1][0])
    for (low, one), (high, other) in pairwise(scale):
        if share <= high:
            part = (share - low) / (high - low)
            red, green, blue = (a + (b - a) * part for a, b in zip(rgb(one), rgb(other), strict=True))
            return red, green, blue
    return rgb(scale[-1][1])


def on_dark(scale: Scale) -> Scale:
    """A scale as dark pages have it."""
    return [(share, DARK[color]) for share, color in scale]


def ink(scale: Scale, share: float) -> str:
    """Black or white: what is read better on a share of a scale."""
    under = color_at(scale, share)
    return max((BLACK, WHITE), key=lambda color: contrast(rgb(color), under))


def inked(text: str, scale: Scale, share: float) -> str:
    """A number for a square of a Plotly heatmap, in the ink that is read there on pages of either kind."""
    code = CODES[ink(scale, share), ink(on_dark(scale), share)]
    return f'<span style="color:{code}">{text}</span>'


def inks(scale: Scale) -> list[list[str]]:
    """The ink on each whole percent of a scale, 0 to 100: on light pages, and on dark ones."""
    return [[ink(one, percent / 100) for percent in range(101)] for one in (scale, on_dark(scale))]


def _luminance(color: Rgb) -> float:
    """Relative luminance, 0 … 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink_on_percent(percent: float, dark: bool = False) -> str:
    """The ink on a table's square that is coloured by a share in percent, on a light page or a dark one."""
    return ink(on_dark(MAP_COLORS) if dark else MAP_COLORS, percent / 100)


def ink_numbers(figure: Mapping[str, Any]) -> None:
    """Put the numbers that stand in the squares of a figure's heatmaps in ink that is read there.

    Args:
        figure: Plotly's JSON; changed in place. Heatmaps in other colours than those of `DARK` are left to Plotly.
    """
    for trace in figure["data"]:
        colors = [color for _, color in trace.get("colorscale") or () if isinstance(color, str)]
        if trace.get("type") != "heatmap" or "text" not in trace or not colors or not set(colors) <= set(DARK):
            continue
        scale = [(float(share), color) for share, color in trace["colorscale"]]
        if trace.get("reversescale"):
            scale = [(1 - share, color) for share, color in reversed(scale)]
        low, high = trace["zmin"], trace["zmax"]
        trace["text"] = [
            [inked(text, scale, (z - low) / (high - low)) if text and z is not None else text for text, z in pairs]
            for pairs in (zip(texts, row, strict=True) for texts, row in zip(trace["text"], trace["z"], strict=True))
        ]
