"""Options of experiments: typed, checked once, frozen, and what the command line offers of them.

An experiment's `Options` are a pydantic model. A field with a description is an option of its command; a value may be
given as it is typed there (``"0,4,8"``, ``"2GB"``) or as what it stands for. Whatever is wrong comes out as one line
that names the option, what was given and what was expected. Nothing here loads a model.

How it fails: `InputError`, or `UnknownNameError` for a name that does not exist, when the options are made; what only
a model can tell is refused by the experiment before its folder is touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hybridlens.errors import HybridLensError, InputError, UnknownNameError, closest

MOST_VALUES = 100_000
DIGITS = 18
"""Of a number in a list, at most: more is beyond any size that there is."""

Self = TypeVar("Self", bound="Options")


class Checked(BaseModel):
    """Values that are all checked when they are made.

    Raises:
        InputError: a value of the wrong type, or out of its range.
        UnknownNameError: a name that does not exist.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", arbitrary_types_allowed=True, validate_default=True
    )

    if not TYPE_CHECKING:

        def __init__(self, **given):
            try:
                super().__init__(**given)
            except ValidationError as error:
                raise refusal(error, type(self).model_fields) from None


class Options(Checked):
    """Options of an experiment; make a changed copy with `but`."""

    model: str
    """What results call the model: an embedded one, a folder, or a hub id."""
    revision: str | None = Field(None, description="Of a hub id: a branch, a tag or a commit.")
    command: str = ""
    """The command line, to be recorded."""

    def but(self: Self, **changes: Any) -> Self:
        """The same options with some of them changed, checked again."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


def refusal(error: ValidationError, known: Mapping[str, Any]) -> HybridLensError:
    """The first thing that is wrong, as one of our errors."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, HybridLensError):
        return cause
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return UnknownNameError(f"option {name!r} does not exist{closest(name, known)}; there is {', '.join(known)}")
    if first["type"] == "missing":
        return InputError(f"{flag(name)} is missing; give it")
    given = re.sub(r"\s+", " ", repr(first["input"]))
    given = given if len(given) <= 80 else f"{given[:77]}..."
    return InputError(f"{flag(name)} {given} given, expected {first['msg'].removeprefix('Input should be ')}")


FLAGS = {"phases": "--phase", "runs": "RUNS"}
"""Fields that the command line names otherwise."""


def flag(name: str | None) -> str:
    """How the command line names a field."""
    return FLAGS.get(name or "") or f"--{(name or 'option').replace('_', '-')}"


def parse_list(option: str, text: str) -> tuple[int, ...]:
    """The whole numbers of a list like ``0,4,8``, ``0..8`` or ``0..3,8``.

    Args:
        option: its name, for the error: "--heads".
        text: what was typed.

    Raises:
        InputError: it is no such list.
    """
    values: list[int] = []
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    for part in text.split(","):
        match = re.fullmatch(rf"\s*(\d{{1,{DIGITS}}})\s*(?:\.\.\s*(\d{{1,{DIGITS}}})\s*)?", part, re.ASCII)
        if match is None:
            raise InputError(f"{option} {shown!r} given, expected whole numbers like 0,4,8 or 0..8")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first or last - first > MOST_VALUES or len(values) > MOST_VALUES:
            raise InputError(f"{option} {shown!r} given, but {first}..{last} is no range; write the lower end first")
        values += range(first, last + 1)
    return tuple(values)


def typed(read: Callable[[str], object]) -> BeforeValidator:
    """What is typed on a command line is read; anything else is taken as it is."""
    return BeforeValidator(lambda value: read(value) if isinstance(value, str) else value)


def _numbers(value: object, info: Any) -> object:
    return parse_list(flag(info.field_name), value) if isinstance(value, str) else value


def words_of(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(part.strip() for part in text.split(","))


def distinct(option: str, values: Sequence[Any]) -> None:
    """Refuse no value, and one that is given twice; needles are told apart by their names."""
    names = [getattr(value, "name", value) for value in values]
    if not names:
        raise InputError(f"{option} is empty, expected at least one value")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{option} holds {twice} more than once; give each once")


def once(values: Sequence[Any] | None, info: Any) -> Sequence[Any] | None:
    """`distinct` as a check of a field, which may be left out."""
    if values is not None:
        distinct(flag(info.field_name), values)
    return values


def alone(options: Options, given: str, others: Sequence[str]) -> None:
    """Refuse options of needle prompts beside an option that puts something of the user's in their place.

    Args:
        options: all of them.
        given: the field that is to stand alone.
        others: the fields that must be left as they are where it is given.

    Raises:
        InputError: one of them was changed.
    """
    fields = type(options).model_fields
    changed = [name for name in others if getattr(options, name) != fields[name].default]
    if getattr(options, given) is not None and changed:
        raise InputError(
            f"{flag(given)} and {flag(changed[0])} are given; own texts have no needle of ours, give one of the two"
        )


def unknown(what: str, name: str, known: Sequence[str]) -> UnknownNameError:
    """The refusal of a name that does not exist."""
    return UnknownNameError(f"{what} {name!r} does not exist{closest(name, known)}; expected one of {', '.join(known)}")


def one_of(known: Sequence[str], what: str | None = None) -> AfterValidator:
    """A check that a name, or each of several, exists."""

    def check(value: Any, info: Any) -> Any:
        for name in () if value is None else (value,) if isinstance(value, str) else value:
            if name not in known:
                raise unknown(what or (info.field_name or "").replace("_", " "), name, known)
        return value

    return AfterValidator(check)


def _memory(value: object, info: Any) -> object:
    from hybridlens.engine import parse_memory  # which loads torch

    if not isinstance(value, str):
        return value
    if len(value) > DIGITS:
        raise InputError(f"{flag(info.field_name)} {value[:15]!r}... given, expected a size such as 2GB or 500MB")
    return parse_memory(value, flag(info.field_name))


Item = TypeVar("Item")
Natural = Annotated[int, Field(ge=0)]
Listed = Annotated[Item, BeforeValidator(_numbers), AfterValidator(once)]
Numbers = Listed[tuple[Natural, ...]]
MaybeNumbers = Listed[tuple[Natural, ...] | None]
MaybeWords = Annotated[tuple[str, ...] | None, typed(words_of), AfterValidator(once)]
Memory = Annotated[
    Annotated[int, Field(ge=1)] | None,
    BeforeValidator(_memory),
    Field(
        description="What may be held beside the weights, like 2GB; a share of what is free when left out. Changes no "
        "result.",
        json_schema_extra={"typed": None},
    ),
]
Seed = Annotated[int, Field(ge=0, description="Of everything that is drawn.")]
