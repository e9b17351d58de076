"""Needles from a user's file: a JSON list of objects, each with name, sentence, question and rubric.

Mechanism: the text is parsed as JSON, then walked once more for where each value stands, since Python's parser
forgets that. So whatever is wrong with a needle is said with its line and field.

How it fails: `InputError` for a file that cannot be read or is not such a list; for a field that is missing,
unknown, given twice or of another type; for names that repeat, or that a built-in needle with other content
has; and for a rubric that `check_rubric` refuses, with the line on which the rubric begins.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from hybridlens.boundary import public
from hybridlens.boundary_words import BROKEN, shown, sound
from hybridlens.errors import InputError, closest
from hybridlens.niah.needles import NEEDLES, Needle
from hybridlens.niah.rubric import Rubric, check_rubric, read_rule

FIELDS = ("name", "sentence", "question", "rubric")
EXAMPLE = '{"name": "…", "sentence": "…", "question": "…", "rubric": [["…", 5, "set"]]}'

_DECODER = json.JSONDecoder()
_GAP = re.compile(r"[\s,:]*")


class Placed(NamedTuple):
    """A JSON value and the line on which it begins.

    Attributes:
        value: the value as `json` reads it.
        line: counted from 1.
        items: of a list, its values.
        fields: of an object, its keys in order, each with the line of the key and its value.
    """

    value: Any
    line: int
    items: "list[Placed]"
    fields: "list[tuple[str, int, Placed]]"


@public
def load_needles(path: str | Path) -> list[Needle]:
    """Read needles from a JSON file and check them.

    The file holds a list; each item is ``{"name": …, "sentence": …, "question": …, "rubric": [[phrase, points,
    "add" | "set"], …]}``.

    Args:
        path: the file.

    Returns:
        the needles in the file's order, at least one, of different names.

    Raises:
        InputError: one line that names the file, the line in it, and the field (see the module).
    """
    source = f"needle file {str(path)!r}"
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        json.loads(text)
        top = place(text)
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error.strerror}); give a JSON list of needles") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{source}, line {error.lineno}, column {error.colno}: is not JSON ({error.msg}); give a list of {EXAMPLE}"
        ) from error
    except (ValueError, RecursionError) as error:  # not UTF-8; a number of thousands of digits; deep nesting
        raise InputError(f"{source} cannot be read as JSON in UTF-8 ({error}); give a list of {EXAMPLE}") from error
    if not isinstance(top.value, list):
        raise InputError(f"{source}, line {top.line}: holds {_kind(top.value)}; expected a list of {EXAMPLE}")
    if not top.items:
        raise InputError(f"{source}, line {top.line}: holds no needle; expected at least one {EXAMPLE}")
    needles: list[Needle] = []
    lines: dict[str, int] = {}
    for number, item in enumerate(top.items, start=1):
        needle, line = _read_needle(item, number, source)
        if needle.name in lines:
            raise InputError(
                f"{source}, line {line}: field 'name': {needle.name!r} is also the name on line "
                f"{lines[needle.name]}; give each needle a name of its own"
            )
        lines[needle.name] = line
        needles.append(needle)
    return needles


def place(text: str) -> Placed:
    """The value of a JSON text, with the line of everything in it.

    Args:
        text: JSON that `json.loads` accepts.
    """
    return _place(text, _skip(text, 0))[0]


def _place(text: str, at: int) -> tuple[Placed, int]:
    """The value that begins at character `at`, and the character after it."""
    start = at
    items: list[Placed] = []
    fields: list[tuple[str, int, Placed]] = []
    if text[at] in "[{":
        at = _skip(text, at + 1)
        while text[at] not in "]}":
            if text[start] == "[":
                item, at = _place(text, at)
                items.append(item)
            else:
                key_line = _line(text, at)
                key, at = _DECODER.raw_decode(text, at)
                item, at = _place(text, _skip(text, at))
                fields.append((key, key_line, item))
            at = _skip(text, at)
    value, end = _DECODER.raw_decode(text, start)
    return Placed(value, _line(text, start), items, fields), end


def _skip(text: str, at: int) -> int:
    """The next character that is no white space, comma or colon; between the tokens of valid JSON only."""
    found = _GAP.match(text, at)
    return at if found is None else found.end()


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _kind(value: object) -> str:
    """A JSON value's type, as JSON calls it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = ((dict, "an object"), (list, "a list"), (str, "a string"))
    return next((name for kind, name in names if isinstance(value, kind)), "a number")


def _read_needle(item: Placed, number: int, source: str) -> tuple[Needle, int]:
    """One needle and the line of its name."""
    if not isinstance(item.value, dict):
        raise InputError(f"{source}, line {item.line}: needle {number} is {_kind(item.value)}; expected {EXAMPLE}")
    found: dict[str, Placed] = {}
    for name, line, value in item.fields:
        if name not in FIELDS:
            raise InputError(
                f"{source}, line {line}: needle {number} has the unknown field {name!r}{closest(name, FIELDS)}; "
                f"expected {', '.join(FIELDS)}"
            )
        if name in found:
            raise InputError(f"{source}, line {line}: needle {number} has the field {name!r} twice; give it once")
        found[name] = value
    missing = [name for name in FIELDS if name not in found]
    if missing:
        raise InputError(
            f"{source}, line {item.line}: needle {number} has no field {missing[0]!r}; expected {', '.join(FIELDS)}"
        )
    for name in FIELDS[:3]:
        value, line = found[name].value, found[name].line
        if not isinstance(value, str):
            raise InputError(f"{source}, line {line}: field {name!r} is {_kind(value)}; expected a string")
        if not sound(value):
            raise InputError(f"{source}, line {line}: field {name!r}, {shown(value)}, is no valid Unicode: {BROKEN}")
        if not re.search(r"\w", value):
            raise InputError(f"{source}, line {line}: field {name!r} is {value!r}, without a word; expected text")
    name, sentence, question = (str(found[field].value).strip() for field in FIELDS[:3])
    needle = Needle(name, sentence, question, _read_rubric(found["rubric"], sentence, source))
    if NEEDLES.get(name, needle) != needle:
        raise InputError(
            f"{source}, line {found['name'].line}: field 'name': {name!r} is a built-in needle with other content; "
            "choose another name"
        )
    return needle, found["name"].line


def _read_rubric(placed: Placed, sentence: str, source: str) -> Rubric:
    """The rules of one needle, checked against its sentence."""
    where = f"{source}, line {placed.line}: field 'rubric'"
    if not isinstance(placed.value, list):
        raise InputError(f'{where} is {_kind(placed.value)}; expected a list of ["phrase", points, "add" or "set"]')
    rules = [
        read_rule(item.value, f"{source}, line {item.line}: field 'rubric'", number)
        for number, item in enumerate(placed.items, start=1)
    ]
    check_rubric(rules, sentence, where)
    return tuple(rules)
