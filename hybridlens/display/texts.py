"""Texts and kinds: tokens coloured by a number, a strip of kinds, words.

Of a long text the ends, what is marked and the strongest tokens are shown, and a line says how much is left out.
How it fails: numbers and tokens that do not fit raise `InputError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from hybridlens.display.markup import COLORS, count, legend, noted, number, shade, titled
from hybridlens.errors import InputError

_TOKENS = 120
"""Tokens of a text that are shown."""
_CELLS = 170
"""Of a strip."""


@dataclass(frozen=True)
class TokenText:
    """Tokens as they stand in a text, coloured by a number each.

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
    values: Sequence[float] | None = None
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
        return f'{titled(self.title)}<div class="hl-t">{"".join(out)}</div>{noted(said)}'

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
class Strip:
    """A row of kinds: the layers of a model, say.

    Attributes:
        cells: a short label and a kind for each place.
        kinds: kind -> what it is, in words; at most as many as there are colours.
        title: above it; none where empty.
    """

    cells: Sequence[tuple[str, str]]
    kinds: Mapping[str, str]
    title: str = ""

    def html(self) -> str:
        """Coloured squares in a line that breaks, and what the colours are."""
        colors = dict(zip(self.kinds, COLORS, strict=False))
        squares = "".join(
            f'<span title="{escape(self.kinds[kind])}" style="--v:.8;--c:{colors[kind]}">{escape(label)}</span>'
            for label, kind in self.cells[:_CELLS]
        )
        more = len(self.cells) - _CELLS
        squares = f'<div class="hl-b">{squares}</div>'
        return titled(self.title) + squares + legend({self.kinds[k]: c for k, c in colors.items()}) + (
            noted(f"{count(more)} more left out here") if more > 0 else "")  # fmt: skip


@dataclass(frozen=True)
class Words:
    """A paragraph, or a text that a model wrote, character by character (`literal`)."""

    text: str
    title: str = ""
    literal: bool = False
    most: int = field(default=1200, kw_only=True)
    """Characters that are shown."""

    def html(self) -> str:
        """The text, cut."""
        left = len(self.text) - self.most
        shown, note = (
            self.text[: self.most],
            noted(f"… {count(left)} more characters left out here" if left > 0 else ""),
        )
        body = f'<div class="hl-t">{escape(shown)}</div>' if self.literal else f"<p>{escape(shown)}</p>"
        return titled(self.title) + body + note


def _in_line(token: str) -> str:
    """A token within a text: a line break is seen and breaks the line, other hidden characters are escapes."""
    return "".join(
        "⏎\n" if c == "\n" else c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in token
    )
