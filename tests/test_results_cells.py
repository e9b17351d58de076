"""Cells as lines and rows: every field comes back, and a changed one is seen; what no run can have."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import MANIFEST, grid

from hybridlens.results import Cell, CellKey, Run, read_cells, read_run
from hybridlens.results.cells import FIELDS, MODES, PHASES, SCOPES, Damage, cell_problem, decode_line, encode_line


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
