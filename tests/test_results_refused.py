"""What a run's folder refuses, untouched: another run, a cell that does not belong, what is somebody else's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import EXPECTED, MANIFEST, grid, run_all, snapshot

from hybridlens.errors import InputError, ResultsError
from hybridlens.results import Run


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder with a complete run."""
    run_all(tmp_path / "run")
    return tmp_path / "run"


def test_a_manifest_is_checked_at_the_door() -> None:
    with pytest.raises(InputError, match=r"^seed = '0' given, expected a whole number$"):
        replace(MANIFEST, seed="0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"run with --seed 0, and this one has 1; give the same arguments to go on"),
        ({"model": "big"}, r'--model "tiny", and this one has "big"'),
        ({"weights_hash": "v"}, r'the model\'s weights \(their hash\) "w", and this one has "v"'),
        (
            {"arguments": {"lengths": [64], "depths": [0, 50, 100], "needle": "x" * 300}},
            r"--lengths \[64, 128\], and this one has \[64\]",
        ),
        (
            {"arguments": {"lengths": [64, 128], "depths": [0], "needle": "x" * 150 + "y" * 150}},
            r"--depths \[0, 50, 100\], and this one has \[0\] \(--needle differ too\)",
        ),
        (
            {"arguments": {"lengths": [64, 128], "depths": [0, 50, 100]}},
            r'--needle …?"?x+…, and this one has "not given"',
        ),
    ],
)
def test_another_runs_folder_is_refused_untouched(finished: Path, change: dict[str, Any], message: str) -> None:
    """One clear line with the argument and both values; every byte of the folder stays as it was."""
    before = snapshot(finished)
    with pytest.raises(ResultsError, match=message) as caught:
        Run.open(finished, replace(MANIFEST, **change), EXPECTED).__enter__()
    assert "\n" not in str(caught.value)
    assert snapshot(finished) == before


def test_other_prompts_are_another_run(finished: Path) -> None:
    """A changed haystack changes the prompts but no argument; their hash tells."""
    changed = {key: digest + "!" for key, digest in EXPECTED.items()}
    with pytest.raises(ResultsError, match="the prompts"):
        Run.open(finished, MANIFEST, changed).__enter__()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 3}, "is not part of the run's grid"),
        ({"prompt_hash": "z"}, "made from prompt z, and the grid has 64-0"),
        ({"score": 5.5}, r"score 5\.5 is outside 0 to 5"),
        ({"score": float("nan")}, "score = nan given, expected a finite number"),
        ({"needle_start": None}, "needle span"),
        ({"needle_end": 0}, "needle span"),
        ({"seconds": -1.0}, "seconds = -1.0 given"),
    ],
)
def test_an_impossible_cell_is_refused_with_its_batch(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """The good cell of the same batch must not be stored either, or a batch could be half-written."""
    good, bad = grid()[1], replace(grid()[0], **change)
    with Run.open(tmp_path, MANIFEST, EXPECTED) as run:
        with pytest.raises(ResultsError, match=message):
            run.add([good, bad])
        assert run.done == frozenset()
    assert snapshot(tmp_path) == {}


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """The message has the user's path; the file keeps its bytes."""
    path = tmp_path / "results"
    path.write_text("mine")
    with pytest.raises(ResultsError, match=r"results is a file; name a folder"):
        Run.open(path, MANIFEST, EXPECTED).__enter__()
    assert path.read_text() == "mine"
    with pytest.raises(ResultsError, match=r"cannot be used \(Not a directory\)"):
        Run.open(path / "below", MANIFEST, EXPECTED).__enter__()


def test_a_foreign_record_is_not_overwritten(tmp_path: Path) -> None:
    """Somebody else's run.json in the folder stays theirs."""
    (tmp_path / "run.json").write_text('{"name": "another tool"}')
    before = snapshot(tmp_path)
    with pytest.raises(ResultsError, match="remove what is there, or give another"):
        Run.open(tmp_path, MANIFEST, EXPECTED).__enter__()
    assert snapshot(tmp_path) == before
