"""Numbers that texts state, and the stored tables that they say they come from.

A text names its source in an HTML comment, which no reader sees::

    Accuracy falls by 82 points (42 to 87).
    <!-- from tiny-recurrentgemma-study/semantics: mean[semantics=published & condition=binary] in minus %; low[...] -->

`NAME/TABLE` is a table of docs/results/NAME.json (`tests.stored_results` writes these), then come the numbers in the
order of the text: a column, its rows by the values of other columns, and how the number is written: as it is stored,
`in %`, `in minus %`, or `in minus`. Where several rows fit, all are meant, in their order. `; NAME/TABLE: …` goes on
with another table. A comment in a paragraph or item speaks of what stands before it, back to the comment before; in a
row of a table of that row, and below a table of every row that has none of its own. There `*` stands for the row's key:
the text of its first cell, or what `<!-- key: … -->` in that cell says.

In a row all numbers have to be stored ones, but those of the first cell and of places ("layer 5"); in a paragraph all
that have a decimal point or are told in %, points or nats ("95 % interval" is none). A number agrees where the stored
one rounds to it at the decimals written. A table whose source is a machine and a day, or a run of which nothing is
stored, says so: `<!-- not stored: command -->`.

How it fails: `ValueError` in words for a reference that cannot be read or finds no row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

STORE = Path(__file__).resolve().parent.parent / "docs" / "results"
COMMENT = re.compile(r"<!--\s*(from|key|not stored):?\s+(.*?)\s*-->", re.DOTALL)
REFERENCE = re.compile(r"(?:(?P<table>[\w.-]+/[\w-]+):\s*)?(?P<column>[\w ]+?)(?:\[(?P<rows>.*)\])?(?P<how>\s+in .*)?")
NUMBER = re.compile(r"(?<![\w.])[−-]?\d[\d,]*(?:\.\d+)?(?:e[−-]?\d+)?")
SCALES = {"": 1, "in %": 100, "in minus %": -100, "in minus": -1}
PLACE = re.compile(r"(layers?|head|lag|k =)[ \u00a0]$")
"""Before a number that names a place and states nothing."""
INTERVAL = re.compile(r"95\s%\s(interval|confidence)|95\s%:")


class Stated(NamedTuple):
    """A piece of text and the references behind it.

    Attributes:
        page: the file.
        text: what states the numbers, without comments.
        source: the references as they are written.
        key: what `*` stands for; None in a paragraph.
    """

    page: str
    text: str
    source: str
    key: str | None = None


class Number(NamedTuple):
    """A number of a text: its value, its last decimal's unit, and whether it has to be a stored one."""

    text: str
    value: float
    unit: float
    bound: bool


def stated(page: str, text: str) -> Iterator[Stated]:
    """Everything that names a source, in the order of the page; notebooks' markdown is read as text."""
    if page.endswith(".py"):
        text = "\n".join(line[2:] if line.startswith("# ") else "" for line in text.splitlines())
    for block in re.split(r"\n[ \t]*\n", text):
        lines = block.splitlines()
        rows = [line for line in lines if line.startswith("|")]
        beside = "\n".join(line for line in lines if not line.startswith("|"))
        comments = [found[2] for found in COMMENT.finditer(beside) if found[1] == "from"]
        for line in rows[2:]:  # below the head and the rule
            own = {found[1]: found[2] for found in COMMENT.finditer(line)}
            for source in [] if "not stored" in own else [own["from"]] if "from" in own else comments:
                first, _, rest = line.strip("| ").partition("|")
                key = next(
                    (found[2] for found in COMMENT.finditer(first) if found[1] == "key"), plain(first).strip(" *")
                )
                yield Stated(page, plain(rest), source, key)
        if not rows:
            for item in re.split(r"\n(?=\* )", block):
                yield from _paragraph(page, item)


def _paragraph(page: str, block: str) -> Iterator[Stated]:
    start = 0
    for found in COMMENT.finditer(block):
        if found[1] == "from":
            yield Stated(page, plain(block[start : found.start()]), found[2])
            start = found.end()


def plain(text: str) -> str:
    """A text without comments, code and the targets of links."""
    return re.sub(r"<!--.*?-->|`[^`]*`|\]\([^)]*\)", " ", text, flags=re.DOTALL)


