"""A run on disk: written and read back, stopped, killed, gone on with, and finished."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from small_runs import EXPECTED, MANIFEST, grid, run_all, snapshot

from hybridlens.errors import ResultsError
from hybridlens.results import Run, read_cells
from hybridlens.results.cells import FIELDS


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder with a complete run."""
    run_all(tmp_path / "run")
    return tmp_path / "run"


def test_a_run_writes_the_table_the_record_and_the_same_cells_back(finished: Path) -> None:
    """Every value of 32 cells, odd texts included, is compared with the one that was added."""
    assert read_cells(finished) == grid()
    table = pq.read_table(finished / "cells.parquet")
    assert table.column_names == [*FIELDS, "checksum"]
    assert [{n: row[n] for n in FIELDS} for row in table.to_pylist()] == [asdict(c) for c in grid()]
    record = json.loads((finished / "run.json").read_text())
    assert record["status"] == "complete"
    assert record["arguments"]["depths"] == [0, 50, 100]
    assert record["sessions"][0]["environment"]["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert record["cells_done"] == record["cells"] == 32
    assert record["created"] <= record["finished"]


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path: Path, finished: Path) -> None:
    """After a stop the finished batches are there, the rest is run, and the end equals an unbroken run."""
    folder = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        run_all(folder, stop_after=4)
    assert read_cells(folder) == grid()[:12]
    assert pq.read_table(folder / "cells.parquet").num_rows == 12, "readable before it is complete"
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    with Run.open(folder, MANIFEST, EXPECTED) as run:
        assert run.damaged == ()
        assert run.todo == [c.key for c in grid()[12:]]
        assert run.done == {c.key for c in grid()[:12]}
    run_all(folder)
    assert (folder / "cells.parquet").read_bytes() == (finished / "cells.parquet").read_bytes()
    assert len(json.loads((folder / "run.json").read_text())["sessions"]) == 2, "a look at it is no session"


def test_a_killed_run_loses_at_most_its_batch(tmp_path: Path) -> None:
    """SIGKILL leaves no time to tidy up; every batch whose `add` had returned must still be there."""
    code = (
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "import small_runs as t\n"
        f"held = t.Run.open(Path({str(tmp_path / 'run')!r}), t.MANIFEST, t.EXPECTED)\nrun = held.__enter__()\n"
        "for cell in t.grid()[:10]:\n    run.add([cell])\n"
        "print('ten', flush=True)\n"
        "time.sleep(600)\n"
    )
    root = Path(__file__).resolve().parent.parent
    child = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "ten\n"
        with pytest.raises(ResultsError, match=r"run is being written by another process; wait for it, or give"):
            Run.open(tmp_path / "run", MANIFEST, EXPECTED).__enter__()
        child.send_signal(signal.SIGKILL)
    assert read_cells(tmp_path / "run") == grid()[:10]
    with Run.open(tmp_path / "run", MANIFEST, EXPECTED) as run:
        assert run.damaged == ()
        assert len(run.todo) == 22


def test_settings_may_change(tmp_path: Path) -> None:
    """A smaller batch after running out of memory changes no cell, so the run goes on and records both."""
    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path, stop_after=2)
    with Run.open(tmp_path, replace(MANIFEST, settings={"batch_size": 1}), EXPECTED) as run:
        assert len(run.done) == 6
        run.add([grid()[6]])
        assert [s["settings"]["batch_size"] for s in run.record["sessions"]] == [8, 1]


def test_finish_wants_every_cell(tmp_path: Path) -> None:
    """A table that claims to be complete must be; 31 cells of 32 are not."""
    with Run.open(tmp_path, MANIFEST, EXPECTED) as run:
        run.add(grid()[:31])
        with pytest.raises(ResultsError, match=r"1 of 32 cells .* prefill, k 4, length 128, control"):
            run.finish()


def test_a_complete_run_opened_again_changes_nothing(finished: Path) -> None:
    """Running the same command again finds nothing to do; no byte of the folder may differ after it."""
    before = snapshot(finished)
    run_all(finished)
    assert snapshot(finished) == before
