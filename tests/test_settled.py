"""The memory that a run's work is cut by: settled once, whoever asks first, and kept by all sessions and shards."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from random_lens import benchmark_lens
from sharing import NUMBERS, Numbers, results, work
from study_cells import grid

from analyses.commands.declared import Declared, default_folder
from analyses.experiment.cluster.plan import asked, place_of
from analyses.experiment.cluster.status import status_lines
from analyses.experiment.options.base import Options
from analyses.experiment.options.study import NiahConfig
from analyses.experiment.room import room
from analyses.heads import answering
from analyses.heads.answering import portions_of
from analyses.study.niah import NiahRun
from hybridlens import HybridLens, machine
from hybridlens.engine import Budget, costs_of
from hybridlens.errors import InputError, ResultsError
from hybridlens.results import Folder, Run, read_run
from hybridlens.results.locks import LOCK, is_locked, locked
from hybridlens.results.provenance import read_json, write_json
from hybridlens.results.settled import forget, settle_among, settled

GB = 2**30
CPU = torch.device("cpu")
NIAH = NiahConfig(model="random", heads=(0, 1, 4), control=False, lengths=(110,), depths=(0, 100), max_new_tokens=3)


@pytest.fixture(scope="module")
def lens() -> HybridLens:
    return benchmark_lens("jamba")


@pytest.fixture(scope="module")
def budgets(lens: HybridLens) -> tuple[int, int]:
    """One in which eight rows answer together, and one for two: they cut the work otherwise."""
    prompts = NiahRun(lens, NIAH).grid
    least = Budget(costs_of(lens.cfg, lens.dtype)).needed(116)
    cuts = [[len(one) for one in portions_of(lens, prompts, 3, memory)] for memory in (8 * least, 2 * least)]
    assert cuts[0] != cuts[1]
    return 8 * least, 2 * least


def found(monkeypatch: pytest.MonkeyPatch, *sizes: int) -> Iterator[int]:
    """Have the machine say these budgets, one at a time, and so much free."""
    left = iter(sizes)
    monkeypatch.setattr(machine, "budget", lambda devices: next(left))
    monkeypatch.setattr(machine, "free", lambda device: 64 * GB)
    return left


def open_numbers(path: Path, whole: Path | None = None) -> Any:
    return Folder.open(path, Numbers(NUMBERS).manifest(), None, whole)


def test_the_first_answer_is_kept_until_a_user_says_another(tmp_path: Path) -> None:
    """Nothing is written for a run that asks nothing; the report's record has the value."""
    with open_numbers(tmp_path) as folder:
        assert not folder.begun
        assert folder.settle("memory", None, lambda: 7) == 7
    assert read_run(tmp_path).record["settled"] == {"memory": 7}
    for given, expected in ((None, 7), (9, 9), (None, 9)):
        with open_numbers(tmp_path) as folder:
            assert folder.settle("memory", given, lambda: 8) == expected
    assert settled(tmp_path, "memory") == 9
    assert settled(tmp_path, "other") is None


def test_shards_that_begin_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of sixteen would find another number; one file, whole, is left. What the run itself settled comes first."""
    (tmp_path / "shards").mkdir()
    ready = Barrier(16)

    def settling(number: int) -> int:
        def find() -> int:
            ready.wait(30)  # all have seen that there is none
            return number + 1

        return settle_among(tmp_path, "memory", int, find)

    with ThreadPoolExecutor(16) as pool:
        (value,) = set(pool.map(settling, range(16)))
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["settled-memory.json"]
    with open_numbers(tmp_path) as folder:  # one process goes on with what shards have begun
        assert folder.settle("memory", None, lambda: 99) == value
        assert folder.settle("memory", 42, lambda: 99) == value  # and cuts the work as they do
    assert settle_among(tmp_path, "memory", int, lambda: 99) == value
    forget(tmp_path)  # as a new plan does
    with open_numbers(tmp_path) as folder:
        assert folder.settle("memory", 42, lambda: 99) == 42
    with open_numbers(place_of(tmp_path, "0"), tmp_path) as folder:
        assert folder.settle("memory", None, lambda: 99) == 42
    path = tmp_path / "shards" / "settled-memory.json"
    path.write_text("4")
    path.write_text("4 2")
    monkeypatch.setattr("hybridlens.results.settled.MOMENTS", 2)
    with pytest.raises(ResultsError, match=r"settled-memory\.json is damaged; remove it, and give the same command"):
        settle_among(tmp_path, "memory", int, lambda: 99)


def test_disks_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there before it is whole: who reads it then waits for the rest."""

    def refused(*given: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refused)
    assert [settle_among(tmp_path, "memory", int, lambda n=n: n) for n in (5, 6)] == [5, 5]
    path = tmp_path / "shards" / "settled-memory.json"
    path.write_text("")
    monkeypatch.setattr("hybridlens.results.settled.time.sleep", lambda seconds: path.write_text("7"))
    assert settle_among(tmp_path, "memory", int, lambda: 8) == 7


