"""HTML of results: text made harmless, numbers in few digits, the style that fragments share, and a page around them.

A fragment takes the colours of what it stands in: its text has the surrounding colour, lines and coloured squares are
that or an accent, mixed with transparency. So it is light or dark with JupyterLab's theme, with VS Code's, with an
exported page or with a page of its own, and asks none of them. There is no script in it, and no link.
How it fails: a value of any kind is shown, cut to a length; no text gets in unescaped.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, TypeAlias, cast

Plain: TypeAlias = str | int | float | bool | None
"""What stands in a table."""

Numbers: TypeAlias = Sequence[float | int]

ACCENT = "#12908c"
"""Of values above 0, and of attention; readable on light and on dark when mixed with either."""
WARM = "#c0622f"
"""Of values below 0, and of recurrence."""
CALM = "#7a69c4"
"""Of what is neither."""
COLORS = (ACCENT, WARM, CALM, "#a48a1c", "#808a8f", "#c94f8e")
"""Of curves and of kinds; readable on light and on dark."""

LONGEST = 60
"""Characters of a text in a square of a table."""

_STYLE = """
.hl{font:13px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:inherit;max-width:100%;margin:2px 0 6px;
--hl-line:color-mix(in srgb,currentColor 18%,transparent);--hl-soft:color-mix(in srgb,currentColor 66%,transparent)}
.hl p{margin:0 0 6px;max-width:88ch;overflow-wrap:anywhere}.hl .hl-s b{font-weight:600}
.hl .hl-n,.hl .hl-k{color:var(--hl-soft);font-size:12px}.hl .hl-h{font-weight:600;margin:10px 0 4px}
.hl .hl-w{overflow-x:auto;margin:4px 0 6px}
.hl table{border-collapse:collapse;border:0;margin:0;font-size:12.5px;font-variant-numeric:tabular-nums;width:auto}
.hl tr,.hl table tbody tr{background:none!important}
.hl th,.hl td{border:0;border-top:1px solid var(--hl-line);padding:3px 12px 3px 0!important;text-align:left!important;
vertical-align:top;font-weight:400;max-width:46ch;overflow-wrap:break-word;white-space:normal}
.hl thead th{border-top:0;color:var(--hl-soft);font-size:12px}.hl .hl-r{text-align:right!important}
.hl .hl-m td,.hl .hl-m th{border:0;padding:3px 5px!important;text-align:center!important;white-space:nowrap}
.hl .hl-m th{color:var(--hl-soft);font-size:11.5px}.hl .hl-m td{min-width:2.4em;font-size:11.5px}
.hl .hl-x,.hl .hl-x+td{padding-left:8px!important}
.hl [style*="--v"]{background:color-mix(in srgb,var(--c,#12908c) calc(var(--v)*56%),transparent)!important}
.hl .hl-t{font:12.5px/1.9 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap;margin:4px 0 6px;
overflow-wrap:anywhere}.hl .hl-t span{border-radius:3px;padding:2px 0}.hl .hl-u{border-bottom:2px solid #c0622f}
.hl .hl-b span{display:inline-block;min-width:2em;margin:0 2px 4px 0;text-align:center;font-size:11px}
.hl .hl-b i{display:block;font-style:normal;padding:1px 3px;border-radius:3px}
.hl .hl-b i+i{padding:0;height:4px;margin-top:2px}
.hl svg{display:block;max-width:100%;height:auto;overflow:visible}.hl svg text{font-size:11px;fill:currentColor}
.hl img{display:block;image-rendering:pixelated;max-width:100%;border:1px solid var(--hl-line)}
"""
STYLE = "".join(_STYLE.splitlines())
"""Of every fragment, below `.hl`."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Of a page without scripts."""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title><style>:root{{color-scheme:light dark;--page:#fbfaf8;--ink:#1f2426}}
@media (prefers-color-scheme:dark){{:root{{--page:#15181a;--ink:#e6e4df}}}}
body{{background:var(--page);color:var(--ink);margin:0 auto;max-width:1120px;padding:32px 20px}}</style></head>
<body>{body}</body></html>
"""


def fragment(name: str, summary: str, parts: Iterable[str]) -> str:
    """A piece of HTML that stands for itself: the name and summary of a result, and its parts, HTML each."""
    head = f'<p class="hl-s"><b>{escape(name)}</b> · {escape(summary)}</p>'
    return block(head + "".join(parts))


def block(body: str) -> str:
    """HTML in the style of fragments, which is given with it."""
    return f'<div class="hl"><style>{STYLE}</style>{body}</div>'


class Alone(ABC):
    """A part of what results show that a notebook shows by itself as well, where it is a cell's last expression."""

    __slots__ = ()

    def __init_subclass__(cls, **options: Any) -> None:
        """Keep `dataclass` from giving the class a `repr` of all its numbers."""
        super().__init_subclass__(**options)
        cls.__repr__ = Alone.__repr__

    @abstractmethod
    def html(self) -> str:
        """A few kB of HTML, every text in it escaped."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, drawn in a notebook>"

    def _repr_html_(self) -> str:
        return block(self.html())


def page(title: str, body: str, policy: str = POLICY) -> str:
    """A whole page around HTML; it loads nothing, and is light or dark as its reader has it.

    Args:
        policy: what its content security policy allows.
    """
    return _PAGE.format(title=escape(title), body=body, policy=policy)


def visible(text: str) -> str:
    """A text on one line, with escapes for what cannot be seen; a space is seen between other characters."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return shown.strip() or f"“{shown}”"


def cut(text: str, most: int = LONGEST) -> str:
    """At most so many characters, the last "…" where some are missing."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def parted(one: str, other: str, most: int) -> tuple[str, str]:
    """Two texts of at most so many characters: those where they part, where both begin alike for longer than that."""
    first = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(first - most // 3, 0) if one != other and first >= most - 1 else 0
    said_one, said_other = (cut(f"…{text[start + 1 :]}" if start else text, most) for text in (one, other))
    return said_one, said_other


def number(value: float | int, digits: int = 4) -> str:
    """A number in a few digits, with a minus sign, which zero never has; whole numbers in full."""
    if isinstance(value, int):
        return f"{value}".replace("-", "−")
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    whole = 10**digits <= abs(value) + 0.5 < 1e9  # which Python would write with an exponent
    return (f"{value:.0f}" if whole else f"{value:z.{digits}g}").replace("-", "−")


def count(n: int) -> str:
    """A whole number with thousands apart."""
    return f"{n:,}"


def many(n: int, one: str, several: str = "") -> str:
    """A number of things in words: 1 layer, 1,204 layers."""
    return f"{count(n)} {one if n == 1 else several or one + 's'}"


def every(n: int, one: str, several: str = "") -> str:
    """All of a number of things, as a title has it: All 12 answers, The one answer."""
    return f"The one {one}" if n == 1 else f"All {many(n, one, several)}"


def size(n_bytes: int) -> str:
    """Bytes in words: "512 B", "33.1 kB", "1.2 GB"."""
    scaled, unit = float(n_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if scaled < 999.5:
            break
        scaled, unit = scaled / 1000, larger
    return f"{scaled:.{0 if unit == 'B' or scaled >= 100 else 1}f} {unit}"


def listed(items: Iterable[object], most: int = 12) -> str:
    """Some things with commas between them, and how many more there are."""
    every = [str(item) for item in items]
    more = f", and {count(len(every) - most)} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def cell(value: Plain) -> str:
    """What stands in a square of a table, as text: on one line, cut, an empty text and nothing told apart."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return cut(visible(value)) if value else "“”"
    return number(value)


def brief(value: Any) -> str:
    """Any value in a few words: a tensor by its dtype and shape, a collection by its size."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return cell(value)
    shape = getattr(value, "shape", None)
    if shape is not None:
        dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
        return f"{dtype} [{', '.join(map(str, shape))}]".strip()
    if isinstance(value, Mapping):
        return many(len(cast(Mapping[Any, Any], value)), "entry", "entries")
    if isinstance(value, (Sequence, set, frozenset)):
        items = cast(Sequence[Any], value)
        short = len(items) <= 8 and all(isinstance(item, (bool, int, float)) for item in items)
        return f"({', '.join(cell(item) for item in items)})" if short else many(len(items), "item")
    return cut(" ".join(repr(value).split()))


def shade(value: float | int, largest: float | int) -> str:
    """The attribute of an element that is coloured by a number: how strongly, and whether above or below 0."""
    share = f"{min(abs(value) / largest, 1.0) if value == value and largest else 0.0:.2f}".removeprefix("0")
    return f'style="--v:{share}{f";--c:{WARM}" if value < 0 else ""}"'


def titled(title: str) -> str:
    """A heading within a fragment; nothing where it is empty."""
    return f'<p class="hl-h">{escape(title)}</p>' if title else ""


def noted(text: str) -> str:
    """A quiet line; nothing where it is empty."""
    return f'<p class="hl-n">{escape(text)}</p>' if text else ""


def legend(names: Mapping[str, str]) -> str:
    """A line of names with their colours before them; names are escaped."""
    items = "".join(
        f'<span style="margin-right:1.2em"><b style="color:{color}">●</b> {escape(name)}</span>'
        for name, color in names.items()
    )
    return f'<p class="hl-k">{items}</p>'
