"""Annotations are checked as often as something new is called with them: what is wrong is seen after what was right."""

import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError, install_import_hook

SOURCE = """
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor


def pair(x: Float[Tensor, "batch pos"], y: Float[Tensor, "pos"]) -> Float[Tensor, "batch"]:
    return x @ y if x.shape[0] != 5 else y


def kind(word: Literal["left", "right"]) -> int:
    return len(word)


def total(numbers: Sequence[int]) -> int:
    return sum(numbers)


def table(values: Mapping[str, int]) -> list[str]:
    return list(values)


def nested(answer: object) -> object:
    def inner(x: int) -> int:
        return answer

    return inner


def steps(n: int) -> Iterator[int]:
    yield from range(n)


@dataclass(frozen=True)
class Size:
    width: int


class Both(NamedTuple):
    x: Tensor
    n: int


def whole(both: Both, size: Size = Size(1)) -> Float[Tensor, "pos"]:
    return both.x
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A module whose functions are checked as those of the packages are."""
    folder: Path = tmp_path_factory.mktemp("checked")
    (folder / "checked_example.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    with install_import_hook("checked_example", "beartype.beartype"):
        import checked_example
    sys.path.remove(str(folder))
    return checked_example


def test_shapes_are_told_apart(checked):
    """A shape that does not fit is refused after one that does, and so is a dtype, at every call."""
    for _ in range(2):
        assert checked.pair(torch.ones(2, 3), torch.ones(3)).shape == (2,)
        for x, y in ((torch.ones(2, 3), torch.ones(4)), (torch.ones(3), torch.ones(3)), (torch.ones(2, 3), 1)):
            with pytest.raises(TypeCheckError):
                checked.pair(x, y)
        with pytest.raises(TypeCheckError):
            checked.pair(torch.ones(2, 3, dtype=torch.long), torch.ones(3))


def test_what_is_returned_is_checked_for_each_shape_of_the_arguments(checked):
    assert checked.pair(torch.ones(4, 3), torch.ones(3)).shape == (4,)
    with pytest.raises(TypeCheckError):
        checked.pair(torch.ones(5, 3), torch.ones(3))  # gives back y, of 3


def test_words_and_entries_are_told_apart(checked):
    assert checked.kind("left") == 4
    assert checked.total([1, 2]) == 3
    assert checked.total(range(30)) == checked.total(list(range(30))) == 435
    assert checked.table({"a": 1}) == ["a"]
    for call, wrong in (
        (checked.kind, "middle"), (checked.total, ["a", "b"]), (checked.total, ["a"] * 30), (checked.total, 3),
        (checked.table, {"a": "b"}), (checked.table, {1: 1}), (checked.steps, "2"), (checked.Size, "2"),
    ):  # fmt: skip
        for _ in range(2):
            with pytest.raises(TypeCheckError):
                call(wrong)


def test_functions_made_anew_are_checked_by_what_each_returns(checked):
    """The checks of a nested function are made once; an answer of another type is seen all the same."""
    assert checked.nested(1)(2) == 1
    with pytest.raises(TypeCheckError):
        checked.nested("a")(2)
    with pytest.raises(TypeCheckError):
        checked.nested(1)("b")


def test_generators_classes_and_defaults_work_as_they_do_unchecked(checked):
    assert list(checked.steps(3)) == list(checked.steps(3)) == [0, 1, 2]
    assert checked.Size(2) == checked.Size(width=2) != checked.Size(3)
    for length in (2, 3):
        assert checked.whole(checked.Both(torch.ones(length), 1)).shape == (length,)
    with pytest.raises(TypeCheckError):
        checked.whole(checked.Both(torch.ones(2, 2), 1))
    with pytest.raises(TypeCheckError):
        checked.whole(checked.Both(torch.ones(2), 1), size=3)


def test_a_call_like_an_earlier_one_is_not_checked(checked, monkeypatch):
    """Counted where the checks are: none after the first."""
    import checked_once

    x, y = torch.ones(6, 3), torch.ones(3)
    checked.pair(x, y)
    (checks,) = [one for one in checked_once._CHECKS.values() if one.code is checked.pair.__wrapped__.__code__]
    seen = []
    monkeypatch.setattr(checks, "arguments", lambda *given: seen.append(given))
    monkeypatch.setattr(checks, "returned", lambda *given: seen.append(given))
    checked.pair(x + 1, y)
    assert not seen
    checked.pair(torch.ones(7, 3), y)
    assert len(seen) == 2


def test_what_passes_while_checks_are_off_is_checked_when_they_are_on(checked, monkeypatch):
    with monkeypatch.context() as off:
        off.setattr("jaxtyping.config.jaxtyping_disable", True)
        assert checked.kind("up") == 2
    with pytest.raises(TypeCheckError):
        checked.kind("up")
