"""Results on disk: what survives a stop, a kill and damage, and what is refused."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from bounds import close
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlens.errors import InputError, ResultsError
from hybridlens.results import (
    Cell,
    CellKey,
    Manifest,
    Run,
    accuracy_points,
    environment,
    finding,
    hash_json,
    hash_weights,
    read_cells,
    read_run,
    write_atomic,
    write_json,
)
from hybridlens.results.cells import FIELDS, MODES, PHASES, SCOPES, Damage, cell_problem, decode_line, encode_line

MODEL = "tiny"
TEXTS = ("eat a sandwich", 'a "quoted"\nline', "</script> &amp; \u2028 é 日本", "")


def cell(phase: str, k: int, length: int, depth: int | None) -> Cell:
    """The one right cell of a key: every value follows from the key, so that a wrong one shows."""
    control = depth is None
    seed = k * 7 + length + (depth or 0)
    return Cell(
        model=MODEL,
        phase=phase,
        k=k,
        length=length,
        depth=depth,
        control=control,
        score=0.0 if control else float(seed % 11) / 2,
        text=TEXTS[seed % len(TEXTS)],
        needle_start=None if control else seed,
        needle_end=None if control else seed + 5,
        seconds=0.125,
        prompt_hash=f"{length}-{depth}",
    )


def grid() -> list[Cell]:
    """24 cells and 8 controls, in running order."""
    return [
        cell(phase, k, length, depth)
        for phase in ("generation", "prefill")
        for k in (0, 4)
        for length in (64, 128)
        for depth in (0, 50, 100, None)
    ]


EXPECTED: dict[CellKey, str] = {c.key: c.prompt_hash for c in grid()}
MANIFEST = Manifest(
    model=MODEL,
    arguments={"lengths": [64, 128], "depths": [0, 50, 100], "needle": "x" * 300},
    seed=0,
    max_score=5.0,
    config_hash="c",
    weights_hash="w",
    command="hybridlens niah --model tiny",
    settings={"batch_size": 8},
)


def run_all(folder: Path, stop_after: int | None = None) -> Run:
    """Run what is still to do, in batches of three; raise KeyboardInterrupt after `stop_after` batches."""
    by_key = {c.key: c for c in grid()}
    with Run.open(folder, MANIFEST, EXPECTED) as run:
        todo = run.todo
        for n, start in enumerate(range(0, len(todo), 3)):
            if n == stop_after:
                raise KeyboardInterrupt
            run.add([by_key[key] for key in todo[start : start + 3]])
        run.finish()
    return run


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
        "import test_results as t\n"
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


def journal_of(n: int) -> bytes:
    """The journal's bytes after the first n cells, signed with a fixed fingerprint."""
    return b"".join(encode_line(c, "f") for c in grid()[:n])


def decoded(journal: bytes) -> tuple[list[Cell], list[Damage]]:
    """The good cells and the damaged lines of a journal."""
    found = [decode_line(line, "line", "f", 5.0) for line in journal.split(b"\n") if line]
    return [c for c in found if isinstance(c, Cell)], [c for c in found if isinstance(c, Damage)]


@given(st.integers(0, len(journal_of(6))))
def test_a_journal_cut_anywhere_loses_one_cell_at_most(cut: int) -> None:
    """Whatever the cut, the whole lines before it are read and nothing else is taken for a cell."""
    journal = journal_of(6)[:cut]
    good, damaged = decoded(journal)
    whole = journal.count(b"\n")
    assert good[:whole] == grid()[:whole]
    assert len(good) + len(damaged) <= whole + 1
    assert good == grid()[: len(good)]


@settings(max_examples=300)
@given(st.integers(0, len(journal_of(6)) - 1), st.integers(1, 255))
def test_a_wrong_byte_anywhere_costs_only_its_cell(place: int, flip: int) -> None:
    """A changed byte damages its line, or two if it was the newline between them; no cell is made up.

    A reader without checksums would accept a changed digit of a score, which these 300 draws include.
    """
    journal = bytearray(journal_of(6))
    journal[place] ^= flip
    good, damaged = decoded(bytes(journal))
    hit = journal_of(6)[:place].count(b"\n")
    kept = [c for i, c in enumerate(grid()[:6]) if i not in {hit, hit + 1}]
    assert all(c in good for c in kept)
    assert all(c in grid()[:6] for c in good)
    assert damaged


