"""Numbers over two axes as coloured squares, and a picture of them where there are many.

How it fails: numbers and names that do not fit raise `InputError`; what is not finite is an empty square.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from hybridlens.display.markup import ACCENT, WARM, Alone, cut, noted, number, shade, titled, visible
from hybridlens.display.tables import array
from hybridlens.errors import InputError

_SQUARES = 170
"""A grid of more has no numbers in its squares, but is a picture."""
_COLUMNS = 24
"""Of a grid with numbers in its squares."""
_WIDE, _HIGH = 96, 48
"""Squares of a picture."""
_LEVELS = 16
"""Strengths of a colour in a picture."""


@dataclass(frozen=True)
class Grid(Alone):
    """Numbers [row, column], as coloured squares: a number for each layer and head, say.

    Attributes:
        values: a tensor, an array or nested lists of two axes.
        rows: a name for each row.
        columns: a name for each column.
        down: what rows are, in words.
        across: what columns are, in words.
        name: what the numbers are, with their unit.
        title: above it; none where empty.
        limit: the magnitude that has the whole colour; the largest finite one where it is None.

    Raises:
        InputError: names and values do not fit.
    """

    values: Any
    rows: Sequence[str]
    columns: Sequence[str]
    down: str
    across: str
    name: str
    title: str = ""
    limit: float | int | None = None

    def __post_init__(self) -> None:
        """Refuse names that do not fit."""
        shape = tuple(array(self.values).shape)
        if shape != (len(self.rows), len(self.columns)):
            raise InputError(
                f"a grid of numbers of shape {shape} given for {len(self.rows)} rows and {len(self.columns)} columns"
            )

    @property
    def numbers(self) -> list[list[float]]:
        """The values as plain numbers; NaN where there is none."""
        return [[math.nan if v is None else float(v) for v in row] for row in array(self.values).tolist()]

    def html(self) -> str:
        """A table of coloured numbers, or a picture where there are many."""
        said = f"{self.name}: rows are {self.down}, columns {self.across}"
        if not self.rows or not self.columns:
            return titled(self.title) + noted(f"{said}; there is none")
        numbers = self.numbers
        largest = self.limit or largest_of(numbers)
        many = len(self.rows) * len(self.columns) > _SQUARES or len(self.columns) > _COLUMNS
        shown = self._picture(numbers, largest) if many else self._squares(numbers, largest)
        signed = any(value < 0 for row in numbers for value in row)
        scale = f"full teal is {number(largest, 3)}" + (f", full orange {number(-largest, 3)}" if signed else "")
        return titled(self.title) + shown + noted(f"{said}; {scale}")

    def _squares(self, numbers: list[list[float]], largest: float) -> str:
        head = "".join(f"<th>{escape(cut(visible(name), 14))}</th>" for name in self.columns)
        body = "".join(
            f"<tr><th>{escape(cut(visible(name), 24))}</th>{''.join(_square(value, largest) for value in row)}</tr>"
            for name, row in zip(self.rows, numbers, strict=True)
        )
        table = f'<table class="hl-m"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'
        return f'<div class="hl-w">{table}</div>'

    def _picture(self, numbers: list[list[float]], largest: float) -> str:
        high, wide = -(-len(self.rows) // _HIGH), -(-len(self.columns) // _WIDE)
        pooled = _pooled(numbers, high, wide)
        source = _png([[_level(value, largest) for value in row] for row in pooled])
        zoom = max(3, min(14, 560 // len(pooled[0])))
        ends = f"{self.rows[0]} … {self.rows[-1]} down, {self.columns[0]} … {self.columns[-1]} across"
        over = f"; each square is the strongest of {high} × {wide} values" if high * wide > 1 else ""
        picture = f'<img alt="{escape(self.name)}" width="{zoom * len(pooled[0])}" src="{source}">'
        return f'<div class="hl-w">{picture}</div>' + noted(cut(visible(ends), 160) + over)


def largest_of(numbers: Sequence[Sequence[float]]) -> float:
    """The largest magnitude of what is finite; 1 where there is none, or only zeros."""
    return max((abs(value) for row in numbers for value in row if math.isfinite(value)), default=0.0) or 1.0


def _square(value: float, largest: float) -> str:
    return "<td></td>" if math.isnan(value) else f"<td {shade(value, largest)}>{number(value, 2)}</td>"


def _pooled(values: list[list[float]], high: int, wide: int) -> list[list[float]]:
    """The strongest value of each block of `high` × `wide`; NaN where a block has none."""

    def strongest(i: int, j: int) -> float:
        block = [value for row in values[i : i + high] for value in row[j : j + wide] if not math.isnan(value)]
        return max(block, key=abs, default=math.nan)

    return [[strongest(i, j) for j in range(0, len(values[0]), wide)] for i in range(0, len(values), high)]


def _level(value: float, largest: float) -> int:
    """A place in the palette of `_png`: 0 for nothing, then the strengths above 0, then those below."""
    if math.isnan(value):
        return 0
    strength = round(min(abs(value) / largest, 1.0) * (_LEVELS - 1))
    return strength + (_LEVELS if value < 0 and strength else 0)


def _png(levels: list[list[int]]) -> str:
    """A picture as a data URI: its palette is the two accents at growing opacity, so it suits light and dark."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    palette = b"".join(bytes.fromhex(color[1:]) * _LEVELS for color in (ACCENT, WARM))
    opacity = bytes(round(255 * i / (_LEVELS - 1)) for i in range(_LEVELS)) * 2
    rows = b"".join(b"\0" + bytes(row) for row in levels)
    head = struct.pack(">IIBBBBB", len(levels[0]), len(levels), 8, 3, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"PLTE", palette) + chunk(b"tRNS", opacity)
    data += chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
