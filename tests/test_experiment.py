"""One experiment declared by hand: stopped at every write, damaged in every file, on full disks, under a lock."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from random_lens import benchmark_lens

from analyses.experiment import running
from analyses.experiment.artefacts import Values
from analyses.experiment.drawing import digest_of, drawing_code
from analyses.experiment.options.base import Options
from analyses.experiment.running import Experiment, Progress, Stopped, conduct
from hybridlens.errors import InputError, ResultsError, UnknownNameError
from hybridlens.results import Cell, CellKey, Folder, Manifest, Run, provenance
from hybridlens.viz.article import Article

pytestmark = pytest.mark.usefixtures("small_bundles")

KEYS = [CellKey("m", "generation", k, 64, depth, False) for k in (0, 4) for depth in (0, 50)]


class Small(Options):
    """What the declared experiment depends on."""

    seed: int = 0


class Declared(Experiment[Small, dict[str, Any]]):
    """Two stages, four cells, and a third stage made of the second; every value follows from the seed."""

    job = "small"

    def __init__(self, options: Small, version: int = 1) -> None:
        super().__init__(benchmark_lens("jamba"), options, "w")
        self.version = version
        self.made: list[str] = []

    def manifest(self) -> Manifest:
        return self.identity({}, {}, None)

    def expected(self) -> Mapping[CellKey, str]:
        return dict.fromkeys(KEYS, "p")

    def run(self, folder: Folder, progress: Progress) -> dict[str, Any]:
        progress(0, 3)
        first = self._stage(folder, "first.json", [self.options.seed, 1])
        second = self._stage(folder, "deep/second.json", [self.options.seed, 2, self.version])
        store = Run(folder, self.expected())
        for key in store.todo:
            store.add([Cell(**key._asdict(), score=1.0, text="said", needle_start=1, needle_end=2, seconds=0.5,
                            prompt_hash="p")])  # fmt: skip
            self.made.append(key.words())
        store.write()
        third = folder.take("third.json", second, Values.load, lambda: Values([*second, 3]))
        progress(3, 3)
        return {"first": first, "third": third.value, "cells": len(store.cells)}

    def _stage(self, folder: Folder, name: str, value: list[int]) -> list[int]:
        def make() -> Values:
            self.made.append(name)
            return Values(value)

        return folder.take(name, value, Values.load, make).value

    def page(self, result: dict[str, Any], record: Mapping[str, Any]) -> Article:
        return Article("small", "small", (), (json.dumps(result),), (), ())

    def table(self, result: dict[str, Any]) -> Iterable[str]:
        return [json.dumps(result)]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a run, but for what tells the time of its sessions."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if name not in ("run.json", "report.html")}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    conduct(Declared(Small(model="m")), tmp_path / "run")
    return tmp_path / "run"


class Killed(BaseException):
    """A kill: nothing may be tidied up after it."""


@pytest.mark.parametrize("when", ["before the rename", "after the rename"])
def test_a_run_killed_at_any_write_goes_on_to_the_same_end(
    when: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every atomic write and every line of the journal is where it ends once; what was finished is not made again.

    The kill leaves the file half written, and the lock is let go of as the system does when a process ends.
    """
    whole, replace, write = contents(finished), Path.replace, os.write
    points = 0
    for at in range(1, 100):
        out = tmp_path / f"killed-{at}"
        count, dead = 0, False

        def step(act: Any, *given: Any, at: int = at) -> Any:
            nonlocal count, dead
            if dead:
                raise Killed
            count += 1
            if count == at and when.startswith("before"):
                dead = True
                raise Killed
            done = act(*given)
            if count == at:
                dead = True
                raise Killed
            return done

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", lambda *given: step(replace, *given))
            patched.setattr(provenance.os, "fsync", lambda handle: None)
            patched.setattr(os, "write", lambda *given: step(write, *given))
            patched.setattr(Path, "unlink", lambda path, **more: None)  # a kill leaves no time to tidy up
            try:
                conduct(Declared(Small(model="m")), out)
            except Killed:
                points += 1
            else:
                break
        again = Declared(Small(model="m"))
        result = conduct(again, out)
        assert contents(out) == whole, at
        assert result.result["cells"] == 4
        assert list(out.rglob("*.part")) == []
        assert len(again.made) <= 6
        assert (out / "report.html").is_file()
    assert points > 12, "the run writes at fewer places than it has files"


def test_a_finished_run_makes_and_writes_nothing(finished: Path) -> None:
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in finished.rglob("*") if p.is_file()}
    again = Declared(Small(model="m"))
    assert conduct(again, finished).damaged == ()
    assert again.made == []
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before} == before