@st.composite
def any_cell(draw: st.DrawFn) -> Cell:
    """A valid cell with any value of every field."""
    control = draw(st.booleans())
    start = None if control else draw(st.integers(0, 9))
    return Cell(
        model=draw(st.text(max_size=5)),
        phase=draw(st.sampled_from(PHASES)),
        k=draw(st.integers(0, 9)),
        length=draw(st.integers(1, 5000)),
        depth=None if control else draw(st.floats(0, 100) | st.integers(0, 100)),
        control=control,
        score=draw(st.floats(0, 5) | st.integers(0, 5)),
        text=draw(st.text(max_size=9)),
        needle_start=start,
        needle_end=None if start is None else start + draw(st.integers(1, 9)),
        seconds=draw(st.floats(0, 1e6)),
        prompt_hash=draw(st.text(min_size=1, max_size=5)),
        needle=draw(st.text(min_size=1, max_size=5)),
        jrt=draw(st.booleans()),
        reading=draw(st.sampled_from(MODES)),
        answering=draw(st.sampled_from(MODES)),
        scope=draw(st.sampled_from(SCOPES)),
        semantics=draw(st.sampled_from(["clean", "published"])),
        boundary=draw(st.sampled_from(["last_prompt_token", "first_new_token"])),
        margin=draw(st.none() | st.floats(0, 1e6) | st.integers(0, 5)),
        tokens=draw(st.none() | st.integers(0, 40)),
    )


def unicode_only(found: Cell) -> bool:
    """Whether every text of a cell can be written to a table, which holds UTF-8."""
    return not any("\ud800" <= c <= "\udfff" for c in found.model + found.text + found.prompt_hash + found.needle)


@given(any_cell())
def test_every_field_comes_back_from_its_line(stored: Cell) -> None:
    """Any values of all 21 fields; the key holds all of them that are not results, so no two conditions share one."""
    assert cell_problem(stored, 5.0) is None
    assert decode_line(encode_line(stored, "f").rstrip(b"\n"), "line", "f", 5.0) == stored
    assert [getattr(stored, name) for name in CellKey._fields] == list(stored.key)
    results = {"score", "text", "needle_start", "needle_end", "seconds", "prompt_hash", "margin", "tokens"}
    assert set(FIELDS) == results | set(CellKey._fields)


@settings(max_examples=15)
@given(st.lists(any_cell().filter(unicode_only), min_size=1, max_size=4, unique_by=lambda c: c.key))
def test_every_field_comes_back_from_the_table(tmp_path_factory: pytest.TempPathFactory, cells: list[Cell]) -> None:
    """The journal is removed, so types and missing values are the table's alone."""
    folder, expected = tmp_path_factory.mktemp("run"), {c.key: c.prompt_hash for c in cells}
    with Run.open(folder, MANIFEST, expected) as run:
        run.add(cells)
        run.finish()
    (folder / "cells.jsonl").unlink()
    assert read_cells(folder) == cells
    types = {field.name: str(field.type) for field in pq.read_schema(folder / "cells.parquet")}
    assert (types["jrt"], types["tokens"], types["margin"], types["reading"]) == ("bool", "int64", "double", "string")


OTHER_VALUES: dict[str, Any] = {
    "needle": "oslo",
    "jrt": True,
    "reading": "omit",
    "answering": "null",
    "scope": "model",
    "semantics": "published",
    "boundary": "first_new_token",
    "margin": 0.5,
    "tokens": 3,
}