def numbers(text: str, row: bool = False) -> list[Number]:
    """The numbers of a text; of a row of a table all are bound."""
    found: list[Number] = []
    for match in NUMBER.finditer(text):
        said = match[0].replace("−", "-").replace(",", "")
        after = text[match.end() :].lstrip(" \u00a0")
        mantissa, _, exponent = said.partition("e")
        unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        told = after.startswith(("%", "points", "nats")) and not INTERVAL.match(text[match.start() :])
        place = PLACE.search(text[: match.start()]) is not None
        exact = "." in mantissa and "arXiv" not in text[: match.start()][-7:]
        found.append(Number(match[0], float(said), unit, told or exact or (row and not place)))
    return found


def values(source: str, key: str | None = None, store: Path = STORE) -> list[float]:
    """The stored numbers that references name, in their order.

    Raises:
        ValueError: a reference that cannot be read, a table or column that is not stored, or rows that do not exist.
    """
    found: list[float] = []
    table: str | None = None
    for part in (one.strip() for one in source.split(";")):
        match = REFERENCE.fullmatch(part)
        table = table if match is None else match["table"] or table
        if match is None or table is None or (match["how"] or "").strip() not in SCALES:
            raise ValueError(f"{part!r} is no reference; write NAME/TABLE: column[name=value & name=value] in %")
        scale = SCALES[(match["how"] or "").strip()]
        found += [scale * value for value in _chosen(table, match["column"].strip(), match["rows"] or "", key, store)]
    return found


def _chosen(table: str, column: str, rows: str, key: str | None, store: Path) -> list[float]:
    name, _, within = table.partition("/")
    held = read(store / f"{name}.json")["tables"]
    if within not in held:
        raise ValueError(f"{table} is not stored; there are {', '.join(held)}")
    columns: list[str] = held[within]["columns"]
    wanted = dict(_pair(one) for one in rows.split("&")) if rows else {}
    lacking = [one for one in (column, *wanted) if one not in columns]
    if lacking:
        raise ValueError(f"{table} has no column {lacking[0]!r}; it has {', '.join(columns)}")
    if "*" in wanted.values() and key is None:
        raise ValueError(f"{table}: * stands for a row's key, and {rows!r} is in no row of a table")
    asked = {columns.index(one): key if value == "*" else value for one, value in wanted.items()}
    fits = [row for row in held[within]["rows"] if all(str(row[i]) == value for i, value in asked.items())]
    found = [row[columns.index(column)] for row in fits]
    if not found or any(isinstance(one, str) or one is None for one in found):
        raise ValueError(f"{table} has no number {column} where {list(asked.values())}")
    return [float(one) for one in found]


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip(), value.strip()


@cache
def read(path: Path) -> Mapping[str, Any]:
    """A stored file.

    Raises:
        ValueError: it is not there.
    """
    if not path.exists():
        raise ValueError(f"{path.name} is not stored; python -m tests.stored_results writes it")
    return json.loads(path.read_text(encoding="utf-8"))


def agrees(said: Number, value: float) -> bool:
    """Whether a stored value rounds to a number as it is written; halves may go either way."""
    return abs(said.value - value) <= said.unit / 2 * (1 + 1e-6) + 1e-12


def wrong(one: Stated, store: Path = STORE) -> str | None:
    """What of a text is not what is stored, in words; None where all of it is."""
    try:
        left = values(one.source, one.key, store)
    except ValueError as error:
        return f"{one.page}: {error}"
    for said in numbers(one.text, one.key is not None):
        if left and agrees(said, left[0]):
            left.pop(0)
        elif said.bound:
            beside = f"stored is {left[0]:.6g}" if left else "nothing more is stored"
            return f"{one.page}: {said.text} is written, {beside}: {' '.join(one.text.split())[:160]}"
    return f"{one.page}: {left[0]:.6g} is stored and not written: {' '.join(one.text.split())[:160]}" if left else None


def unsourced(page: str, text: str) -> list[str]:
    """First lines of the tables that state numbers, beyond whole ones in code, and name neither source nor command."""
    found: list[str] = []
    for block in re.split(r"\n[ \t]*\n", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        cells = [plain(line.strip("| ").partition("|")[2]) for line in rows[2:]]
        if any(said.bound for cell in cells for said in numbers(cell)):
            bare = [line for line in rows[2:] if not COMMENT.search(line)]
            beside = "\n".join(line for line in block.splitlines() if not line.startswith("|"))
            if bare and not any(match[1] in ("from", "not stored") for match in COMMENT.finditer(beside)):
                found.append(f"{page}: {rows[0]}")
    return found
