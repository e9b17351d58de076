"""Granular scoring of an answer, 0 to 5, by a rubric that is data.

A rubric is a sequence of `Rule`: a phrase, points, and ``add`` or ``set``. Text and phrases are
normalised (lower case, punctuation removed, runs of white space made one space) and a rule matches when
its phrase is a substring. The points of matching ``add`` rules are summed; if any ``set`` rule matches,
the score is instead the highest of their points. The paper's table 2 is `PAPER_RUBRIC`; the authors'
code asks for "on a sunny day" where the table says "sunny day" (`PUBLISHED_RUBRIC`).

`check_rubric` refuses rubrics that would give points by accident:

* two rules with the same phrase after normalisation;
* an ``add`` phrase, or a ``set`` phrase worth the maximum, that the needle does not contain. A ``set``
  rule below the maximum may be missing from the needle: the paper's four points for corrected grammar are;
* two ``add`` phrases that share characters of the needle without one containing the other, so that the
  shared words are paid for twice. Nesting is meant ("Dolores Park" in "sit in Dolores Park") and allowed;
* a needle that does not itself score exactly 5, or ``add`` rules that can exceed 5 together;
* an unknown mode, an empty phrase, points that are not a number in (0, 5].

How it fails: it is string matching. An answer that negates the needle, or quotes the whole context,
scores full marks; a model with a small vocabulary says some phrases by chance, so every accuracy needs
its control beside it.

Source: appendix B, table 2 of the paper (arXiv 2510.19861).
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from hybridlens.boundary import public
from hybridlens.boundary_words import BROKEN, shown, sound
from hybridlens.errors import InputError

MAX_SCORE = 5.0
"""The score of an answer that holds the full needle."""

Mode = Literal["add", "set"]
MODES: tuple[Mode, ...] = ("add", "set")


class Rule(NamedTuple):
    """One row of a rubric: what `phrase` is worth, and whether its `points` are added or set the score."""

    phrase: str
    points: float
    mode: Mode


Rubric = tuple[Rule, ...]
"""A rubric: its rules. Their order has no effect."""

_FULL = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day"
_CORRECTED = "is to eat a sandwich and sit in Dolores Park on a sunny day"

PAPER_RUBRIC: Rubric = (
    Rule("eat a sandwich", 1.0, "add"),
    Rule("Dolores Park", 0.5, "add"),
    Rule("sit in Dolores Park", 0.5, "add"),
    Rule("sunny day", 1.0, "add"),
    Rule(_CORRECTED, 4.0, "set"),
    Rule(_FULL, 5.0, "set"),
)
"""Table 2 of the paper."""

PUBLISHED_RUBRIC: Rubric = tuple(
    rule._replace(phrase="on a sunny day") if rule.phrase == "sunny day" else rule for rule in PAPER_RUBRIC
)
"""What the authors' code matches: "on a sunny day" in place of "sunny day"."""


_PUNCTUATION = re.compile(r"[^\w\s]|_")


@public
def normalise(text: str) -> str:
    """`text` in lower case, without punctuation and symbols, and with every run of white space one space."""
    return _plain(text)


def _plain(text: str) -> str:
    return " ".join(_PUNCTUATION.sub("", text.lower()).split())


@public
def score(text: str, rubric: Sequence[Rule] = PAPER_RUBRIC) -> float:
    """The granular score of an answer.

    Args:
        text: what the model said.
        rubric: the rules; the paper's by default. It is not checked here (see `check_rubric`).

    Returns:
        points between 0 and 5; accuracy is their mean ÷ 5. With 100 prompts and the paper's rubric
        accuracy moves in steps of 0.1 %.
    """
    said = _plain(text)
    matching = [rule for rule in rubric if _plain(rule.phrase) in said]
    fixed = [rule.points for rule in matching if rule.mode == "set"]
    return float(max(fixed)) if fixed else float(sum(rule.points for rule in matching))


@public
def full_match_rubric(sentence: str) -> Rubric:
    """The rubric of a needle that has none of its own: 5 points for the whole sentence, else 0."""
    return (Rule(sentence, MAX_SCORE, "set"),)


def _spans(phrase: str, text: str) -> list[tuple[int, int]]:
    """Every occurrence of `phrase` in `text`, overlapping ones too, as half-open character ranges."""
    starts = [index for index in range(len(text) - len(phrase) + 1) if text.startswith(phrase, index)]
    return [(start, start + len(phrase)) for start in starts]


def _paid_twice(first: str, second: str, needle: str) -> bool:
    """True when the two phrases share characters of `needle` and neither contains the other."""
    if first in second or second in first:
        return False
    return any(
        start < other_end and other_start < end
        for start, end in _spans(first, needle)
        for other_start, other_end in _spans(second, needle)
    )