@pytest.mark.parametrize("name", ["first.json", "deep/second.json", "third.json", "report.html"])
def test_one_wrong_digit_in_any_artefact_is_named_and_mended(name: str, finished: Path) -> None:
    """The file still reads well: only its digest tells, and the run ends with what was there before."""
    good = contents(finished)
    data = (finished / name).read_bytes()
    digit = max(data.rfind(b"1"), data.rfind(b"2"), data.rfind(b"3"))
    (finished / name).write_bytes(data[:digit] + b"7" + data[digit + 1 :])
    assert conduct(Declared(Small(model="m")), finished).damaged == (f"{name} does not match its digest; made again",)
    assert contents(finished) == good
    assert conduct(Declared(Small(model="m")), finished).damaged == ()


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, None])
def test_an_artefact_that_cannot_be_read_is_made_again(content: bytes | None, finished: Path) -> None:
    """Empty, cut, nested beyond all depth, gone."""
    good, path = contents(finished), finished / "third.json"
    path.unlink() if content is None else path.write_bytes(content)
    assert len(conduct(Declared(Small(model="m")), finished).damaged) == 1
    assert contents(finished) == good


def test_a_wrong_digit_in_the_record_is_seen(finished: Path) -> None:
    """A date that was changed: the record is not believed, and the run is told by its fingerprint."""
    path, good = finished / "run.json", contents(finished)
    path.write_text(path.read_text().replace('"created": "2', '"created": "3'))
    damaged = conduct(Declared(Small(model="m")), finished).damaged
    assert damaged[0] == "run.json does not match its digest; written anew, and every result made again"
    assert contents(finished) == good


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"format": 3}', None])
def test_a_record_that_is_none_of_ours_is_refused(content: bytes | None, tmp_path: Path) -> None:
    """Broken, nested beyond all depth, of an older version, a folder: one line, and nothing is made or changed."""
    path = tmp_path / "run.json"
    path.mkdir() if content is None else path.write_bytes(content)
    declared = Declared(Small(model="m"))
    with pytest.raises(ResultsError, match=r"holds no readable run\.json of this version") as caught:
        conduct(declared, tmp_path)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.rglob("*")] == ["run.json"]


def test_what_a_stage_depends_on_is_in_its_signature(finished: Path) -> None:
    """Another version of what the second stage is made from: it and the third are made anew, the first is kept."""
    other = Declared(Small(model="m"), version=2)
    outcome = conduct(other, finished)
    assert other.made == ["deep/second.json"]
    assert outcome.result["third"] == [0, 2, 2, 3]
    assert [line.split(" ")[0] for line in outcome.damaged] == ["deep/second.json", "third.json"]


