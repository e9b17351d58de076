"""Prompt pairs of a user's own, from a file: a JSON list of objects that each hold a clean and a corrupt text.

    [{"name": "ioi", "clean": "…", "corrupt": "…", "answers": ["…", "…"]}]

The name may be left out, and so may the answers, what the model should say to each, where only the model's own are
needed. A list of one may be written as the object alone.

How it fails: `InputError` in one line that names the file and the pair: a file that cannot be read or holds
something else, texts that are the same, a name given twice or that the file lacks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, cast

from hybridlens.boundary_words import BROKEN, shown, sound
from hybridlens.errors import InputError, UnknownNameError, closest

EXAMPLE = '{"name": "…", "clean": "…", "corrupt": "…", "answers": ["…", "…"]}'
FIELDS = ("name", "clean", "corrupt", "answers")


class OwnPair(NamedTuple):
    """Two texts, and what answers each."""

    name: str
    clean: str
    corrupt: str
    answers: tuple[str, str] | None = None


def read_pairs(given: str) -> tuple[OwnPair, ...]:
    """The pairs of a file, or some of them, ``FILE.json:NAME,NAME``.

    Raises:
        InputError: see the module.
        UnknownNameError: a name that the file lacks.
    """
    path, colon, names = given.rpartition(":")
    chosen = [name.strip() for name in names.split(",")] if colon and path.endswith(".json") else []
    path = path if chosen else given
    held = {pair.name: pair for pair in _held(path)}
    for name in chosen:
        if name not in held:
            raise UnknownNameError(
                f"prompt pair {name!r} of {path!r} does not exist{closest(name, held)}; it holds {', '.join(held)}"
            )
    return tuple(held[name] for name in chosen or held)


def read_pair(given: str) -> OwnPair:
    """The one pair of a file, or the one that is named.

    Raises:
        InputError: see the module, or the file holds several and none is named.
        UnknownNameError: a name that the file lacks.
    """
    found = read_pairs(given)
    first, *others = found
    if others:
        names = ", ".join(pair.name for pair in found)
        raise InputError(f"--prompts {given!r} holds {names}; choose one, as in {given}:{first.name}")
    return first


def _held(path: str) -> list[OwnPair]:
    where = f"prompt file {path!r}"
    try:
        held: Any = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror}); give a JSON list of {EXAMPLE}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON in UTF-8 ({error}); give a list of {EXAMPLE}") from error
    items = cast(list[Any], held if isinstance(held, list) else [held])
    if not items:
        raise InputError(f"{where} holds no pair, expected a list of {EXAMPLE}")
    found: list[OwnPair] = []
    for number, item in enumerate(items, start=1):
        pair = _pair(item, number, where)
        if pair.name in {other.name for other in found}:
            raise InputError(f"{where}: two pairs are called {pair.name!r}; give each a name of its own")
        found.append(pair)
    return found


def _pair(item: Any, number: int, where: str) -> OwnPair:
    if not isinstance(item, dict):
        raise InputError(f"{where}: pair {number} is {shown(item)}, expected {EXAMPLE}")
    fields = cast(dict[str, Any], item)
    odd = next((name for name in fields if name not in FIELDS), None)
    if odd is not None:
        raise InputError(f"{where}: pair {number} has the unknown field {odd!r}; expected {', '.join(FIELDS)}")
    name, clean, corrupt = (fields.get(name, default) for name, default in (("name", f"pair-{number}"), ("clean", None),
                                                                             ("corrupt", None)))  # fmt: skip
    for field, value in (("name", name), ("clean", clean), ("corrupt", corrupt)):
        _check_text(value, f"{where}: {field!r} of pair {number}")
    if clean == corrupt:
        raise InputError(f"{where}: both texts of pair {number} are the same, expected texts that differ")
    answers = fields.get("answers")
    if answers is not None:
        if not isinstance(answers, list) or len(cast(list[Any], answers)) != 2:
            raise InputError(f"{where}: 'answers' of pair {number} is {shown(answers)}, expected a list of two texts")
        for answer in cast(list[Any], answers):
            _check_text(answer, f"{where}: an answer of pair {number}")
        answers = (str(answers[0]), str(answers[1]))
    return OwnPair(str(name), str(clean), str(corrupt), answers)


def _check_text(value: Any, what: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{what} is {shown(value)}, expected text")
    if not sound(value):
        raise InputError(f"{what}, {shown(value)}, is no valid Unicode: {BROKEN}")
