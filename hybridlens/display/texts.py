"""Texts and kinds: tokens coloured by a number, a strip of kinds, words.

Of a long text the ends, what is marked and the strongest tokens are shown, and a line says how much is left out.
How it fails: numbers and tokens that do not fit raise `InputError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from hybridlens.display.markup import COLORS, Alone, Numbers, count, legend, noted, number, shade, titled
from hybridlens.errors import InputError

_TOKENS = 120
"""Tokens of a text that are shown."""
_CELLS = 170
"""Of a strip."""

_SPACES = " \u0120\u2581"
"""How tokens write a space: as it is, or as the marks of byte-level and SentencePiece vocabularies."""


@dataclass(frozen=True)
class TokenText(Alone):
    """Tokens as they stand in a text, coloured by a number each; where none of them has a space, they are set apart.

    Attributes:
        tokens: their texts, in order.
        values: a number for each; None where they are not coloured.
        name: what the numbers are, with their unit.
        marked: half-open ranges of tokens under a line: a needle, say.
        title: above it; none where empty.

    Raises:
        InputError: there is not one number a token.
    """

    tokens: Sequence[str]
    values: Numbers | None = None
    name: str = ""
    marked: Sequence[tuple[int, int]] = ()
    title: str = ""

    def __post_init__(self) -> None:
        """Refuse numbers that do not fit."""
        if self.values is not None and len(self.values) != len(self.tokens):
            raise InputError(f"{len(self.values)} numbers given for {len(self.tokens)} tokens")

    def html(self) -> str:
        """The text; of a long one the ends, what is marked, and the strongest values."""
        values = None if self.values is None else [float(v) for v in self.values]
        largest = max((abs(v) for v in values or () if math.isfinite(v)), default=0.0) or 1.0
        shown = sorted(self._shown(values))
        under = {i for start, end in self.marked for i in range(start, end)}
        out: list[str] = []
        before = -1
        for i in shown:
            out += [self._gap(i - before - 1)] if i > before + 1 else []
            color = "" if values is None else f' title="{number(values[i], 3)}" {shade(values[i], largest)}'
            line = ' class="hl-u"' if i in under else ""
            text = escape(_in_line(self.tokens[i]))
            out.append(f"<span{line}{color}>{text}</span>" if line or color else text)
            before = i
        out += [self._gap(len(self.tokens) - 1 - before)] if before < len(self.tokens) - 1 else []
        said = "" if values is None else f"{self.name}; full colour is {number(largest, 3)}"
        apart = "" if any(mark in token for token in self.tokens for mark in _SPACES) else " "
        text = apart.join(out).replace(f"\n{apart}", "\n")
        return f'{titled(self.title)}<div class="hl-t">{text}</div>{noted(said)}'

    def _shown(self, values: list[float] | None) -> set[int]:
        n = len(self.tokens)
        if n <= _TOKENS:
            return set(range(n))
        kept = {*range(_TOKENS // 4), *range(n - _TOKENS // 4, n)}
        wanted = [i for start, end in self.marked for i in range(start, min(end, n))]
        wanted += sorted(range(n), key=lambda i: -abs(values[i]))[: _TOKENS // 4] if values else []
        for i in wanted:
            if len(kept) < _TOKENS:
                kept |= {max(i - 1, 0), i, min(i + 1, n - 1)}
        return kept

    @staticmethod
    def _gap(n: int) -> str:
        return f'<i class="hl-n"> … {count(n)} more … </i>'


@dataclass(frozen=True)
class Strip(Alone):
    """A row of kinds: the layers of a model, say.

    Attributes:
        cells: for each place a short label and its kinds: the first is its square, others are bars below it.
        kinds: kind -> what it is, in words; at most as many as there are colours.
        title: above it; none where empty.

    Raises:
        InputError: a kind that is not among `kinds`, or more kinds than colours.
    """

    cells: Sequence[tuple[str, tuple[str, ...]]]
    kinds: Mapping[str, str]
    title: str = ""

    def __post_init__(self) -> None:
        """Refuse what has no colour."""
        unknown = sorted({kind for _, kinds in self.cells for kind in kinds} - set(self.kinds))
        if unknown or len(self.kinds) > len(COLORS):
            raise InputError(
                f"a strip of {', '.join([*self.kinds, *unknown])} given, expected up to {len(COLORS)} kinds, each named"
            )

    def html(self) -> str:
        """Coloured squares in a line that breaks, and what the colours are."""
        colors = dict(zip(self.kinds, COLORS, strict=False))
        squares = "".join(self._square(label, kinds, colors) for label, kinds in self.cells[:_CELLS])
        more = len(self.cells) - _CELLS
        left = noted(f"{count(more)} more left out here" if more > 0 else "")
        names = legend({self.kinds[kind]: color for kind, color in colors.items()})
        return f'{titled(self.title)}<div class="hl-b">{squares}</div>{names}{left}'

    def _square(self, label: str, kinds: tuple[str, ...], colors: Mapping[str, str]) -> str:
        said = escape(", ".join(self.kinds[kind] for kind in kinds))
        inner = [escape(label) if not i else "" for i in range(len(kinds))] or [escape(label)]
        bars = [f'<i style="--v:.8;--c:{colors[kind]}">{text}</i>' for kind, text in zip(kinds, inner, strict=False)]
        return f'<span title="{said}">{"".join(bars) or inner[0]}</span>'


@dataclass(frozen=True)
class Words(Alone):
    """A paragraph, or a text that a model wrote, character by character (`literal`)."""

    text: str
    title: str = ""
    literal: bool = False
    most: int = 1200
    """Characters that are shown."""

    def html(self) -> str:
        """The text, both ends of a long one."""
        left = len(self.text) - self.most
        parts = [self.text] if left <= 0 else [self.text[: self.most // 2], self.text[-(self.most // 2) :]]
        gap = f'<i class="hl-n"> … {count(left)} more characters … </i>'
        shown = gap.join(map(escape, parts))
        return titled(self.title) + (f'<div class="hl-t">{shown}</div>' if self.literal else f"<p>{shown}</p>")


def _in_line(token: str) -> str:
    """A token within a text: a line break is seen and breaks the line, other hidden characters are escapes."""
    return "".join(
        "⏎\n" if c == "\n" else c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in token
    )
