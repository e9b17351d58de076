"""A run's folder: what was asked, what is done, and going on where it stopped.

`run.json` says what the run is. Finished cells are appended to `cells.jsonl`, a batch at a time and flushed
to the disk; a kill at any moment costs at most the batch being written. `cells.parquet` is the table for
readers, written whole whenever a run is closed. The two back each other up: a cell counts as done when either
holds a good copy.

A run has one grid. A study (`Manifest.growing`) may be opened with another grid each time: cells of earlier
sessions that are not in it stay where they are.

How it fails: a folder whose run had other arguments, or that another process is writing, raises
`ResultsError` before anything is written. Damage never raises: the good cells are kept, and every damaged one
is named in `Run.damaged` and left to be run again; of a study's lost cells that are outside the grid only the
number is known. A study whose `run.json` was lost no longer knows the growing values of other sessions.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from hybridlens.errors import ResultsError
from hybridlens.results.cells import Cell, CellKey, Damage, cell_problem
from hybridlens.results.files import (
    JOURNAL,
    TABLE,
    append_journal,
    damage_lines,
    read_good,
    write_journal,
    write_table,
)
from hybridlens.results.provenance import hash_json, write_json
from hybridlens.results.record import (
    FORMAT,
    HIGHEST,
    RECORD,
    Manifest,
    compared_values,
    now,
    read_record,
    refuse_another_run,
    started,
)


class StoredRun(NamedTuple):
    """A folder as it stands: its `run.json`, its good cells in the order they were added, and its damage."""

    record: dict[str, Any]
    cells: list[Cell]
    damaged: list[str]


class Run:
    """A run whose folder is open for writing; a context manager.

    Leaving the context writes `cells.parquet` and `run.json`, whatever the reason, so that an interrupted
    run can be read. One process at a time can hold a folder.

    Attributes:
        folder: the run's folder.
        manifest: what the run is.
        expected: key -> prompt hash of every cell of this session's grid, in the order they are to run.
        damaged: one line for every stored cell that could not be trusted.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        expected: Mapping[CellKey, str],
        record: dict[str, Any],
        good: dict[CellKey, Cell],
        damaged: list[str],
        lock: int,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.expected = expected
        self.damaged = tuple(damaged)
        self._record = record
        self._good = good
        self._lock = lock
        self._fingerprint: str = record["fingerprint"]
        self._journal = os.open(folder / JOURNAL, os.O_WRONLY | os.O_APPEND)

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, expected: Mapping[CellKey, str]) -> "Run":
        """Start a run in `folder`, or go on with the one that is there.

        Args:
            folder: made when it does not exist.
            manifest: what the run is.
            expected: key -> prompt hash of every cell of the grid, in the order they are to run.

        Raises:
            ResultsError: the folder's run had other arguments, another process holds it, it holds something
                else, or it cannot be written. Nothing has been written then.
        """
        if folder.exists() and not folder.is_dir():
            raise ResultsError(f"--out {folder} is a file; name a folder to write the run into")
        compared = compared_values(manifest, expected)
        record = read_record(folder)
        if record is not None:
            refuse_another_run(folder, record, manifest, compared)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _lock(folder)
        except OSError as error:
            raise ResultsError(
                f"--out {folder} cannot be written ({error.strerror}); name another folder"
            ) from error
        try:
            return cls._opened(folder, manifest, expected, compared, lock)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def _opened(
        cls,
        folder: Path,
        manifest: Manifest,
        expected: Mapping[CellKey, str],
        compared: dict[str, Any],
        lock: int,
    ) -> "Run":
        """Take stock of a folder that is locked, mend what is damaged, and write `run.json`."""
        fingerprint = hash_json([FORMAT, compared])
        record = read_record(folder)
        good, damage = read_good(folder, fingerprint, manifest.max_score)
        if record is None and not good and ((folder / RECORD).exists() or damage):
            raise ResultsError(
                f"{folder} holds no readable {RECORD} and no cell of this command; remove what is there, "
                "or give another --out folder"
            )
        if manifest.growing is None:
            outside = {key for key, cell in good.items() if expected.get(key) != cell.prompt_hash}
            damage += [Damage("a stored cell", "is not part of the grid", key) for key in outside]
            good = {key: good[key] for key in expected if key in good and key not in outside}
        else:
            _refuse_other_prompts(folder, good, expected)
        damaged = damage_lines(damage, good)
        if record is None and good:
            damaged.append(f"{RECORD} cannot be read; written anew")
        if record is not None and record["status"] == "complete":
            named = {item.key for item in damage}
            lost = [key for key in expected if key not in good and key not in named]
            if manifest.growing is None:
                damaged += [f"missing from {folder}: {key.words()}; runs again" for key in lost]
            elif (n_lost := record["cells_done"] - len(good.keys() | (named - {None}))) > 0:
                damaged.append(f"cells missing from {folder}: {n_lost}; each runs again with its experiment")
        if damage or not (folder / JOURNAL).exists():
            write_journal(folder, list(good.values()), fingerprint)
        if damage and (folder / TABLE).exists():
            write_table(folder, list(good.values()), fingerprint)
        if record is None or record["status"] != "complete" or damaged or not expected.keys() <= good.keys():
            n_cells = len(expected.keys() | good.keys())
            record = started(record, manifest, compared, damaged, len(good), n_cells)
            write_json(folder / RECORD, record)
        return cls(folder, manifest, expected, record, good, damaged, lock)

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
        return self.cells if self.manifest.growing is None else list(self._good.values())

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` holds now."""
        return json.loads(json.dumps(self._record))

    def add(self, cells: Sequence[Cell]) -> None:
        """Store a batch of finished cells; when this returns, they are on the disk.

        Raises:
            ResultsError: a cell is not of this grid, is of another prompt, or holds an impossible value;
                none of the batch is stored then.
        """
        for cell in cells:
            wanted = self.expected.get(cell.key)
            if wanted is None:
                problem: str | None = "is not part of the run's grid"
            elif wanted != cell.prompt_hash:
                problem = f"was made from prompt {cell.prompt_hash}, and the grid has {wanted}"
            else:
                problem = cell_problem(cell, self.manifest.max_score)
            if problem is not None:
                raise ResultsError(f"cell ({cell.key.words()}) cannot be stored: {problem}")
        append_journal(self._journal, cells, self._fingerprint)
        self._good.update({cell.key: cell for cell in cells})

    def finish(self) -> Path:
        """Mark the run complete and write its table; returns the path of `cells.parquet`.

        Raises:
            ResultsError: cells are still to run.
        """
        todo = self.todo
        if todo:
            raise ResultsError(
                f"{len(todo)} of {len(self.expected)} cells of {self.folder} are still to run; the first is "
                f"{todo[0].words()}"
            )
        path = write_table(self.folder, self.all_cells, self._fingerprint)
        if self._record["status"] != "complete":
            self._record |= {"status": "complete", "finished": now()}
            self._save_record()
        return path

    def close(self) -> None:
        """Write what there is and let go of the folder; a second call does nothing."""
        if self._lock < 0:
            return
        try:
            if self._record["status"] != "complete":
                self._record["status"] = "interrupted"
                if self._good:
                    write_table(self.folder, self.all_cells, self._fingerprint)
                self._save_record()
        finally:
            os.close(self._journal)
            os.close(self._lock)
            self._lock = -1

    def _save_record(self) -> None:
        self._record["cells_done"] = len(self._good)
        write_json(self.folder / RECORD, self._record)

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_run(folder: Path) -> StoredRun:
    """A folder as it stands, its damage named and nothing written.

    Raises:
        ResultsError: `folder` holds no run, or its `run.json` cannot be read.
    """
    record = read_record(folder)
    if record is None:
        state = "cannot be read" if (folder / RECORD).exists() else "is missing"
        raise ResultsError(f"{folder / RECORD} {state}; give a folder that a hybridlens command has written")
    good, damage = read_good(folder, record["fingerprint"], record["compared"][HIGHEST])
    return StoredRun(record, list(good.values()), damage_lines(damage, good))


def read_cells(folder: Path) -> list[Cell]:
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


def _refuse_other_prompts(
    folder: Path, good: Mapping[CellKey, Cell], expected: Mapping[CellKey, str]
) -> None:
    """Raise when a study holds a cell of this grid that was made from another prompt."""
    for key, prompt in expected.items():
        if key in good and good[key].prompt_hash != prompt:
            raise ResultsError(
                f"{folder} holds the cell ({key.words()}) made from prompt {good[key].prompt_hash}, and this grid "
                f"has {prompt}; give the same lengths, depths and haystack to go on, or another --out folder"
            )


def _lock(folder: Path) -> int:
    """A descriptor that holds the folder for this process until it is closed or the process ends."""
    handle = os.open(folder, os.O_RDONLY)
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise ResultsError(
                f"{folder} is being written by another process; wait for it, or give another --out folder"
            ) from error
    return handle
