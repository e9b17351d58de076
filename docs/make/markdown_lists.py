"""Markdown as GitHub reads it, written as Python-Markdown wants it: comments left out, lists indented by four spaces.

GitHub takes what stands under an item's text as part of it, and a list right below a paragraph as a list;
Python-Markdown wants four spaces a level, and an empty line between a paragraph and an item. Comments, which name the
tables that numbers come from, would become rows of the tables that they stand below. Code between fences stays as it
is, moved with the item that it stands in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

COMMENT = re.compile(r"(?:\s*<!--(?:(?!-->).)*-->)+(?=[,.;:)])|[ \t]*<!--.*?-->", re.DOTALL)
FENCE = re.compile(r"^ *(```+)[^\n]*\n.*?^ *\1 *$", re.MULTILINE | re.DOTALL)
ITEM = re.compile(r"( *)((?:[*+-]|\d+\.) +)(.*)")
WIDTH = 4


def site_markdown(text: str) -> str:
    """A page of GitHub's as the site's."""
    return "\n".join(_indented(without_comments(text).split("\n")))


def without_comments(text: str) -> str:
    """A page without its HTML comments; those in code stay."""
    parts: list[str] = []
    start = 0
    for fence in FENCE.finditer(text):
        parts += [COMMENT.sub("", text[start : fence.start()]), fence[0]]
        start = fence.end()
    return "".join([*parts, COMMENT.sub("", text[start:])])


def _indented(lines: list[str]) -> Iterator[str]:
    """Lines with each level of a list at four spaces.

    `levels` holds, for each item that is open, the column at which its text begins.
    """
    levels: list[int] = []
    fence = ""
    block = ""  # the first line since the last empty one
    for line in lines:
        text = line.lstrip(" ")
        column = len(line) - len(text)
        if fence:
            shift = WIDTH * len(levels) - (levels[-1] if levels else 0)
            yield " " * max(0, column + shift) + text if text else ""
            fence = "" if text.startswith(fence) and not text.strip("` ") else fence
            continue
        if not text:
            yield ""
            block = ""
            continue
        item = ITEM.fullmatch(line)
        while levels and column < levels[-1] and (item is not None or not block):
            levels.pop()
        if item is not None:
            if block and not ITEM.fullmatch(block):
                yield ""
                block = line
            yield " " * (WIDTH * len(levels)) + item[2] + item[3]
            levels.append(column + len(item[2]))
        elif levels:
            yield " " * (WIDTH * len(levels) + max(0, column - levels[-1])) + text
        else:
            yield line
        if text.startswith("```"):
            fence = re.match("`+", text)[0]  # type: ignore[index]
        block = block or line
