"""The benchmarks run: both sides of each agree at the smallest sizes, and a table is printed. No time is judged."""

import importlib
import re

import pytest
import torch
from models import EVERY_FAMILY
from planted_memory import pairs as planted_pairs
from planted_memory import planted

measure = importlib.import_module("tests.benchmarks.measure")


@pytest.mark.parametrize(("name", "rows"), [("capture", 13), ("memory", 11), ("families_states", 7)])
def test_a_benchmark_finds_both_sides_equal_and_prints_a_row_for_each_measurement(
    name: str, rows: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run at tiny sizes; wrong if the two sides no longer compute the same, or a library moved what is compared."""
    importlib.import_module(f"tests.benchmarks.{name}").main(["--smallest", "--runs", "1"])
    printed = [line for line in capsys.readouterr().out.splitlines() if line]
    lines = [line for line in printed if line.startswith("|")]
    assert "cores of" in next(line for line in printed if "torch" in line)
    assert len(lines) == rows + 2
    assert len({line.count("|") for line in lines}) == 1
    column = lines[0].split(" | ").index("sides differ by |")
    apart = [float(match[0]) for line in lines[2:] if (match := re.match(r"[\d.e-]+", line.split(" | ")[column]))]
    assert len(apart) == {"capture": 9, "memory": 3, "families_states": 7}[name]
    assert 0 < max(apart) <= measure.TOLERANCE


def test_every_family_is_timed() -> None:
    """A family that is opened and has no model here would be in no table of speed."""
    models = importlib.import_module("tests.benchmarks.families_models")
    assert set(models.FAMILIES) == set(EVERY_FAMILY)


def test_families_are_compared_before_they_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    """One run at tiny sizes: attention alone, a hybrid with experts, no attention; wrong if a side moved."""
    families = importlib.import_module("tests.benchmarks.families")
    only = ["llama", "jamba", "mamba2"]
    families.main(["--smallest", "--runs", "1", "--only", *only, "--rows", "forward", "decode", "topk"])
    printed = capsys.readouterr().out
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("|")]
    assert [line[0] for line in lines[2:]] == ["llama"] * 3 + ["jamba"] * 3 + ["mamba2"] * 2
    assert {line[-1] for line in lines[2:]} <= {"missed", "floor", "aim"}
    assert "missed floors: " in printed


def test_a_goal_says_what_is_reached() -> None:
    """At most where the aim is below the floor, at least where it is above; wrong by one sign, both would read well."""
    families = importlib.import_module("tests.benchmarks.families")
    assert [families.FORWARD.met(ratio) for ratio in (0.8, 0.81, 1.05, 1.06)] == ["aim", "floor", "floor", "missed"]
    assert [families.TOP_K.met(ratio) for ratio in (0.95, 0.94, 0.8, 0.79)] == ["aim", "floor", "floor", "missed"]


@pytest.mark.parametrize(("where", "needle_gone"), [("state", 0.0), ("head", 1.0)])
def test_states_of_other_texts_lose_a_needle_that_is_in_them(where: str, needle_gone: float) -> None:
    """Planted in one recurrent state, it is gone with the state; in a head's keys and values it is not."""
    check = importlib.import_module("tests.benchmarks.other_states")
    lens, pairs = planted("jamba", where, 1).lens, planted_pairs(4, seed=1)
    shares = [check.told(lens, pairs, states).mean for states in (check.OWN, check.NONE, check.OTHER)]
    assert shares == [1.0, needle_gone, needle_gone]


def test_sides_that_differ_are_refused() -> None:
    """A difference of one part in a thousand, another shape, a missing name: nothing may be timed then."""
    x = torch.arange(6.0).reshape(2, 3)
    assert measure.difference({"x": x}, {"x": x}) == 0
    for other in ({"x": x * 1.001}, {"x": x[:1]}, {"y": x}):
        with pytest.raises(AssertionError):
            measure.difference({"x": x}, other)


def test_the_peak_is_what_is_held_at_once() -> None:
    """Two megabytes held together count twice, one after the other once, and what is held before not at all."""
    before = torch.zeros(2**18)

    def together() -> object:
        return torch.ones(2**18), torch.ones(2**18)

    def in_turn() -> object:
        return [float(torch.ones(2**18)[0]) for _ in range(2)], before

    assert 2 * 2**20 <= measure.peak_bytes(together) < 2.2 * 2**20
    assert 2**20 <= measure.peak_bytes(in_turn) < 1.2 * 2**20


def test_a_ratio_is_of_neighbouring_runs() -> None:
    """The other side is counted as often as ours, in turn, and the first run of each does not count."""
    order: list[str] = []
    times = measure.paired(lambda: order.append("ours"), lambda: order.append("theirs"), 3)
    assert order == ["ours", "theirs"] * 4
    assert times.least <= times.faster <= times.most
