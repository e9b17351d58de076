"""Jobs that share work, and the process that waits for them: whatever ends a job is met, and told in one line.

The jobs of these tests run in this process, but for one that is a process of submitit's. `tests/cluster/trial.py` has
them on a real Slurm.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sharing import NUMBERS, NUMBERS_CLASS, Numbers, NumbersConfig, report_of, shard

from analyses.experiment.cluster import submitting
from analyses.experiment.cluster.jobs import Jobs
from analyses.experiment.cluster.plan import Report, place_of, read_plan, write_report
from analyses.experiment.cluster.shards import Task
from analyses.experiment.cluster.status import results_digest, status_lines
from analyses.experiment.cluster.submitting import Left, submit
from analyses.experiment.options.cluster import ClusterConfig
from analyses.experiment.running import conduct
from hybridlens.errors import HybridLensError, InputError, ResultsError


class Here(Jobs):
    """Jobs that run in this process when they are submitted; some are killed, others fail.

    Attributes:
        killed: shard -> how many of its jobs end before they begin.
        failing: shards whose jobs raise.
    """

    wait = 0.0
    grace = 0.0

    def __init__(self) -> None:
        self.config = ClusterConfig(cluster="local", jobs=2)
        self.submitted: list[str] = []
        self.killed: dict[str, int] = {}
        self.failing: set[str] = set()
        self.states: dict[str, str] = {}
        self.stop = False

    def submit(self, tasks: Sequence[Task]) -> list[str]:
        names: list[str] = []
        for task in tasks:
            self.submitted.append(task.name)
            names.append(f"job-{len(self.submitted)}")
            if self.killed.get(task.name, 0):
                self.killed[task.name] -= 1
            elif task.name in self.failing:
                with pytest.raises(InputError), task._reported(report_of(task)):
                    raise InputError("the model is not there")
            else:
                with suppress(HybridLensError):  # which a job's process dies of
                    task()
        return names

    def alive(self, jobs: Sequence[str]) -> Mapping[str, str]:
        if self.stop:
            raise KeyboardInterrupt
        return {job: self.states[job] for job in jobs if job in self.states}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    jobs = Here()
    monkeypatch.setattr(submitting, "jobs_of", lambda *given: jobs)
    monkeypatch.setattr("analyses.experiment.cluster.status.jobs_of", lambda *given: jobs)
    return jobs


def give(folder: Path, options: NumbersConfig = NUMBERS, **more: Any) -> list[str]:
    """What the command prints."""
    lines: list[str] = []
    config = ClusterConfig(**{"cluster": "local", "jobs": 2, **more})
    submit(NUMBERS_CLASS, options, folder, "cpu", "float32", config, lines.append)
    return lines


def test_two_shards_then_the_results_then_nothing(here: Here, tmp_path: Path) -> None:
    conduct(Numbers(NUMBERS), tmp_path / "one")
    before = Numbers.opened_times
    printed = give(tmp_path / "out")
    assert here.submitted == ["0", "1", "merge"]
    assert Numbers.opened_times == before + 3  # each job loads the model once
    assert printed[0].startswith("submitted: shards 0, 1 (job job-1, job-2); hybridlens status ")
    assert printed[1].startswith("submitted: the job that puts all together (job job-3)")
    assert printed[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    assert results_digest(tmp_path / "out") == results_digest(tmp_path / "one")
    assert f"results, but for times: sha256 {results_digest(tmp_path / 'one')}" in status_lines(tmp_path / "out")
    log = (place_of(tmp_path / "out", "1") / "log").read_text()
    assert "shard 1 of 2, wave 1, begins" in log
    assert "square 3: 2 of 2" in log
    assert printed[2:-1] == ["sum 14"]
    assert give(tmp_path / "out") == [f"finished, nothing to submit: {tmp_path / 'out'}"]
    assert len(here.submitted) == 3


def test_a_folder_that_one_process_finished_is_finished(here: Here, tmp_path: Path) -> None:
    """Known by the command; another command of the same folder is refused by its shards, in one line."""
    options = NUMBERS.but(command="hybridlens numbers")
    conduct(Numbers(options), tmp_path)
    assert give(tmp_path, options) == [f"finished, nothing to submit: {tmp_path}"]
    assert here.submitted == []
    with pytest.raises(ResultsError, match=r"2 of 2 jobs failed \(.* holds a run with --n 4, and this one has 5"):
        give(tmp_path, NUMBERS.but(n=5))


def test_jobs_that_end_without_a_word_are_submitted_again(here: Here, tmp_path: Path) -> None:
    """Twice; a third time in a row counts as failed, and the same command tries anew. Others are not run again."""
    here.killed = {"0": 2}
    give(tmp_path / "twice")
    assert here.submitted == ["0", "1", "0", "0", "merge"]
    here.submitted.clear()
    here.killed = {"1": 3}
    with pytest.raises(
        ResultsError, match=r"1 of 2 jobs failed \(ended without a word: killed, or its node lost\); see"
    ):
        give(tmp_path / "often")
    assert here.submitted == ["0", "1", "1", "1"]
    shown = "\n".join(status_lines(tmp_path / "often")).splitlines()
    assert any(line.startswith("1 ended: it said nothing (then nothing: killed") for line in shown)
    give(tmp_path / "often")
    assert here.submitted == ["0", "1", "1", "1", "1", "merge"]


def test_errors_are_told_and_not_tried_again(here: Here, tmp_path: Path) -> None:
    here.failing = {"1"}
    with pytest.raises(
        ResultsError, match=r"1 of 2 jobs failed \(the model is not there\); see .*1/log, and give the same"
    ):
        give(tmp_path)
    assert here.submitted == ["0", "1"]
    shown = "\n".join(status_lines(tmp_path)).splitlines()
    assert shown[0] == "numbers of none: wave 1 of 1, 2 shards on local"
    assert "1 failed: the model is not there" in shown
    here.failing = set()
    with pytest.raises(ResultsError, match=r"holds unfinished jobs of another command .*; finish that, or remove"):
        give(tmp_path, NUMBERS.but(n=5))
    assert give(tmp_path)[-1] == f"report: {tmp_path / 'report.html'}"
    assert here.submitted == ["0", "1", "1", "merge"]


def test_a_cancelled_job_is_left_alone_until_asked_for(here: Here, tmp_path: Path) -> None:
    here.killed, here.states = {"0": 1}, {"job-1": "cancelled"}
    with pytest.raises(ResultsError, match=r"1 of 2 jobs failed \(someone has cancelled it\)"):
        give(tmp_path)
    give(tmp_path)
    assert here.submitted == ["0", "1", "0", "merge"]


def test_a_job_without_memory_enough_is_told_and_not_tried_again(here: Here, tmp_path: Path) -> None:
    here.killed, here.states = {"0": 1}, {"job-1": "out_of_memory"}
    with pytest.raises(ResultsError, match=r"1 of 2 jobs failed \(it took more main memory .* with more --mem\)"):
        give(tmp_path)
    assert any(line.startswith("0 out_of_memory: it took more main memory") for line in status_lines(tmp_path))
    assert give(tmp_path, mem=None)[-1] == f"report: {tmp_path / 'report.html'}"


def test_what_fails_is_told_at_once(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when the others are done."""
    here.failing, here.killed, here.states = {"1"}, {"0": 1}, {"job-1": "running"}
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if "failed" in line:
            raise KeyboardInterrupt

    with pytest.raises(Left):
        submit(NUMBERS_CLASS, NUMBERS, tmp_path, "cpu", "float32", ClusterConfig(cluster="local", jobs=2), stop)
    assert said[-1] == "shard 1 failed, the others go on: the model is not there"


