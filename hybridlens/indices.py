"""Row numbers, in whatever form they are given."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Annotated, Any, Protocol, SupportsIndex, TypeAlias, cast, runtime_checkable

from hybridlens.boundary_words import Unchecked, shown
from hybridlens.errors import InputError


@runtime_checkable
class Listed(Protocol):
    """A tensor or numpy array."""

    def tolist(self) -> Any:
        """Its entries as plain numbers."""
        ...


Rows: TypeAlias = Annotated[Sequence[SupportsIndex] | Listed, Unchecked("row numbers")]
"""Row numbers as users have them."""


def rows_of(given: object, whose: str) -> tuple[int, ...]:
    """`numbers_of`, each once."""
    return tuple(dict.fromkeys(numbers_of(given, whose)))


def numbers_of(given: object, whose: str) -> tuple[int, ...]:
    """Row numbers as plain integers, in their order.

    Args:
        given: a list, tuple or range of integers (numpy's and tensors of one entry as well), or a tensor or numpy
            array of integers with one axis.
        whose: what they are rows of, or were given to: the first words of the error.

    Raises:
        InputError: for anything else; truth values are no row numbers.
    """
    values = given.tolist() if isinstance(given, Listed) else given
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise _refused(given, whose)
    return tuple(_row(value, given, whose) for value in cast(Sequence[object], values))


def _row(value: object, given: object, whose: str) -> int:
    plain: Any = cast(Any, value).item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(plain, bool):
        raise _refused(given, whose)
    try:
        return operator.index(plain)
    except (TypeError, RuntimeError) as error:
        raise _refused(given, whose) from error


def _refused(given: object, whose: str) -> InputError:
    rows = _one_line(given)
    return InputError(f"{whose} was given rows {rows}, expected row numbers: integers in a list, an array or a tensor")


def _one_line(given: object) -> str:
    if not isinstance(given, Listed):
        return shown(given)
    text = " ".join(repr(given).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
