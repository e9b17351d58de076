"""The door of the library: what annotations say is checked once, everything is refused in one line."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from annotated_types import Gt, MinLen
from jaxtyping import Float, Int
from random_lens import benchmark_lens
from torch import Tensor

from hybridlens import niah
from hybridlens.boundary import Length, Natural, Percent, Positive, Seed, public
from hybridlens.boundary_words import Among, shown
from hybridlens.errors import HybridLensError, InputError, UnknownNameError

Phase = Annotated[str, Among(("prefill", "decode", "both"))]


class Row(NamedTuple):
    """A class of which an instance is wanted."""

    a: int


@public
def door(
    depths: Sequence[Percent] | None = None,
    *,
    count: Positive = 1,
    seed: Seed = 0,
    flag: bool = False,
    share: float = 0.5,
    above: Annotated[float, Gt(0)] = 1.0,
    phase: Phase = "both",
    phases: Sequence[Phase] = (),
    kind: Literal["a", "b"] = "a",
    k: int | Sequence[int] | Int[Tensor, "rows"] = 1,
    span: tuple[int, int] = (0, 1),
    rows: Sequence[Row] = (),
    some: Annotated[Sequence[str], MinLen(1)] = ("x",),
    table: Mapping[str, int] | None = None,
    weights: Float[Tensor, "a b"] | None = None,
    fn: Callable[[int], int] | None = None,
    path: str | Path = "",
) -> dict[str, Any]:
    """What was given."""
    return dict(locals())


RIGHT: list[tuple[str, Any, Any]] = [
    ("depths", [0, np.int64(3), torch.tensor(100)], (0, 3, 100)),
    ("depths", np.array([1, 2]), (1, 2)),
    ("depths", torch.tensor([1, 2]), (1, 2)),
    ("depths", range(3), (0, 1, 2)),
    ("count", np.int32(4), 4),
    ("share", np.float32(0.5), 0.5),
    ("share", 2, 2.0),
    ("phases", ["both"], ("both",)),
    ("k", [1, 2], (1, 2)),
    ("span", [1, 2], (1, 2)),
    ("rows", [Row(1)], (Row(1),)),
    ("table", {"a": 1}, {"a": 1}),
    ("path", Path("x"), Path("x")),
]


@pytest.mark.parametrize(("name", "given", "inside"), RIGHT)
def test_what_means_the_same_arrives_as_pythons_own(name: str, given: Any, inside: Any) -> None:
    """Equal, and of the same type too: numpy's 4 equals 4 but cannot be written as JSON."""
    got = door(**{name: given})[name]
    assert got == inside
    assert type(got) is type(inside)
    if isinstance(got, tuple):
        assert [type(item) for item in got] == [type(item) for item in inside]


def test_tensors_arrive_as_they_are() -> None:
    weights, rows = torch.ones(2, 3), torch.tensor([1, 2])
    got = door(weights=weights, k=rows)
    assert got["weights"] is weights
    assert got["k"] is rows


WRONG: list[tuple[str, Any, str]] = [
    ("depths", [math.nan], "depths[0] = nan given, expected depths to be a list of whole numbers from 0 to 100"),
    ("depths", [5, True], "depths[1] = True given, expected depths to be a list of whole numbers"),
    ("depths", [0, 101], "depths[1] = 101 given"),
    ("depths", [0.0], "depths[0] = 0.0 given"),
    ("depths", "0", "depths = '0' given, expected a list of whole numbers"),
    ("depths", {1, 2}, "depths = {1, 2} given"),
    ("depths", np.array([0.5]), "depths = a ndarray [1] of float64 given"),
    ("count", 0, "count = 0 given, expected a whole number from 1 to 2147483647"),
    ("count", 10**30, "count = 1000000000000000000000000000000 given"),
    ("count", 10**5000, "count = a whole number of about"),
    ("seed", None, "seed = None given, expected a whole number from 0"),
    ("seed", 2.7, "seed = 2.7 given"),
    ("seed", "a\nb", r"seed = 'a\nb' given"),
    ("flag", [], "flag = [] given, expected True or False"),
    ("flag", 1, "flag = 1 given, expected True or False"),
    ("flag", int, "flag = the class int given"),
    ("share", math.inf, "share = inf given, expected a finite number"),
    ("share", True, "share = True given"),
    ("above", 0, "above = 0 given, expected a finite number above 0"),
    ("phase", "bogus", "phase 'bogus' does not exist; expected one of prefill, decode, both"),
    ("phase", "decod", "phase 'decod' does not exist; close names: decode; expected one of"),
    ("phase", 3, "phase = 3 given, expected one of prefill, decode, both"),
    ("phases", ["both", "bo"], "phases[1] 'bo' does not exist"),
    ("phases", "both", "phases = 'both' given, expected a list of names out of prefill, decode, both"),
    ("kind", "c", "kind 'c' does not exist; expected one of a, b"),
    ("k", 2.5, "k = 2.5 given, expected a whole number, a list of whole numbers or an int tensor [rows]"),
    ("k", [1, 2.5], "k[1] = 2.5 given"),
    ("k", torch.ones(2), "k = a Tensor [2] of torch.float32 given"),
    ("span", (1, 2, 3), "span = (1, 2, 3) given, expected a tuple of a whole number and a whole number"),
    ("rows", [3], "rows[0] = 3 given, expected rows to be a list of values of class Row(a"),
    ("some", [], "some = [] given, expected a list of strings, at least 1"),
    ("table", {"a": 1.5}, "table = {} given, expected a dict from strings to whole numbers or None"),
    ("weights", torch.ones(2), "weights = a Tensor [2] of torch.float32 given, expected a float tensor [a b] or None"),
    ("fn", 3, "fn = 3 given, expected a function or None"),
    ("path", 3, "path = 3 given, expected a string or a Path"),
    ("path", "x\ud800", r"path = 'x\ud800' given, which is no valid Unicode"),
]