@pytest.mark.parametrize("name", OTHER_VALUES)
@pytest.mark.parametrize("place", ["journal", "table"])
def test_a_changed_value_of_any_field_is_damage(tmp_path: Path, name: str, place: str) -> None:
    """Each changed value is itself allowed, so only a checksum over that field can tell."""
    base = replace(grid()[1], margin=0.25, tokens=7)
    changed = {**asdict(base), name: OTHER_VALUES[name]}
    with Run.open(tmp_path, MANIFEST, {base.key: base.prompt_hash}) as run:
        run.add([base])
        run.finish()
    if place == "journal":
        (tmp_path / "cells.parquet").unlink()
        stated = (tmp_path / "cells.jsonl").read_bytes().split(b" ")[0]
        (tmp_path / "cells.jsonl").write_bytes(stated + b" " + json.dumps(changed).encode() + b"\n")
    else:
        (tmp_path / "cells.jsonl").unlink()
        frame = pd.read_parquet(tmp_path / "cells.parquet")
        frame[name] = [OTHER_VALUES[name]]
        frame.to_parquet(tmp_path / "cells.parquet")
    (line,) = read_run(tmp_path).damaged
    assert "does not match its checksum" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phase": "decode"}, "phase 'decode' does not exist; expected one of generation, prefill"),
        ({"reading": "drop"}, "reading 'drop' does not exist; expected one of keep, omit, only, binary, null"),
        ({"answering": ""}, "answering '' does not exist; expected one of keep"),
        ({"scope": "head"}, "scope 'head' does not exist; expected one of layer, model"),
        ({"semantics": "dirty"}, "semantics 'dirty' does not exist; expected one of clean, published"),
        ({"boundary": "last"}, "boundary 'last' does not exist; expected one of last_prompt_token, first_new_token"),
        ({"needle": ""}, "needle = '' given, expected a string, at least 1"),
        ({"margin": -0.1}, "margin = -0.1 given, expected a finite number or a whole number from 0 up"),
        ({"margin": float("inf")}, "margin = inf given, expected a finite number"),
        ({"tokens": -1}, "tokens = -1 given, expected a whole number from 0"),
    ],
)
def test_values_that_no_run_can_have(change: dict[str, Any], message: str) -> None:
    """An infinite margin would make the journal's line no JSON; an unknown mode would fall out of every figure."""
    assert message in (cell_problem(replace(grid()[0], **change), 5.0) or "")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("k", "4", "k = '4' given, expected a whole number from 0"),
        ("k", True, "k = True given, expected a whole number from 0"),
        ("length", 0, "length = 0 given"),
        ("score", "high", "score = 'high' given, expected a finite number"),
        ("depth", 101, "depth = 101 given"),
        ("control", 1, "control = 1 given, expected True or False"),
        ("text", None, "text = None given, expected a string"),
        ("phase", "decode", "phase 'decode' does not exist; expected one of generation, prefill"),
        ("depth", None, "depth is None, expected one from 0 to 100 %"),
        ("ranking", ..., "has no ranking"),
    ],
)
def test_a_damaged_line_names_its_field(name: str, value: Any, message: str) -> None:
    """One line, whatever stands there; the rest of the line is right."""
    row = {key: given for key, given in {**asdict(grid()[1]), name: value}.items() if given is not ...}
    found = decode_line(b"0 " + json.dumps(row).encode(), "cells.jsonl line 2", "f", 5.0)
    assert isinstance(found, Damage)
    assert found.where == "cells.jsonl line 2"
    assert message in found.problem
    assert "\n" not in found.problem


RECORD = {
    "format": 4, "fingerprint": "f", "status": "complete", "created": "2025-01-01T00:00:00+00:00",
    "finished": "2025-01-01T00:00:01+00:00", "model": "tiny", "arguments": {"lengths": [64]}, "seed": 0,
    "max_score": 5.0, "config_hash": "c", "weights_hash": "w", "job": "niah", "command": "hybridlens niah",
    "facts": {"n_heads": 4}, "growing": None, "compared": {"--seed": 0},
    "sessions": [{"started": "2025-01-01T00:00:00+00:00", "command": "hybridlens niah", "settings": {"batch_size": 8},
                  "environment": {"python": "3.11.7", "platform": "x", "machine": "y", "cpus": 2,
                                  "packages": {"torch": "2.13.0", "einops": None}}}],
    "damaged": [], "artefacts": {"report.html": {"depends": "d", "digest": "e"}},
}  # fmt: skip
"""As format 4 was first written, for a run without cells."""


def test_a_record_of_this_format_is_read_and_a_wrong_one_is_none(tmp_path: Path) -> None:
    """The values come back as they were; one of a wrong type, even if signed, is no record."""
    path = tmp_path / "run.json"
    write_json(path, {**RECORD, "digest": hash_json(RECORD)})
    assert read_run(tmp_path).record == RECORD | {"settled": {}, "remarks": [], "cells": None, "cells_done": None}
    for change in ({"seed": "0"}, {"sessions": [{}]}, {"status": "done"}, {"damaged": None}):
        wrong = RECORD | change
        write_json(path, {**wrong, "digest": hash_json(wrong)})
        with pytest.raises(ResultsError, match=r"run\.json cannot be read; give a folder"):
            read_run(tmp_path)


def test_a_manifest_is_checked_at_the_door() -> None:
    with pytest.raises(InputError, match=r"^seed = '0' given, expected a whole number$"):
        replace(MANIFEST, seed="0")


def test_a_key_says_what_differs_from_the_main_experiment() -> None:
    """Written out by hand; a key of defaults reads as it always did."""
    key = CellKey("m", "prefill", 2, 64, None, True)
    assert key.words() == "prefill, k 2, length 64, control"
    other = CellKey("m", "generation", 2, 64, 50, False, "oslo", True, "omit", "null", "model", "published")
    assert other.words() == (
        "generation, k 2, length 64, depth 50 %, needle oslo, read twice, reading omit, answering null, "
        "scope model, semantics published"
    )
    assert key._replace(boundary="first_new_token").words().endswith("control, boundary first_new_token")
    assert key._replace(ranking="copying").words().endswith("control, ranking copying")


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