def test_the_last_word_of_a_job_may_be_seen_late(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS: a job is gone, and its report is there only some looks later; it is not submitted again."""
    here.grace = 60.0
    real, looks = submitting.read_report, 0

    def late(folder: Path, name: str) -> Report | None:
        nonlocal looks
        looks += name == "0"
        return None if looks < 5 else real(folder, name)

    monkeypatch.setattr(submitting, "read_report", late)
    give(tmp_path)
    assert here.submitted == ["0", "1", "merge"]


def test_a_job_that_was_replaced_ends_at_once(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that waits is killed as it submits: its job starts later, beside the one submitted in its place."""
    lost: list[Task] = []

    def killed(tasks: Sequence[Task]) -> list[str]:
        lost.extend(tasks)
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(here, "submit", killed)
        with pytest.raises(Left):
            give(tmp_path)
    assert sum("not yet submitted" in line for line in "\n".join(status_lines(tmp_path)).splitlines()) == 2
    real = here.submit

    def beside(tasks: Sequence[Task]) -> list[str]:
        if lost:
            (tmp_path / "shards" / "0" / "progress.json").write_text("the other's")
            lost.pop(0)()
            assert (tmp_path / "shards" / "0" / "progress.json").read_text() == "the other's"
            lost.clear()
        return real(tasks)

    monkeypatch.setattr(here, "submit", beside)
    give(tmp_path)
    assert here.submitted == ["0", "1", "merge"]
    log = (place_of(tmp_path, "0") / "log").read_text()
    assert "was submitted again meanwhile: nothing is left to do here" in log
    assert log.count(" begins") == 1


def test_another_number_of_jobs_is_not_passed_over(here: Here, tmp_path: Path) -> None:
    here.failing = {"1"}
    with pytest.raises(ResultsError):
        give(tmp_path)
    here.failing = set()
    assert give(tmp_path, jobs=5)[0] == "--jobs 5 given, but the work was divided among 2 before, and stays so"


def test_status_of_a_finished_folder_whose_record_is_gone(here: Here, tmp_path: Path) -> None:
    give(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ResultsError, match=r"run\.json is missing"):
        status_lines(tmp_path)


def test_stopped_and_joined(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a job runs: it goes on, and the same command waits for it and submits it not again."""
    here.killed, here.states = {"0": 1}, {"job-1": "running"}
    looks = 0
    real = here.alive

    def alive(jobs: Sequence[str]) -> Mapping[str, str]:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise KeyboardInterrupt
        return real(jobs)

    monkeypatch.setattr(here, "alive", alive)
    with pytest.raises(Left, match=r"stopped waiting; 1 submitted job goes on: hybridlens status .* shows how far"):
        give(tmp_path)
    shown = "\n".join(status_lines(tmp_path)).splitlines()
    assert any(line.split()[:3] == ["0", "running", "job-1"] for line in shown)
    assert any(line.split()[:2] == ["1", "done"] for line in shown)

    def ends(jobs: Sequence[str]) -> Mapping[str, str]:
        plan = read_plan(tmp_path)
        assert plan is not None
        if here.states.pop("job-1", None):
            task = shard(tmp_path, 0, 0, 2)
            task.token = plan.placed["0"].token
            task()
            return {"job-1": "running"}
        return {}

    monkeypatch.setattr(here, "alive", ends)
    give(tmp_path)
    assert here.submitted == ["0", "1", "merge"]


def test_names_that_no_job_knows_are_refused_before_any_is_submitted(here: Here, tmp_path: Path) -> None:
    for device, dtype, line in (("gpu", "auto", "--device 'gpu' given, expected cpu"), ("cuda", "float8", "float8")):
        with pytest.raises(HybridLensError, match=line):
            submit(NUMBERS_CLASS, NUMBERS, tmp_path, device, dtype, ClusterConfig(cluster="local"), print)
    assert list(tmp_path.iterdir()) == []
    assert here.submitted == []


def test_one_process_submits(here: Here, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with (
        submitting.locked(tmp_path / "shards"),
        pytest.raises(
            ResultsError, match="shards already has a process that submits its jobs; wait for it, or stop it"
        ),
    ):
        give(tmp_path)
    assert here.submitted == []


def test_time_left_follows_the_pace(here: Here, tmp_path: Path) -> None:
    """30 of 100 units in 60 seconds, 10 of them an earlier job's: 3 seconds each, 210 left."""
    here.killed, here.states = {"0": 9, "1": 9}, {"job-1": "running", "job-2": "pending"}
    real = here.submit

    def submitted(tasks: Sequence[Task]) -> list[str]:
        names = real(tasks)
        now = time.time()
        report = Report(
            token=tasks[0].token, wave=0, unit="cell", total=100, done=30, done_before=10, began=now - 60, told=now
        )
        write_report(tmp_path, "0", report)
        here.stop = True
        return names

    here.submit = submitted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        give(tmp_path)
    here.stop = False
    shown = "\n".join(status_lines(tmp_path)).splitlines()
    assert any(line.split() == ["0", "running", "job-1", "30/100", "3", "0:03:30"] for line in shown), shown
    assert any(line.split()[:4] == ["1", "pending", "job-2", "–"] for line in shown)
    assert shown[-1] == "30 of 100 cells done; about 0:03:30 left so far; 1 shard has not begun"