@pytest.mark.parametrize(("name", "given", "message"), WRONG, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(WRONG)])
def test_every_refusal_names_argument_value_and_expectation(name: str, given: Any, message: str) -> None:
    with pytest.raises(HybridLensError) as caught:
        door(**{name: given})
    assert str(caught.value).startswith(message.replace("{}", shown(given)))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UnknownNameError if "does not exist" in message else InputError)
    assert caught.value.__cause__ is None


def test_every_item_of_a_long_list_is_looked_at() -> None:
    """One wrong item in each of 200 places; a checker that samples would let some through."""
    for place in range(200):
        depths: list[Any] = [1] * 200
        depths[place] = 1.5
        with pytest.raises(InputError, match=rf"depths\[{place}\] = 1.5"):
            door(depths)


def test_a_call_that_does_not_fit_the_signature_is_pythons_type_error() -> None:
    wrong: Any = door
    with pytest.raises(TypeError, match="unexpected keyword argument 'depht'"):
        wrong(depht=3)
    with pytest.raises(TypeError, match="positional argument"):
        wrong([1], 2)


def test_a_dataclass_is_checked_when_it_is_made() -> None:
    @public
    @dataclass(frozen=True)
    class Pair:
        """Two tokens."""

        right: Natural
        wrong: Natural = 0

    assert Pair(np.int64(3)) == Pair(3, 0)
    with pytest.raises(InputError, match="wrong = True given, expected a whole number from 0 "):
        Pair(1, True)


def test_a_value_in_words_is_short_and_one_line() -> None:
    values = ["a\n" * 10**4, ["x" * 999] * 10**4, dict.fromkeys(range(99), "\n"), torch.zeros(9, 9), object(), 10**9999]
    for value in values:
        assert len(shown(value)) < 200
        assert "\n" not in shown(value)


def test_importing_the_door_loads_no_pydantic() -> None:
    code = "import sys, hybridlens.boundary; print('pydantic' in sys.modules, 'torch' in sys.modules)"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# Bad calls of the public functions, as users make them.


def test_bad_calls_are_refused_in_one_line_or_work(tmp_path: Path) -> None:
    """800 seeded calls with one or two arguments exchanged for junk; each works, or raises one line of our own.

    Most are refused: with the door open they would end in errors of torch, numpy or Python, which fail this test.
    Before, each of `bad_calls.SILENT` was accepted without a word, or answered by another library.
    """
    folder = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{folder.parent}"}
    command = [sys.executable, str(folder / "bad_calls.py"), "800"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert 400 < found["refused"] < 800
    assert len(found["silent"]) > 10
    assert [said for message, said in found["silent"] if not said.startswith(message)] == []


def test_lengths_have_a_bound() -> None:
    """A length beyond any sense is refused before its text is made."""
    assert Length.__metadata__[1].le == 1_000_000
    with pytest.raises(InputError, match=r"lengths\[0\] = 1000001 given"):
        niah.grid(benchmark_lens("jamba").tokenizer, [1_000_001])
