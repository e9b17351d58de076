"""The code blocks of README and docs, and how they are run and compared.

A Python block runs by itself, in a fresh namespace and an empty folder. What it shows is compared:

* ``value  # -> expected`` at the end of a statement: the value equals what stands behind the arrow, evaluated in the
  same namespace; numbers with a decimal point agree to the decimals written;
* a block ``text`` right behind it: what was printed, to the letter, where a line ``…`` stands for any lines.

What a block needs that would only distract a reader stands in an HTML comment right before it, ``<!-- setup: … -->``.

A block ``bash`` holds commands. Those of hybridlens are parsed with all their options, by the command line's own code;
where a block ``text`` follows, the last of them is run, and what it prints is compared. Targets of make and modules
behind ``python -m`` have to be there.
"""

from __future__ import annotations

import ast
import io
import math
import re
import shlex
import textwrap
import tokenize
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>```+)(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)(?P=ticks) *$", re.MULTILINE | re.DOTALL
)
SETUP = re.compile(r"<!-- setup:\s(.*?)-->\s*\Z", re.DOTALL)
ARROW = re.compile(r"#\s*->\s*(.*\S)\s*$")


class Block(NamedTuple):
    """A code block of a page.

    Attributes:
        page: its path from the root.
        line: of the page, on which its code begins.
        language: as its fence says.
        code: what stands in it.
        setup: what runs before it and is not shown.
        shown: the block of output right behind it; None for none.
    """

    page: str
    line: int
    language: str
    code: str
    setup: str = ""
    shown: str | None = None

    @property
    def name(self) -> str:
        """For a test's own."""
        return f"{self.page}:{self.line}"


def blocks(page: str, text: str) -> Iterator[Block]:
    """The blocks of a page, each with its set-up and its output."""
    every = list(FENCE.finditer(text))
    for number, found in enumerate(every):
        if found["language"] == "text":
            continue
        before = SETUP.search(text[every[number - 1].end() if number else 0 : found.start()])
        after = every[number + 1] if number + 1 < len(every) else None
        follows = after is not None and after["language"] == "text" and not text[found.end() : after.start()].strip()
        yield Block(
            page, text[: found.start("code")].count("\n") + 1, found["language"], textwrap.dedent(found["code"]),
            before[1] if before else "", textwrap.dedent(after["code"]) if after is not None and follows else None,
        )  # fmt: skip


def stray(text: str) -> list[str]:
    """First lines of output blocks that follow no block of code, and so are compared with nothing."""
    every = list(FENCE.finditer(text))
    found: list[str] = []
    for number, block in enumerate(every):
        before = every[number - 1] if number else None
        behind = before is not None and before["language"] in ("python", "bash")
        if block["language"] == "text" and not (behind and not text[before.end() : block.start()].strip()):  # type: ignore[union-attr]
            found.append(block["code"].partition("\n")[0])
    return found


class Arrow(NamedTuple):
    """A value that a block says it gives: its line and the text behind the arrow."""

    line: int
    expected: str


def arrows(code: str) -> dict[int, Arrow]:
    """By the last line of the statement that each belongs to."""
    found: dict[int, Arrow] = {}
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        match = ARROW.match(token.string) if token.type == tokenize.COMMENT else None
        if match is not None:
            found[token.start[0]] = Arrow(token.start[0], match[1])
    return found


def run(block: Block, folder: Path) -> dict[str, Any]:
    """Run a Python block from a file of its own, as a trace needs it, and compare what it shows.

    Returns:
        Its namespace.

    Raises:
        AssertionError: something else came out.
        ValueError: an arrow stands behind what has no value.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    out = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(out):
        warnings.simplefilter("error", UserWarning)
        if block.setup:
            exec(compile(block.setup, "setup.py", "exec"), names)
        path = folder / f"example_{block.line}.py"
        path.write_text(block.code, encoding="utf-8")
        claimed = arrows(block.code)
        tree = ast.parse(block.code)
        tree.body = [_kept(one, claimed) for one in tree.body]
        given: dict[int, Any] = {}
        names["__given__"] = given
        exec(compile(ast.fix_missing_locations(tree), str(path), "exec"), names)
        for arrow in claimed.values():
            wanted = eval(arrow.expected, names)
            assert same(given[arrow.line], wanted), (
                f"{block.page}:{block.line + arrow.line - 1}: {given[arrow.line]!r} came out, {arrow.expected} is shown"
            )
    if block.shown is not None:
        compare(block, out.getvalue())
    return names


def _kept(statement: ast.stmt, claimed: Mapping[int, Arrow]) -> ast.stmt:
    """A statement that keeps its value, where an arrow stands behind it."""
    line = statement.end_lineno
    inside = [number for number in claimed if statement.lineno <= number <= (line or 0)]
    if not inside:
        return statement
    if inside != [line] or not isinstance(statement, ast.Expr):
        raise ValueError(f"the arrow in {ast.unparse(statement)!r} stands behind what has no value")
    place = ast.Subscript(ast.Name("__given__", ast.Load()), ast.Constant(line), ast.Store())
    return ast.copy_location(ast.Assign([place], statement.value), statement)


def same(found: Any, wanted: Any) -> bool:
    """Whether a value is the one shown; floats to the decimals that are written."""
    if isinstance(wanted, float) and isinstance(found, int | float) and math.isfinite(wanted):
        decimals = len(repr(wanted).partition(".")[2]) if "e" not in repr(wanted) else 12
        return abs(found - wanted) <= 0.5 * 10**-decimals + 1e-12
    if isinstance(wanted, list | tuple) and isinstance(found, Sequence) and not isinstance(found, str):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return bool(found == wanted)


def compare(block: Block, printed: str) -> None:
    """What was printed is what is shown.

    Raises:
        AssertionError: it is not.
    """
    lines = [line.rstrip() for line in (block.shown or "").rstrip().splitlines()]
    pattern = "\n".join(r"(?:.*\n)*?.*" if line == "…" else re.escape(line) for line in lines)
    text = "\n".join(line.rstrip() for line in printed.rstrip().splitlines())
    assert re.fullmatch(pattern, text), f"{block.name}: printed was\n{text}"


def commands(code: str) -> list[list[str]]:
    """The words of each command of a block, comments left out and continued lines joined."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
