"""Damage to a run's files: it is named, what is lost is run again, and the folder is mended."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from small_runs import EXPECTED, MANIFEST, damage_both, grid, run_all, snapshot

from hybridlens.errors import ResultsError
from hybridlens.results import Run, read_cells, read_run


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder with a complete run."""
    run_all(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["cells.jsonl", "cells.parquet"])
@pytest.mark.parametrize("keep", [0.0, 0.4, 0.999])
def test_a_truncated_file_is_mended_from_the_other(finished: Path, name: str, keep: float) -> None:
    """With one of the two files cut short no cell is lost, the damage is named and the folder is mended."""
    path = finished / name
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with Run.open(finished, MANIFEST, EXPECTED) as run:
        assert run.todo == []
        if keep or name == "cells.parquet":
            assert len(run.damaged) == 1
            assert run.damaged[0].startswith(name)
        run.finish()
    assert read_run(finished).damaged == []
    assert read_cells(finished) == grid()


def test_damaged_cells_are_named_and_run_again(finished: Path) -> None:
    """Three of 32 cells are spoiled in both files: exactly those are named and run, and the rest is kept."""
    damage_both(finished, [1, 3, 30])
    with pytest.raises(ResultsError, match=r"damaged cells \(.*depth 50 %\).*mends it: hybridlens niah"):
        read_cells(finished)
    with Run.open(finished, MANIFEST, EXPECTED) as run:
        assert run.todo == [grid()[i].key for i in (1, 3, 30)]
        assert len(run.damaged) == 6
        for words in (
            "generation, k 0, length 64, depth 50 %",
            "generation, k 0, length 64, control",
            "prefill, k 4, length 128, depth 100 %",
        ):
            assert any(words in line and line.endswith("runs again") for line in run.damaged), run.damaged
        assert any("score 77.0 is outside 0 to 5" in line for line in run.damaged)
    run_all(finished)
    assert read_cells(finished) == grid()
    assert len(json.loads((finished / "run.json").read_text())["damaged"]) == 6


def test_a_row_that_goes_missing_is_named_and_run_again(finished: Path) -> None:
    """A complete run lacks nothing, so an absent row is damage and is said to be."""
    lines = (finished / "cells.jsonl").read_bytes().splitlines(keepends=True)
    (finished / "cells.jsonl").write_bytes(b"".join(lines[:5] + lines[6:]))
    pd.read_parquet(finished / "cells.parquet").drop(index=5).to_parquet(finished / "cells.parquet")
    with Run.open(finished, MANIFEST, EXPECTED) as run:
        assert run.todo == [grid()[5].key]
        assert len(run.damaged) == 1
        assert "missing" in run.damaged[0]
        assert grid()[5].key.words() in run.damaged[0]


def test_the_table_alone_is_enough(finished: Path) -> None:
    """Without the journal the table's rows count as done, also when pandas made floats of whole numbers."""
    (finished / "cells.jsonl").unlink()
    frame = pd.read_parquet(finished / "cells.parquet")
    assert frame["needle_start"].dtype == "float64", "pandas changed the type, which is the point"
    frame.to_parquet(finished / "cells.parquet")
    with Run.open(finished, MANIFEST, EXPECTED) as run:
        assert run.todo == []
        assert run.damaged == ()
        assert run.cells == grid()


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b'{"format": 1}'])
def test_a_lost_record_is_written_anew_when_the_cells_prove_the_run(finished: Path, content: bytes | None) -> None:
    """The cells are signed with the run's fingerprint, so the same command is known without `run.json`."""
    (finished / "run.json").unlink()
    if content is not None:
        (finished / "run.json").write_bytes(content)
    with pytest.raises(ResultsError, match=r"run.json (cannot be read|is missing); give a folder"):
        read_cells(finished)
    other = replace(MANIFEST, seed=1)
    before = snapshot(finished)
    with pytest.raises(ResultsError, match=r"no readable run\.json of this version and no cell of this command"):
        Run.open(finished, other, EXPECTED).__enter__()
    assert snapshot(finished) == before
    with Run.open(finished, MANIFEST, EXPECTED) as run:
        assert run.todo == []
        assert run.damaged == ("run.json cannot be read; written anew",)
        run.finish()
    assert read_cells(finished) == grid()