def damage_both(folder: Path, rows: list[int]) -> None:
    """Spoil the score of some cells in the journal and in the table, as an editor or pandas would."""
    lines = (folder / "cells.jsonl").read_bytes().split(b"\n")
    for row in rows:
        lines[row] = lines[row].replace(b'"score":', b'"score":1')
    (folder / "cells.jsonl").write_bytes(b"\n".join(lines))
    frame = pd.read_parquet(folder / "cells.parquet")
    frame.loc[rows, "score"] = 77.0
    frame.to_parquet(folder / "cells.parquet")


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


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


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


def test_settings_may_change(tmp_path: Path) -> None:
    """A smaller batch after running out of memory changes no cell, so the run goes on and records both."""
    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path, stop_after=2)
    with Run.open(tmp_path, replace(MANIFEST, settings={"batch_size": 1}), EXPECTED) as run:
        assert len(run.done) == 6
        run.add([grid()[6]])
        assert [s["settings"]["batch_size"] for s in run.record["sessions"]] == [8, 1]


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


def test_atomic_writes_leave_the_old_file_when_they_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fails after the data was written and before the rename: the old bytes stay, no part file."""
    path = tmp_path / "file.json"
    write_json(path, {"a": "é"})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResultsError, match=r"file\.json' cannot be used \(No space left on device\); make room"):
        write_atomic(path, b"new")
    assert snapshot(tmp_path) == {"file.json": '{\n  "a": "é"\n}\n'.encode()}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})


def test_weights_hash_sees_every_bit(tmp_path: Path) -> None:
    """Values, names, shapes and dtypes each change the digest; the order of the names does not."""
    from safetensors.torch import save_file

    a, b = torch.arange(6.0), torch.ones((), dtype=torch.bfloat16)
    digests = [
        hash_weights({"a": a, "b": b}),
        hash_weights({"a": a, "c": b}),
        hash_weights({"a": a.view(2, 3), "b": b}),
        hash_weights({"a": a.to(torch.float64), "b": b}),
        hash_weights({"a": torch.nextafter(a, a + 1), "b": b}),
    ]
    assert len(set(digests)) == 5
    assert hash_weights({"b": b, "a": a}) == digests[0]
    with pytest.raises(ResultsError, match=r"no \*\.safetensors file in"):
        hash_weights(tmp_path)
    save_file({"a": a}, tmp_path / "model.safetensors")
    first = hash_weights(tmp_path)
    save_file({"a": a + 1}, tmp_path / "model.safetensors")
    assert len({first, hash_weights(tmp_path)}) == 2


def test_environment_names_every_version() -> None:
    """A run can only be run again if its versions are known; the numbers come from the installed packages."""
    packages = environment()["packages"]
    import transformers

    assert packages["transformers"] == transformers.__version__
    assert [name for name, version in packages.items() if version is None and name != "hybridlens"] == []


def scored(k: int, score: float, control: bool = False) -> Cell:
    """A cell of the generation phase with a given score."""
    base = cell("generation", k, 64, None if control else 0)
    return replace(base, score=score)


def test_accuracy_and_the_tipping_point_by_hand() -> None:
    """Worked by hand: means 0.1, 0.4, 0.3, 0.9 of 5 points; half of 0.9 is 0.45: k = 2 is the last below."""
    cells = [
        *(scored(k, s) for k, s in ((0, 0), (0, 1), (1, 2), (1, 2), (2, 1), (2, 2), (8, 4), (8, 5))),
        scored(0, 1, control=True),
        scored(8, 0, control=True),
    ]
    points = accuracy_points(cells, "generation", 5.0)
    assert [p.k for p in points] == [0, 1, 2, 8]
    close([p.accuracy for p in points], [0.1, 0.4, 0.3, 0.9])
    assert [p.chance for p in points] == [0.2, None, None, 0.0]  # 1 of 5, which is rounded once
    assert [(p.n, p.n_control) for p in points] == [(2, 1), (2, 0), (2, 0), (2, 1)]
    found = finding(points, "generation")
    assert (found.k_full, found.tipping_point, found.k_least) == (8, 2, 0)
    close((found.full, found.at_tipping_point, found.least, found.chance), (0.9, 0.3, 0.1, 0.1))
    assert finding(points[3:], "generation").tipping_point is None
    with pytest.raises(ResultsError, match="no cell of phase 'prefill'"):
        accuracy_points(cells, "prefill", 5.0)