def _check_rules(rubric: Sequence[Rule], source: str) -> None:
    """The checks that need no needle: modes, points, empty and repeated phrases, the reachable maximum."""
    if not rubric:
        raise InputError(f"{source} has no rules; give at least one rule worth {MAX_SCORE:g} points")
    seen: dict[str, str] = {}
    for number, rule in enumerate(rubric, start=1):
        _check_fields(*rule, f"{source}: rule {number}")
        if not math.isfinite(rule.points) or not 0 < rule.points <= MAX_SCORE:
            raise InputError(
                f"{source}: phrase {rule.phrase!r} is worth {rule.points!r} points; "
                f"expected a number above 0 and up to {MAX_SCORE:g}"
            )
        plain = _plain(rule.phrase)
        if not plain:
            raise InputError(f"{source}: phrase {rule.phrase!r} has no words, so every answer would match it")
        if plain in seen:
            raise InputError(
                f"{source}: phrases overlap: {seen[plain]!r} and {rule.phrase!r} are the same "
                "without case and punctuation; keep one"
            )
        seen[plain] = rule.phrase
    total = sum(rule.points for rule in rubric if rule.mode == "add")
    if total > MAX_SCORE + 1e-9:
        raise InputError(
            f"{source}: its 'add' rules sum to {total:g} points; expected at most {MAX_SCORE:g}: lower some"
        )


@public
def check_rubric(rubric: Sequence[Rule], needle: str, source: str = "the rubric") -> None:
    """Refuse a rubric that would not grade answers about `needle` from 0 to 5 (rules: module docstring).

    Args:
        rubric: the rules.
        needle: the needle's sentence.
        source: what to call the rubric in an error, such as its file.

    Raises:
        InputError: one line with the phrase at fault and what to do.
    """
    _check_rules(rubric, source)
    plain = _plain(needle)
    for rule in rubric:
        required = rule.mode == "add" or rule.points >= MAX_SCORE
        if required and _plain(rule.phrase) not in plain:
            raise InputError(
                f"{source}: phrase {rule.phrase!r} is missing from the needle {needle!r}; "
                f"expected every 'add' phrase and every phrase worth {MAX_SCORE:g} to be part of it"
            )
    additions = [rule for rule in rubric if rule.mode == "add"]
    for index, first in enumerate(additions):
        for second in additions[index + 1 :]:
            if _paid_twice(_plain(first.phrase), _plain(second.phrase), plain):
                raise InputError(
                    f"{source}: phrases overlap: {first.phrase!r} and {second.phrase!r} share words of the "
                    "needle and would pay for them twice; make them disjoint, or one part of the other"
                )
    reached = score(needle, rubric)
    if abs(reached - MAX_SCORE) > 1e-9:
        raise InputError(
            f"{source}: the needle {needle!r} itself scores {reached:g}; expected the maximum, "
            f"{MAX_SCORE:g}: add a rule that sets {MAX_SCORE:g} for the whole sentence"
        )


def _check_fields(phrase: Any, points: Any, mode: Any, where: str) -> None:
    """The types of one rule, which is a plain tuple."""
    if not isinstance(phrase, str):
        raise InputError(f"{where} has phrase {shown(phrase)}; expected a string")
    if not sound(phrase):
        raise InputError(f"{where} has phrase {shown(phrase)}, which is no valid Unicode: {BROKEN}")
    if isinstance(points, bool) or not isinstance(points, int | float):
        raise InputError(f"{where} ({phrase!r}) has points {shown(points)}; expected a number")
    if mode not in MODES:
        raise InputError(f"{where} ({phrase!r}) has mode {shown(mode)}; expected 'add' or 'set'")


def read_rule(row: object, source: str, number: int) -> Rule:
    """One JSON row, an object or a list of three, as a `Rule`.

    Args:
        row: the row as `json` reads it.
        source: what to call the rubric in an error.
        number: the row's, counted from 1.

    Raises:
        InputError: the row has another form, or a value of another type.
    """
    match row:
        case {"phrase": phrase, "points": points, "mode": mode, **rest} if not rest:
            pass
        case [phrase, points, mode]:
            pass
        case _:
            raise InputError(
                f"{source}: rule {number} is {json.dumps(row)[:80]}; "
                'expected {"phrase": "…", "points": 1.0, "mode": "add"} or ["…", 1.0, "add"]'
            )
    _check_fields(phrase, points, mode, f"{source}: rule {number}")
    if isinstance(points, int):
        points = max(-1000, min(points, 1000))  # far outside what is allowed, and no integer too large for a float
    return Rule(phrase, float(points), mode)


@public
def load_rubric(path: str | Path, needle: str | None = None) -> Rubric:
    """Read a rubric from a JSON file and check it.

    The file holds a list; each item is ``{"phrase": …, "points": …, "mode": "add" | "set"}`` or
    ``[phrase, points, mode]``.

    Args:
        path: the file.
        needle: the sentence that the rubric grades, for the checks that need it. Without one only the
            rules themselves are checked; a `Needle` made from them checks the rest.

    Raises:
        InputError: the file cannot be read, is no such list, or fails `check_rubric`.
    """
    source = f"rubric {str(path)!r}"
    try:
        rows: object = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error.strerror}); give a JSON file of rules") from error
    except (ValueError, RecursionError) as error:  # deep nesting
        raise InputError(f"{source} is not JSON in UTF-8 ({error}); give a list of rules") from error
    if not isinstance(rows, list):
        kind = type(rows).__name__
        raise InputError(
            f'{source} holds {shown(rows)} ({kind}); expected a list of rules, like [["the whole sentence", 5, "set"]]'
        )
    items = cast(list[object], rows)
    rubric = tuple(read_rule(row, source, number) for number, row in enumerate(items, start=1))
    if needle is None:
        _check_rules(rubric, source)
    else:
        check_rubric(rubric, needle, source)
    return rubric