def test_a_run_goes_on_with_what_it_settled(
    lens: HybridLens, budgets: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind its first portion, where less is said to be used from then on: the portions stay, and the cells."""
    wide, narrow = budgets
    experiment = NiahRun(lens, NIAH)
    found(monkeypatch, wide)
    one = results(experiment, tmp_path / "one")
    left = found(monkeypatch, wide, narrow)
    real = answering._answered
    calls: list[int] = []

    def killed(*given: Any) -> Any:
        calls.append(len(given[2]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(answering, "_answered", killed)
    with pytest.raises(KeyboardInterrupt):
        results(experiment, tmp_path / "two")
    assert results(experiment, tmp_path / "two") == one
    assert next(left) == narrow  # was never asked
    assert read_run(tmp_path / "two").record["settled"] == {"memory": wide}
    assert read_run(tmp_path / "two").record["remarks"] == []


def test_shards_and_merge_go_by_the_first(
    lens: HybridLens, budgets: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three shards of which each machine would say another budget."""
    wide, narrow = budgets
    experiment, many = NiahRun(lens, NIAH), tmp_path / "many"
    found(monkeypatch, wide)
    one = results(experiment, tmp_path / "one")
    found(monkeypatch, wide, narrow, narrow)
    total = sum(work(experiment, many, 0, number, 3).total for number in (2, 0, 1))
    assert total == len(experiment.grid)
    assert results(experiment, many, [place_of(many, str(number)) for number in range(3)]) == one
    folders = [many, *(place_of(many, str(number)) for number in range(3))]
    assert [read_run(folder).record["settled"] for folder in folders] == [{"memory": wide}] * 4


def test_a_machine_with_less_goes_on_in_smaller_batches_and_says_so(
    lens: HybridLens, budgets: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Portions are cut as settled; a batch holds what is here. What a user says is taken as it is said."""
    wide, narrow = budgets
    experiment = NiahRun(lens, NIAH)
    with Folder.open(tmp_path, experiment.manifest(), experiment.expected()) as folder:
        folder.settle("memory", wide, lambda: 0)
    monkeypatch.setattr(machine, "free", lambda device: wide - 1)
    monkeypatch.setattr(machine, "budget", lambda devices: narrow)
    sizes: list[tuple[int, int]] = []
    real = answering._answered

    def watched(*given: Any) -> Any:
        sizes.append((len(given[2]), given[5]))
        return real(*given)

    monkeypatch.setattr(answering, "_answered", watched)
    results(experiment, tmp_path)
    assert [size for size, _ in sizes] == [len(one) for one in portions_of(lens, experiment.grid, 3, wide)]
    assert {held for _, held in sizes} == {narrow}
    (line,) = read_run(tmp_path).record["remarks"]
    assert line.startswith("the run was begun with ")
    assert line in status_lines(tmp_path)
    with open_numbers(tmp_path / "other") as folder:
        assert room(folder, wide, [CPU]) == (wide, wide)


def test_jobs_go_on_with_another_memory_and_cut_nothing_otherwise(
    lens: HybridLens, budgets: tuple[int, int], tmp_path: Path
) -> None:
    """More than the first jobs had changes no bit; less makes batches smaller, which the run says."""
    wide, narrow = budgets
    options = NIAH.but(memory=narrow, heads=(1,))
    first, more = NiahRun(lens, options), NiahRun(lens, options.but(memory=wide))
    assert asked(options, "cpu", "auto") == asked(more.options, "cpu", "auto") != asked(NIAH.but(seed=1), "cpu", "auto")
    one, many = results(first, tmp_path / "one"), tmp_path / "many"
    totals = [work(kind, many, 0, number, 2).total for number, kind in enumerate((first, more))]
    assert sum(totals) == len(first.grid)  # a division of the work still
    assert min(totals) > 0
    assert results(more, many, [place_of(many, str(number)) for number in range(2)]) == one
    assert read_run(many).record["remarks"] == []
    for number, memory in enumerate((wide, narrow)):
        with open_numbers(place_of(tmp_path / "less", str(number)), tmp_path / "less") as folder:
            assert room(folder, memory, [CPU]) == (wide, memory)
            assert ["it ran smaller batches" in line for line in folder.record["remarks"]] == [True] * number


def test_another_memory_in_one_process_is_said(tmp_path: Path) -> None:
    for memory in (2 * GB, 2 * GB, GB):
        with open_numbers(tmp_path) as folder:
            assert room(folder, memory, [CPU]) == (memory, memory)
    (line,) = read_run(tmp_path).record["remarks"]
    assert line.startswith("the run was begun with 2 GB beside the weights and went on with 1 GB: its work was cut")


def test_what_is_not_enough_is_not_settled(lens: HybridLens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not a single row fits the run is refused; when there is more, the same command goes on."""
    experiment = NiahRun(lens, NIAH.but(depths=(0,), heads=(4,)))
    found(monkeypatch, 100, 2 * GB)
    with pytest.raises(InputError, match="but a single row of 113 tokens needs at least"):
        results(experiment, tmp_path)
    assert not (tmp_path / "run.json").exists()
    results(experiment, tmp_path)
    assert read_run(tmp_path).record["settled"] == {"memory": 2 * GB}


def test_budgets_are_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines of which one has a little more in use settle the same; never more than there is."""
    for free, expected in ((5 * GB, 2 * GB), (3.9 * GB, 1.5 * GB), (3.1 * GB, 1.5 * GB), (100, 48), (1, 1)):
        monkeypatch.setattr(machine, "_available", lambda free=free: int(free))
        assert machine.budget([CPU]) == expected
    monkeypatch.setattr(machine, "_available", lambda: GB)
    assert [machine.within([CPU], size) for size in (GB, GB + 1, GB // 4)] == [GB, GB // 2, GB // 4]


def test_status_of_a_run_of_one_process(tmp_path: Path) -> None:
    """While it is written: cells done and the time left at its pace; killed or stopped: that the command goes on.

    Five cells in fifty seconds of this session, behind ten of an earlier one: 10 s each, and nine are left.
    """
    cells = grid(1)
    expected = {one.key: one.prompt_hash for one in cells}
    manifest = replace(Numbers(NUMBERS).manifest(), job="niah", max_score=10)

    def first_line() -> str:
        return status_lines(tmp_path)[0]

    with Run.open(tmp_path, manifest, expected) as run:
        run.add(cells[:10])
    assert first_line() == "niah of none: interrupted, 10 of 24 cells done"
    with Run.open(tmp_path, manifest, expected) as run:
        run.add(cells[10:15])
        began = datetime.fromisoformat(run.record["sessions"][-1]["started"]).timestamp()
        os.utime(tmp_path / "cells.jsonl", (began + 50, began + 50))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.time", lambda: began + 60)
            assert first_line() == "niah of none: running, 15 of 24 cells done; about 0:01:20 left"
            os.utime(tmp_path / "cells.jsonl", (began - 1, began - 1))  # this session has not added anything
            assert first_line() == "niah of none: running, 15 of 24 cells done"
        killed = (tmp_path / "run.json").read_bytes()
    (tmp_path / "run.json").write_bytes(killed)
    assert first_line() == "niah of none: stopped, and goes on with the same command, 15 of 24 cells done"


def test_a_look_at_a_lock_refuses_nobody(tmp_path: Path) -> None:
    """Who comes while another process looks waits for a moment, and has the folder; one that writes is seen."""
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(ResultsError, match="is being written by another process"), locked(tmp_path):
            pass
    looking = ExitStack()
    looking.enter_context(locked(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hybridlens.results.locks.time.sleep", lambda seconds: looking.close())
        with locked(tmp_path):
            assert is_locked(tmp_path)
    with pytest.raises(ResultsError, match="cannot be used"):
        is_locked(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_one_that_all_nodes_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS keeps locks on folders to the node, and refuses to lock what is not open for writing: as it does here.

    A lock that is got on a file which its holder has removed meanwhile is none. A disk without locks is told of.
    """
    real = fcntl.flock

    def on_nfs(handle: int, how: int) -> None:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return
        if how & fcntl.LOCK_EX and fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(handle, how)

    monkeypatch.setattr("fcntl.flock", on_nfs)
    with locked(tmp_path), pytest.raises(ResultsError, match="is being written by another process"), locked(tmp_path):
        pass

    def removed(handle: int, how: int) -> None:
        monkeypatch.setattr("fcntl.flock", on_nfs)
        (tmp_path / LOCK).unlink()

    monkeypatch.setattr("fcntl.flock", removed)
    with locked(tmp_path):
        assert is_locked(tmp_path)

    def none(handle: int, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.warns(UserWarning, match=r"knows no locks \(Function not implemented\)"), locked(tmp_path):
        assert not is_locked(tmp_path)


def test_a_file_that_another_node_replaces_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stale while it is read, as NFS has it; for ever, it is refused in one line."""
    path = write_json(tmp_path / "progress.json", {"done": 1})
    real, stale = Path.read_bytes, [1, 1, 1]

    def read(file: Path) -> bytes:
        if stale and stale.pop():
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(file)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert read_json(path) == {"done": 1}
    stale += [1] * 1000
    with pytest.raises(ResultsError, match="Stale file handle"):
        read_json(path)


def test_revisions_have_folders_of_their_own() -> None:
    """What a revision may hold and a folder's name may not is a dash there."""
    niah = Declared("niah", NiahConfig, "", "", folder="")
    for revision, name in ((None, "base"), ("v2.1", "base@v2.1"), ("refs/pr/3", "base@refs-pr-3")):
        assert default_folder(Options(model="org/base", revision=revision), niah) == Path("results", name)
    assert default_folder(Options(model="base", revision="x"), niah._replace(folder=None)).name == "base@x-niah"
