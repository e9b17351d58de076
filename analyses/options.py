"""What people type as options, read and checked: whole numbers in lists, needles with their rubrics, phases.

Lists are written ``0,4,8`` or ``0..8`` (both ends included), or mixed. Nothing here loads a model.

How it fails: whatever cannot be read raises `InputError` with the option and what was given.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from hybridlens.errors import InputError, UnknownNameError, closest

if TYPE_CHECKING:
    from hybridlens import niah

PHASES: dict[str, tuple[str, ...]] = {
    "generation": ("generation",),
    "prefill": ("prefill",),
    "both": ("generation", "prefill"),
}
"""The values of ``--phase``, and the versions of the experiment that each stands for."""

MOST_VALUES = 100_000


def parse_list(option: str, text: str) -> tuple[int, ...]:
    """The whole numbers of a list like ``0,4,8``, ``0..8`` or ``0..3,8``.

    Args:
        option: its name, for the error: "--heads".
        text: what was typed.

    Raises:
        InputError: it is no such list.
    """
    values: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", part)
        if match is None:
            raise InputError(f"{option} {text!r} given, expected whole numbers like 0,4,8 or 0..8")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first or last - first > MOST_VALUES:
            raise InputError(f"{option} {text!r} given, but {first}..{last} is no range; write the lower end first")
        values += range(first, last + 1)
    return tuple(values)


def parse_phase(text: str) -> tuple[str, ...]:
    """The versions that ``--phase`` asks for.

    Raises:
        UnknownNameError: for any but generation, prefill and both.
    """
    if text not in PHASES:
        raise UnknownNameError(f"--phase {text!r} given{closest(text, PHASES)}; expected one of {', '.join(PHASES)}")
    return PHASES[text]


def read_needle(needle: str | None, question: str | None, rubric: Path | None) -> niah.Needle | None:
    """The needle of the three options, or None when none of them was given.

    A needle can also be one of those built in, by name, which brings its question and rubric along.

    Raises:
        InputError: some of the three are missing, or the rubric does not fit the needle.
    """
    from hybridlens import niah

    given = {"--needle": needle, "--question": question, "--rubric": rubric}
    if needle is not None and needle in niah.NEEDLES and question is None and rubric is None:
        return niah.NEEDLES[needle]
    missing = [name for name, value in given.items() if value is None]
    present = [name for name in given if name not in missing]
    if len(missing) == len(given):
        return None
    if missing:
        names = ", ".join(sorted(niah.NEEDLES))
        raise InputError(
            f"{' and '.join(present)} given without {' and '.join(missing)}; "
            f"an own needle needs all three, or give --needle alone with a built-in name: {names}"
        )
    assert needle is not None
    assert question is not None
    assert rubric is not None
    return niah.Needle("own", needle, question, niah.load_rubric(rubric, needle))


def read_needles(given: str) -> list[niah.Needle]:
    """The needles that ``--needles`` asks for.

    Args:
        given: "all" for those of a study (`niah.needle_set`), built-in names with commas between them, or a
            JSON file (`niah.load_needles`). What is a built-in name is one; write ./NAME for a file so called.

    Raises:
        InputError: a needle is named twice, or the file is refused.
        UnknownNameError: neither a file nor built-in names.
    """
    from hybridlens import niah

    names = niah.needle_set() if given == "all" else tuple(name.strip() for name in given.split(","))
    unknown = [name for name in names if name not in niah.NEEDLES]
    if not unknown:
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InputError(f"--needles names {twice[0]} more than once; give each needle once")
        return [niah.NEEDLES[name] for name in names]
    if Path(given).is_file() or given.endswith(".json"):
        return niah.load_needles(given)
    raise UnknownNameError(
        f"--needles {given!r} given, but {unknown[0]!r} is neither a file nor a built-in needle"
        f"{closest(unknown[0], niah.NEEDLES)}; expected a JSON file, all, or names of {', '.join(sorted(niah.NEEDLES))}"
    )


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: a JSON list of strings (ending .json), else one prompt a line.

    Raises:
        InputError: the file cannot be read, or holds no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # line ends come as \n
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--prompts {path} cannot be read as UTF-8 text ({error}); give a text or JSON file"
        ) from error
    if path.suffix != ".json":
        prompts = [line for line in text.split("\n") if line.strip()]
    else:
        try:
            prompts = json.loads(text)
        except (ValueError, RecursionError) as error:  # deep nesting
            raise InputError(f"--prompts {path} is not JSON ({error}); give a list of strings") from error
        if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
            raise InputError(f'--prompts {path} is no list of strings; give ["first prompt", "second prompt"]')
    if not prompts:
        raise InputError(f"--prompts {path} holds no prompt; write one on each line")
    return prompts
