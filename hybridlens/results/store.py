"""A run's cells: what is done, and going on where it stopped.

Finished cells are appended to `cells.jsonl`, as many at a time as are given, and flushed to the disk; a kill at any
moment costs at most those that were not given yet: experiments give a portion of their grid at a time. `cells.parquet`
is the table for readers, written whole whenever a run is closed. The two back each other up: a cell counts as done
when either holds a good copy.

A run has one grid. A study (`Manifest.growing`) may be opened with another grid each time: cells of earlier sessions
that are not in it stay where they are.

How it fails: see `hybridlens.results.folder`. Damage never raises: the good cells are kept, and every damaged one is
named and left to be run again; of a study's lost cells that are outside the grid only the number is known. A study
whose `run.json` was lost no longer knows the growing values of other sessions.
"""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hybridlens.display import Displayed, Several, Table, many
from hybridlens.errors import ResultsError
from hybridlens.results.cells import Cell, CellKey, cell_problem
from hybridlens.results.files import (
    JOURNAL,
    TABLE,
    append_journal,
    damage_lines,
    read_good,
    write_journal,
    write_table,
)
from hybridlens.results.folder import Folder, digest_of, stranger
from hybridlens.results.provenance import usable
from hybridlens.results.record import RECORD, Manifest, Record, read_record

T = TypeVar("T")


class _Fields(NamedTuple):
    record: dict[str, Any]
    cells: Several[Cell]
    damaged: list[str]


class StoredRun(Displayed, _Fields):
    """A folder as it stands: its `run.json`, its good cells in the order they were added, and its damage."""

    __slots__ = ()

    def summary(self) -> str:
        """Model, state, and how many cells it has."""
        damaged = f", {len(self.damaged)} damaged" if self.damaged else ""
        return f"{self.record['model']}, {self.record.get('status', '?')}: {many(len(self.cells), 'cell')}{damaged}"

    def table(self) -> Table:
        """A row a cell."""
        return self.cells.table()


