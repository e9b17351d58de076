"""The folder of one run: locked, refused where it holds another run, and taken up where it holds a part of this one.

`run.json` says what the run is. Everything else in the folder is an artefact, a file that one stage has made, or the
cells (`hybridlens.results.store`). An artefact is listed in `run.json` with two digests: of its bytes, and of all that
it depends on, which is what the run is and what the stage says. A stage whose file is missing, damaged or of other
values is made again, and said so. Nothing is written before a stage has something to write, so that a run that is
refused, or has nothing to do, leaves the folder as it is, which may then be read-only.

How it fails: a folder that holds another run, that another process is writing, or that the system refuses raises
`ResultsError` in one line.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from hybridlens.errors import HybridLensError, ResultsError
from hybridlens.results.cells import Cell, CellKey
from hybridlens.results.files import read_good
from hybridlens.results.locks import locked
from hybridlens.results.provenance import clear_parts, hash_json, read_json, share_file, usable
from hybridlens.results.record import (
    FORMAT,
    RECORD,
    Listed,
    Manifest,
    Record,
    compared_values,
    fingerprint_of,
    now,
    plain,
    read_record,
    refuse_another_run,
    started,
    write_record,
)
from hybridlens.results.settled import agreed, settle_among, settled


@runtime_checkable
class Saved(Protocol):
    """A result that writes itself as one file, whole or not at all."""

    def save(self, path: Path) -> Path:
        """Write it; returns `path`."""
        ...


_T = TypeVar("_T", bound=Saved)


class Folder:
    """A run's folder, open for writing; `Folder.open` makes one.

    Attributes:
        path: where it is.
        manifest: what the run is.
        fingerprint: digest of what makes two runs the same.
        damaged: one line for everything stored that could not be trusted.
        begun: whether this session has written anything.
        whole: of a shard's folder, the folder of the run that it is a share of; None for a run's own.
        beside: cells of adopted folders, which a `Run` may take over.
        elsewhere: cells of folders of which only what they made was adopted, to look at.
    """

    def __init__(
        self, path: Path, manifest: Manifest, expected: Mapping[CellKey, str] | None, whole: Path | None = None
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.whole = whole
        self.damaged: list[str] = []
        self._compared = compared_values(manifest, expected)
        self.fingerprint = fingerprint_of(self._compared)
        self._record = read_record(path)
        if self._record is not None:
            self._refuse_others(self._record.compared, manifest.growing or {})
        elif self.fingerprint in _signs(path):
            self.damaged.append(f"{RECORD} does not match its digest; written anew, and every result made again")
        self.begun = False
        self.beside: dict[CellKey, Cell] = {}
        self.elsewhere: dict[CellKey, Cell] = {}
        self._written: Record | None = None
        self._closing: list[Callable[[], Mapping[str, Any]]] = []

    @classmethod
    @contextmanager
    def open(
        cls,
        path: Path,
        manifest: Manifest,
        expected: Mapping[CellKey, str] | None = None,
        whole: Path | None = None,
    ) -> Generator[Folder]:
        """A run in `path`: a new one, or the one that is there. One process at a time can hold a folder.

        Args:
            path: made when it does not exist.
            manifest: what the run is.
            expected: key -> prompt hash of the run's cells, where it has some.
            whole: see the class.

        Raises:
            ResultsError: the folder's run had other arguments, another process holds it, it holds something else, or
                it cannot be used. Nothing has been written then.
        """
        if path.exists() and not path.is_dir():
            raise ResultsError(f"--out {path} is a file; name a folder to write the run into")
        cls(path, manifest, expected)  # refuses another run before the folder is made or touched
        with usable(path):
            path.mkdir(parents=True, exist_ok=True)
        with locked(path):
            folder = cls(path, manifest, expected, whole)
            folder._refuse_a_stranger()
            if folder.known:
                clear_parts(path)
            try:
                yield folder
            finally:
                folder.close()

    @property
    def known(self) -> bool:
        """Whether `run.json` was there and whole."""
        return self._record is not None

    @property
    def complete(self) -> bool:
        """Whether an earlier session ended, and nothing has been written since."""
        return self._record is not None and self._record.status == "complete"

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` holds, or will once something is written."""
        return (self._record or started(None, self.manifest, self._compared)).values()

    @property
    def _listed(self) -> dict[str, Listed]:
        return {} if self._record is None else self._record.artefacts

    def _refuse_others(self, compared: Mapping[str, Any], growing: Mapping[str, Any]) -> None:
        """Refuse a folder whose run is another one, or has another value for a name that both have."""
        held = (self._record or self.manifest).growing or {}
        shared = [name for name in growing if name in held]
        before, after = ({name: plain(values[name]) for name in shared} for values in (held, growing))
        refuse_another_run(self.path, {**compared, **before}, {**self._compared, **after})

    def _refuse_a_stranger(self) -> None:
        """Refuse a folder whose `run.json` is not of this version, unless its cells are signed as this run's."""
        if self._record is not None or self.damaged or not (self.path / RECORD).exists():
            return
        good, _ = read_good(self.path, self.fingerprint, self.manifest.max_score)
        if not good or (self.path / RECORD).is_dir():
            raise stranger(self.path)
        self.damaged.append(f"{RECORD} cannot be read; written anew")

    def begin(self) -> Record:
        """Write this session into `run.json`, once, before anything else of it is written; returns the record.

        Raises:
            ResultsError: it cannot be written.
        """
        if self._record is None or not self.begun:
            clear_parts(self.path)
            record = started(self._record, self.manifest, self._compared)
            self.begun = True
            self._write(replace(record, damaged=[*record.damaged, *self.damaged]))
        assert self._record is not None
        return self._record

    def note(self, **values: Any) -> None:
        """Put values into `run.json`."""
        self._write(replace(self.begin(), **values))

    def _write(self, record: Record) -> None:
        self._record = record
        if record != self._written:
            write_record(self.path, record)
            self._written = record

    def settle(self, name: str, given: int | None, find: Callable[[], int]) -> int:
        """A setting that is fixed once for the whole run, in all sessions and shards (`hybridlens.results.settled`).

        Args:
            name: its name.
            given: what the user says, which counts from now on; but where shards have begun to share the work, as
                long as they do. None where nothing is said.
            find: what it is where nothing has been said or settled yet.

        Raises:
            ResultsError: it cannot be written.
        """

        def first() -> int:
            held = settled(self.whole or self.path, name) if given is None else given
            return find() if held is None else held

        if self.whole is None:
            shared = agreed(self.path, name, int)
            value = first() if shared is None else shared
        else:
            value = settle_among(self.whole, name, int, first)
        if self.begin().settled.get(name) != value:
            self.note(settled={**self.begin().settled, name: value})
        return value

    def remark(self, line: str) -> None:
        """Keep what a reader of the results has to know of how they were made, once."""
        if self._record is None or line not in self._record.remarks:
            self.note(remarks=[*self.begin().remarks, line])

    def doubt(self, line: str) -> None:
        """Name something stored that cannot be trusted."""
        self.damaged.append(line)
        if self.begun and self._record is not None:
            self._record = replace(self._record, damaged=[*self._record.damaged, line])

    def at_close(self, write: Callable[[], Mapping[str, Any]]) -> None:
        """Have something written when the folder is left, whatever the reason; it returns values for the record."""
        self._closing.append(write)

    def take(self, name: str, depends: object, load: Callable[[Path], _T], make: Callable[[], _T]) -> _T:
        """The artefact of a stage: the one stored, where it is whole and of the same values, else one made now.

        Args:
            name: its file, within the folder.
            depends: a JSON value of all that it depends on beside what the run is.
            load: reads it.
            make: makes it; what it returns is saved.

        Raises:
            ResultsError: it cannot be written.
        """
        found = self.stored(name, depends, load)
        if found is None:
            found = make()
            self.put(name, depends, found)
        return found

    def made_of(self, name: str, depends: object) -> bool | None:
        """Whether an artefact is listed as made of these values; None where it is not listed."""
        stated = self._listed.get(name)
        return None if stated is None else stated.depends == self._signature(depends)

    def stored(self, name: str, depends: object, load: Callable[[Path], _T]) -> _T | None:
        """The artefact of a stage where it is whole and of the same values, else None; damage is named."""
        stated, path = self._listed.get(name), self.path / name
        if stated is None:
            return None
        if stated.depends != self._signature(depends):
            self.doubt(f"{name} is of other values (another task, version or prompt); made again")
        elif not path.is_file():
            self.doubt(f"{name} is missing; made again")
        elif digest_of(path) != stated.digest:
            self.doubt(f"{name} does not match its digest; made again")
        else:
            try:
                return load(path)
            except HybridLensError as error:
                self.doubt(f"{name} cannot be read ({error}); made again")
        return None

    def holds(self, folder: str) -> list[str]:
        """Names of the artefacts listed that stand in a folder within this one."""
        return [name.removeprefix(f"{folder}/") for name in self._listed if name.startswith(f"{folder}/")]

    def put(self, name: str, depends: object, made: Saved) -> None:
        """Save an artefact and list it in `run.json`.

        Raises:
            ResultsError: it cannot be written.
        """
        self.begin()
        path = self.path / name
        with usable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        made.save(path)
        listed = Listed(depends=self._signature(depends), digest=digest_of(path))
        self.note(artefacts={**self._listed, name: listed})

    def keep(self, name: str, depends: object, made: Saved) -> None:
        """Save an artefact that is at hand, unless it is stored whole and of the same values."""
        stated, path = self._listed.get(name), self.path / name
        if stated is None or stated.depends != self._signature(depends) or not path.is_file():
            self.put(name, depends, made)
        elif digest_of(path) != stated.digest:
            self.doubt(f"{name} does not match its digest; made again")
            self.put(name, depends, made)

    def adopt(self, source: Path, cells: bool = True) -> None:
        """Take over what another folder of the same run holds: its artefacts, as the same files, and its good cells.

        Args:
            source: a folder that this or another process has written; nothing is done where none has begun.
            cells: whether its cells are to be taken over; else they can only be looked at.

        Raises:
            ResultsError: it holds another run, or the system refuses.
        """
        record = read_record(source)
        if record is None:
            return
        refuse_another_run(source, record.compared, self._compared)
        held = self.beside if cells else self.elsewhere
        held |= read_good(source, self.fingerprint, self.manifest.max_score)[0]
        found: dict[str, Listed] = {}
        for name, stated in record.artefacts.items():
            target = self.path / name
            if name not in self._listed and (source / name).is_file():
                with usable(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    share_file(source / name, target)
                found[name] = stated
        if found:
            self.note(artefacts={**self._listed, **found})
        for line in record.remarks:
            self.remark(line)

    def agree(self, values: Mapping[str, Any]) -> None:
        """Fix what names stand for in a run that grows: a later session may bring other names, but no other value.

        Raises:
            ResultsError: the folder has another value for a name.
        """
        self._refuse_others(self._compared, values)
        held = (self._record or self.manifest).growing or {}
        if any(name not in held for name in values):
            self.note(growing={**held, **plain(dict(values))})

    def drop(self, name: str) -> None:
        """Throw a folder of artefacts away: what stages kept for a result that is now stored."""
        if (self.path / name).is_dir():
            self.note(artefacts={n: v for n, v in self._listed.items() if not n.startswith(f"{name}/")})
            shutil.rmtree(self.path / name, ignore_errors=True)

    def finish(self) -> None:
        """Mark the run complete, where this session has written anything."""
        if not self.complete:
            self.note(status="complete", finished=now())

    def close(self) -> None:
        """Write what there is, where this session has begun to."""
        if self.begun:
            status: dict[str, Any] = {} if self.complete else {"status": "interrupted"}
            for write in self._closing:
                status |= write()
            self.note(**status)

    def _signature(self, depends: object) -> str:
        return hash_json([self.fingerprint, plain(depends)])[:32]


def stranger(folder: Path) -> ResultsError:
    """The refusal of a folder that holds something else."""
    return ResultsError(
        f"{folder} holds no readable {RECORD} of this version and no cell of this command; remove what is there, or "
        "give another --out folder"
    )


def _signs(folder: Path) -> tuple[str, ...]:
    """The fingerprints that a damaged record still tells: the one stated, and that of the values that it holds."""
    held = read_json(folder / RECORD)
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        return ()
    return str(held.get("fingerprint")), fingerprint_of(held.get("compared"))


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with usable(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()
