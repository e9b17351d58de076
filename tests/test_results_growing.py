"""A study's folder, which grows: experiments share it, and none may change what another's cells depend on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import MANIFEST, damage_both, grid, snapshot

from hybridlens.errors import ResultsError
from hybridlens.results import Cell, Manifest, Run, read_cells

STUDY = replace(MANIFEST, job="study", growing={"needle paper": ["x", 5]})


def part(**change: Any) -> list[Cell]:
    """The cells of k 4, with some fields changed: one experiment of a study."""
    return [replace(c, **change) for c in grid() if c.k == 4]


def run_part(folder: Path, cells: list[Cell], manifest: Manifest = STUDY, stop: bool = False) -> Run:
    """Run one experiment of a study in batches of three; with `stop`, only the first batch."""
    by_key = {c.key: c for c in cells}
    with Run.open(folder, manifest, {c.key: c.prompt_hash for c in cells}) as run:
        todo = run.todo
        for start in range(0, 3 if stop else len(todo), 3):
            run.add([by_key[key] for key in todo[start : start + 3]])
        if not stop:
            run.finish()
    return run


def test_a_study_grows(tmp_path: Path) -> None:
    """Three experiments that overlap share one folder: nothing is run twice, lost or taken for damage."""
    first, second = part(), [*part(k=0)[:5], *part(reading="omit"), *part()[:3]]
    run_part(tmp_path, first)
    before = json.loads((tmp_path / "run.json").read_text())
    with Run.open(tmp_path, STUDY, {c.key: c.prompt_hash for c in second}) as run:
        assert run.damaged == ()
        assert run.todo == [c.key for c in second[:-3]]
        assert run.cells == first[:3]
        assert run.all_cells == first
        assert run.record["created"] == before["created"]
    run = run_part(tmp_path, second)
    assert run.cells == second
    assert read_cells(tmp_path) == run.all_cells == [*first, *second[:-3]]
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["status"], record["cells"], record["cells_done"]) == ("complete", 37, 37)
    whole = snapshot(tmp_path)
    run_part(tmp_path, first)
    run_part(tmp_path, second)
    assert snapshot(tmp_path) == whole, "opening an experiment that is done changes no byte"


def test_a_stopped_study_goes_on(tmp_path: Path) -> None:
    """Stopped in its second experiment, it keeps both what came before and the finished batch."""
    first, second = part(), part(answering="null")
    run_part(tmp_path, first)
    run_part(tmp_path, second, stop=True)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"
    assert read_cells(tmp_path) == [*first, *second[:3]]
    assert run_part(tmp_path, second).damaged == ()
    assert read_cells(tmp_path) == [*first, *second]


def test_a_study_may_not_change_what_its_cells_depend_on(tmp_path: Path) -> None:
    """A new name may come, a name's value may not change, and neither may a prompt or a shared argument."""
    run_part(tmp_path, part())
    before = snapshot(tmp_path)
    for other, cells, message in (
        (replace(STUDY, growing={"needle paper": ["x", 4]}), part(), r'with needle paper \["x", 5\], .* \["x", 4\]'),
        (replace(STUDY, seed=1), part(), "--seed 0, and this one has 1"),
        (STUDY, part(prompt_hash="z"), r"cell \(generation, k 4, length 64, depth 0 %\) made from prompt 64-0"),
        (replace(STUDY, growing=None), part(), "the prompts"),
    ):
        with pytest.raises(ResultsError, match=message):
            run_part(tmp_path, cells, other)
        assert snapshot(tmp_path) == before
    more = replace(STUDY, growing={"needle oslo": ["y", 5]})
    run_part(tmp_path, part(needle="oslo"), more)
    stated = json.loads((tmp_path / "run.json").read_text())["growing"]
    assert stated == {"needle paper": ["x", 5], "needle oslo": ["y", 5]}
    with pytest.raises(ResultsError, match="needle paper"):
        run_part(tmp_path, part(), replace(STUDY, growing={"needle paper": ["x", 4], "needle oslo": ["y", 5]}))


def test_damage_outside_a_studys_grid_is_named(tmp_path: Path) -> None:
    """A spoiled cell of another experiment is said and runs again with it; a cell gone from both files is counted."""
    first, second = part(), part(scope="model")
    run_part(tmp_path, first)
    damage_both(tmp_path, [2])
    run = run_part(tmp_path, second)
    assert len(run.damaged) == 2
    assert all("length 64, depth 100 %" in line and line.endswith("runs again") for line in run.damaged)
    lines = (tmp_path / "cells.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cells.jsonl").write_bytes(b"".join(lines[:-1]))
    (tmp_path / "cells.parquet").unlink()
    assert run_part(tmp_path, part(jrt=True)).damaged == (
        f"cells missing from {tmp_path}: 1; each runs again with its experiment",
    )
    with Run.open(tmp_path, STUDY, {c.key: c.prompt_hash for c in first}) as run:
        assert run.todo == [first[2].key]
        assert run.damaged == ()