def test_a_report_is_drawn_anew_by_other_code_and_nothing_else_is(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is stored: no stage is run, no other file is written, and the run stays complete."""
    good = contents(finished)
    report, kept = finished / "report.html", {p: p.stat().st_mtime_ns for p in finished.rglob("*.json")}
    report_before = report.stat().st_mtime_ns
    monkeypatch.setattr(running, "drawing_code", lambda: "other code")
    again = Declared(Small(model="m"))
    outcome = conduct(again, finished)
    assert (again.made, outcome.damaged) == ([], ())
    assert contents(finished) == good
    assert report.stat().st_mtime_ns > report_before
    assert {path for path, time in kept.items() if path.stat().st_mtime_ns != time} == {finished / "run.json"}
    assert outcome.record["status"] == json.loads((finished / "run.json").read_text())["status"] == "complete"
    report_before = report.stat().st_mtime_ns
    assert conduct(Declared(Small(model="m")), finished).damaged == ()
    assert report.stat().st_mtime_ns == report_before
    monkeypatch.setattr(running, "drawing_code", lambda: "code of a third day")
    monkeypatch.setattr(os, "access", lambda *_: False)
    (line,) = conduct(Declared(Small(model="m")), finished).damaged
    assert line.startswith("report.html was drawn by another version of the code")
    assert report.stat().st_mtime_ns == report_before


def test_the_code_of_reports_is_told_by_every_file_of_it(tmp_path: Path) -> None:
    """A file that changes, comes or moves is other code; what Python compiles of it is not."""
    (tmp_path / "a" / "__pycache__").mkdir(parents=True)
    (tmp_path / "a" / "x.py").write_text("1")
    seen = [digest_of((tmp_path / "a",), ["1"]), digest_of((tmp_path / "a",), ["2"])]
    (tmp_path / "a" / "__pycache__" / "x.pyc").write_text("1")
    assert digest_of((tmp_path / "a",), ["1"]) == seen[0]
    for name, text in (("x.py", "2"), ("y.css", ""), ("x.py", "1")):
        (tmp_path / "a" / name).write_text(text)
        seen.append(digest_of((tmp_path / "a",), ["1"]))
    (tmp_path / "a" / "x.py").rename(tmp_path / "a" / "z.py")
    seen.append(digest_of((tmp_path / "a",), ["1"]))
    assert len(set(seen)) == len(seen)
    assert len(drawing_code()) == 64


def test_another_run_is_refused_before_anything_is_made(finished: Path) -> None:
    before, other = contents(finished), Declared(Small(model="m", seed=1))
    with pytest.raises(ResultsError, match="--seed 0, and this one has 1; give the same arguments to go on"):
        conduct(other, finished)
    assert (contents(finished), other.made) == (before, [])


def test_one_process_holds_a_folder(finished: Path) -> None:
    declared = Declared(Small(model="m"))
    with (
        Folder.open(finished, declared.manifest(), declared.expected()),
        pytest.raises(ResultsError, match="is being written by another process; wait for it"),
    ):
        conduct(Declared(Small(model="m")), finished)


@pytest.mark.parametrize("place", ["mkstemp", "fsync"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_rightly(
    place: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full from the n-th write on, for every n."""
    module, lines = provenance.tempfile if place == "mkstemp" else os, list[str]()
    real = getattr(module, place)
    for at in range(40):
        out, count = tmp_path / f"full-{at}", 0

        def full(*given: Any, at: int = at, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count > at:
                raise OSError(28, "No space left on device")
            return real(*given, **more)

        with monkeypatch.context() as patched:
            patched.setattr(module, place, full)
            try:
                conduct(Declared(Small(model="m")), out)
            except ResultsError as error:
                lines.append(str(error))
            else:
                break
        conduct(Declared(Small(model="m")), out)
        assert contents(out) == contents(finished)
    assert len(lines) > 5, "the disk was never full"
    assert all("(No space left on device); make room" in line and "\n" not in line for line in lines)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_complete_run_is_shown_from_a_folder_that_cannot_be_written(finished: Path) -> None:
    finished.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert conduct(Declared(Small(model="m")), finished).result["cells"] == 4
    finally:
        finished.chmod(stat.S_IRWXU)


def test_a_complete_run_is_shown_without_a_write(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a read-only disk, where every write raises."""

    def refuse(*given: Any, **more: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(provenance.tempfile, "mkstemp", refuse)
    assert conduct(Declared(Small(model="m")), finished).result["cells"] == 4


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_says_so_in_one_line(sent: signal.Signals, status: int, tmp_path: Path) -> None:
    """The signal comes while nothing shows a bar; no half-written file is left."""
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from analyses import cli\nfrom analyses.commands import look\nimport test_experiment as t\n"
        "def stopped(self, folder, progress):\n"
        "    self._stage(folder, 'first.json', [1])\n"
        f"    os.kill(os.getpid(), {int(sent)})\n"
        "    raise AssertionError('it went on')\n"
        "t.Declared.run = stopped\n"
        f"look.models.__code__ = (lambda: __import__('test_experiment').conduct("
        f"__import__('test_experiment').Declared(__import__('test_experiment').Small(model='m')), "
        f"__import__('pathlib').Path({str(tmp_path / 'run')!r})) and None).__code__\n"
        "sys.exit(cli.main(['models']))\n"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"stopped; what is done is kept in {tmp_path / 'run'}: the same command goes on from there"
    )
    assert "Traceback" not in done.stderr
    assert sorted(contents(tmp_path / "run")) == ["first.json"]


def test_stopping_says_how_to_go_on(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Stopped, match="the same command goes on from there"):
        conduct(Declared(Small(model="m")), tmp_path / "run", stop)


def test_options_are_refused_in_one_line_that_names_them() -> None:
    for given, kind, message in (
        ({"seed": "1"}, InputError, "--seed '1' given, expected a valid integer"),
        ({"seed": True}, InputError, "--seed True given, expected a valid integer"),
        ({"seed": 1.5}, InputError, "--seed 1.5 given"),
        ({"sed": 1}, UnknownNameError, "option 'sed' does not exist; close names: seed"),
    ):
        with pytest.raises(kind, match=message) as caught:
            Small(model="m", **given)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="--model is missing; give it"):
        Small()
    assert Small(model="m").but(seed=3).seed == 3