class Run:
    """The cells of a run whose folder is open for writing.

    Attributes:
        folder: the run's folder.
        expected: key -> prompt hash of every cell of this session's grid, in the order they are to run.
        beside: cells of the grid that stand in adopted folders (`Folder.adopt`).
    """

    def __init__(self, folder: Folder, expected: Mapping[CellKey, str]) -> None:
        self.folder = folder
        self.expected = expected
        self.beside = {key: c for key, c in folder.beside.items() if expected.get(key) == c.prompt_hash}
        self._growing = folder.manifest.growing is not None
        self._journal = -1
        self._good, damage = read_good(folder.path, folder.fingerprint, folder.manifest.max_score)
        good, before = self._good, folder.record
        if not folder.known and damage and not good:
            raise stranger(folder.path)
        if self._growing:
            _refuse_other_prompts(folder.path, good, expected)
        damaged = damage_lines(damage, good)
        if not folder.known and good and not folder.damaged:
            damaged.append(f"{RECORD} cannot be read; written anew")
        if folder.complete:
            named = {item.key for item in damage}
            lost = [key for key in expected if key not in good and key not in named]
            if not self._growing:
                damaged += [f"missing from {folder.path}: {key.words()}; runs again" for key in lost]
            elif (n_lost := (before["cells_done"] or 0) - len(good.keys() | (named - {None}))) > 0:
                damaged.append(f"cells missing from {folder.path}: {n_lost}; each runs again with its experiment")
        for line in damaged:
            folder.doubt(line)
        if damaged:
            self._begin()
        if damage and (folder.path / TABLE).exists():
            write_table(folder.path, list(good.values()), folder.fingerprint)

    @classmethod
    @contextmanager
    def open(cls, folder: Path, manifest: Manifest, expected: Mapping[CellKey, str]) -> "Generator[Run]":
        """Start a run of cells alone in a folder, or go on with the one that is there; errors as `Folder.open`."""
        with Folder.open(folder, manifest, expected) as held:
            yield cls(held, expected)

    @property
    def damaged(self) -> tuple[str, ...]:
        """One line for everything stored that could not be trusted."""
        return tuple(self.folder.damaged)

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` holds now."""
        return self.folder.record

    @property
    def done(self) -> frozenset[CellKey]:
        """The cells that need not run again."""
        return frozenset(self._good)

    @property
    def todo(self) -> list[CellKey]:
        """The cells still to run, in the grid's order."""
        return [key for key in self.expected if key not in self._good]

    @property
    def cells(self) -> list[Cell]:
        """Every finished cell of the grid, in its order."""
        return [self._good[key] for key in self.expected if key in self._good]

    @property
    def all_cells(self) -> list[Cell]:
        """Every finished cell of the folder: `cells`, or in a study those of all sessions as they were added."""
        return list(self._good.values()) if self._growing else self.cells

    def take_over(self, keys: Sequence[CellKey]) -> None:
        """Store those of some cells that stand beside this folder and are still to run, in the order given."""
        cells = [self.beside[key] for key in keys if key in self.beside and key not in self._good]
        if cells:
            self.add(cells)

    def _begin(self) -> None:
        """Open the journal for this session, mended where it was damaged."""
        if self._journal >= 0:
            return
        self.folder.begin()
        path = self.folder.path / JOURNAL
        if self.folder.damaged or not path.exists():
            write_journal(self.folder.path, list(self._good.values()), self.folder.fingerprint)
        with usable(path):
            self._journal = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.folder.at_close(self._close)
        self.folder.note(cells=len(self.expected.keys() | self._good.keys()), cells_done=len(self._good))

    def add(self, cells: Sequence[Cell]) -> None:
        """Store some finished cells; when this returns, they are on the disk.

        Raises:
            ResultsError: a cell is not of this grid, is of another prompt, or holds an impossible value; none of
                them is stored then. Or the disk refuses it.
        """
        for cell in cells:
            wanted = self.expected.get(cell.key)
            if wanted is None:
                problem: str | None = "is not part of the run's grid"
            elif wanted != cell.prompt_hash:
                problem = f"was made from prompt {cell.prompt_hash}, and the grid has {wanted}"
            else:
                problem = cell_problem(cell, self.folder.manifest.max_score)
            if problem is not None:
                raise ResultsError(f"cell ({cell.key.words()}) cannot be stored: {problem}")
        self._begin()
        with usable(self.folder.path / JOURNAL):
            append_journal(self._journal, cells, self.folder.fingerprint)
        self._good.update({cell.key: cell for cell in cells})

    def finish(self) -> Path:
        """`write`, and mark the run complete; returns the table's path.

        Raises:
            ResultsError: cells are still to run.
        """
        path = self.write()
        self.folder.finish()
        return path

    def write(self) -> Path:
        """Write the table, where this session has added cells; returns its path.

        Raises:
            ResultsError: cells are still to run.
        """
        todo = self.todo
        if todo:
            raise ResultsError(
                f"{len(todo)} of {len(self.expected)} cells of {self.folder.path} are still to run; the first is "
                f"{todo[0].words()}"
            )
        if self._journal >= 0 or not (self.folder.path / TABLE).exists():
            self._begin()
            write_table(self.folder.path, self.all_cells, self.folder.fingerprint)
            self.folder.note(cells_done=len(self._good))
        return self.folder.path / TABLE

    def _close(self) -> dict[str, Any]:
        """Write the table of what there is; returns how much that is."""
        os.close(self._journal)
        if self._good and not self.folder.complete:
            write_table(self.folder.path, self.all_cells, self.folder.fingerprint)
        return {"cells_done": len(self._good)}


def read_run_record(folder: Path) -> Record:
    """The record of a run.

    Raises:
        ResultsError: `folder` holds no run, or its `run.json` cannot be read.
    """
    record = read_record(folder)
    if record is None:
        state = "cannot be read" if (folder / RECORD).exists() else "is missing"
        raise ResultsError(f"{folder / RECORD} {state}; give a folder that a hybridlens command has written")
    return record


def read_run(folder: Path) -> StoredRun:
    """A folder as it stands, its damage named and nothing written.

    Raises:
        ResultsError: `folder` holds no run, or its `run.json` cannot be read.
    """
    record = read_run_record(folder)
    good, damage = read_good(folder, record.fingerprint, record.max_score)
    return StoredRun(record.values(), Several(good.values()), damage_lines(damage, good))


def read_cells(folder: Path) -> Several[Cell]:
    """Every cell of a run, finished or not.

    Raises:
        ResultsError: `folder` holds no run, or cells of it are damaged beyond recovery.
    """
    run = read_run(folder)
    lost = [line for line in run.damaged if line.endswith("runs again")]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise ResultsError(
            f"{folder} holds damaged cells ({'; '.join(lost[:3])}{more}); the command that made it mends it: "
            f"{run.record['command'] or 'hybridlens niah'}"
        )
    return run.cells


def read_artefact(folder: Path, name: str, load: Callable[[Path], T]) -> T | None:
    """An artefact of a run as it was stored; None where the run lists none of that name.

    Args:
        folder: the run's.
        name: its file, within the folder.
        load: reads it.

    Raises:
        ResultsError: the folder holds no run, or the file is missing or was changed.
    """
    listed = read_run_record(folder).artefacts.get(name)
    if listed is None:
        return None
    path = folder / name
    if not path.is_file() or digest_of(path) != listed.digest:
        state = "does not match its digest" if path.is_file() else "is missing"
        raise ResultsError(f"{path} {state}; the command that made the folder mends it")
    return load(path)


def _refuse_other_prompts(folder: Path, good: Mapping[CellKey, Cell], expected: Mapping[CellKey, str]) -> None:
    """Raise when a study holds a cell of this grid that was made from another prompt."""
    for key, prompt in expected.items():
        if key in good and good[key].prompt_hash != prompt:
            raise ResultsError(
                f"{folder} holds the cell ({key.words()}) made from prompt {good[key].prompt_hash}, and this grid "
                f"has {prompt}; give the same lengths, depths and haystack to go on, or another --out folder"
            )
