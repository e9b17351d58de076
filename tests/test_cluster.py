"""Jobs that share work, and the process that waits for them: whatever ends a job is met, and told in one line.

The jobs of these tests run in this process, but for one that is a process of submitit's. `tests/cluster/trial.py` has
them on a real Slurm.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sharing import NUMBERS, NUMBERS_CLASS, Numbers, NumbersConfig, report_of, shard

from analyses.cli import main
from analyses.experiment.cluster import submitting
from analyses.experiment.cluster.jobs import Jobs, LocalJobs, SlurmJobs, shards_of
from analyses.experiment.cluster.plan import Report, place_of, read_plan, write_report
from analyses.experiment.cluster.shards import Merge, Task
from analyses.experiment.cluster.status import results_digest, status_lines
from analyses.experiment.cluster.submitting import Left, submit
from analyses.experiment.cluster.surroundings import own_gpus
from analyses.experiment.options.cluster import ClusterConfig, without_cluster
from analyses.experiment.options.study import NiahConfig
from analyses.experiment.running import conduct
from hybridlens.errors import HybridLensError, InputError, ResultsError
from hybridlens.results.settled import forget


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


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What each of Slurm's commands prints, and under "asked" the last one that was given."""
    printed: dict[str, str] = {}

    def run(words: Sequence[str], **given: Any) -> subprocess.CompletedProcess[str]:
        printed["asked"] = " ".join(words)
        return subprocess.CompletedProcess(words, 0, printed[words[0]], "")

    monkeypatch.setattr("subprocess.run", run)
    return printed


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


def test_a_job_whose_time_is_too_short_is_not_queued_for_ever(tmp_path: Path) -> None:
    """Nothing made in all its time is refused; something made, or time left, is queued again as it is."""
    task = shard(tmp_path, 0, 0, 1)
    task.limit, task.began = 3600.0, time.time() - 3500
    with pytest.raises(
        InputError, match=r"no part of shard 0 of 1, wave 1 was done in 0\.97 hours; give the same command with more"
    ):
        task.checkpoint()
    task.spent, task.before = 0.0, (1, 0)  # its folder holds something else than when it began
    assert task.checkpoint().function is task
    task.before = (0, 0)
    for _ in range(3):  # stopped before its time was up, as jobs of a few minutes are: the same, told later
        task.began = time.time() - 1000
        if task.spent < 1900:
            assert task.checkpoint().function is task
    with pytest.raises(InputError, match=r"was done in 0\.83 hours"):
        task.checkpoint()


def test_the_last_job_is_not_queued_for_ever_either(tmp_path: Path) -> None:
    """Progress that is not stored is none; what it takes over counts once."""
    task = Merge(NUMBERS_CLASS, NUMBERS, "cpu", "float32", tmp_path, 1, 1, "token", 3600.0)
    task.began = time.time() - 3500
    with pytest.raises(InputError, match="no part of putting the results together was done"):
        task.checkpoint()


def test_a_queue_that_takes_no_job_back(tmp_path: Path) -> None:
    """`scontrol requeue` is refused inside the signal's handler: the job counts as gone, and not as failed."""
    task = shard(tmp_path, 0, 0, 1)
    place_of(tmp_path, "0").mkdir(parents=True)
    for error in (subprocess.CalledProcessError(1, "scontrol"), SystemExit(-1)):
        report = report_of(task)
        task.began = time.time()
        task.checkpoint()
        with pytest.raises(type(error)), task._reported(report):
            raise error
        assert (report.state, report.error) == ("queued", "")
        task.leaving = False
    report = report_of(task)
    with pytest.raises(RuntimeError), task._reported(report):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert report.error == "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"  # these have no --memory
    task.options = NiahConfig(model="m")
    assert task._line(MemoryError()).endswith("; give the same command with less --memory")


def test_all_jobs_are_on_a_gpu_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device is left to them, by the first that asks."""
    task = shard(tmp_path, 0, 0, 1)
    assert task._device() == "cpu"
    task.device = "auto"

    def on(gpu: bool) -> str:
        monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
        return task._device()

    assert [on(True), on(True)] == ["auto", "auto"]
    with pytest.raises(InputError, match="there is no GPU here, and other jobs of this run have one; ask for one with"):
        on(False)
    forget(tmp_path)
    assert [on(False), on(True)] == ["cpu", "cpu"]


def test_a_process_of_submitits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call is carried to a process of its own, seen from its first moment while it runs, and gone afterwards."""
    begun, end = tmp_path / "begun", tmp_path / "end"
    jobs = LocalJobs(ClusterConfig(cluster="local", jobs=1), tmp_path, "test", "cpu")
    held = f"touch '{begun}'; until [ -e '{end}' ]; do sleep 0.05; done"
    (name,) = jobs.submit([partial(subprocess.run, ["sh", "-c", held], check=True)])
    with monkeypatch.context() as context:  # words of a process are empty between its start and its first instruction
        context.setattr(Path, "read_bytes", lambda _: b"")
        assert set(jobs.alive([name, "1"])) == {name}
    until = time.monotonic() + 120
    while not begun.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert begun.exists()
    assert set(jobs.alive([name, "1"])) == {name}
    other = LocalJobs(ClusterConfig(cluster="local", jobs=1), tmp_path, "test", "cpu")
    assert set(other.alive([name, "1"])) == {name}, "a process that waits anew sees it too"
    end.touch()
    while jobs.alive([name]) and time.monotonic() < until:
        time.sleep(0.05)
    assert jobs.alive([name, "1"]) == {}


@pytest.mark.parametrize(("said", "some"), [("(null)\n", 0), ("gpu:a100:4(S:0-1)\n(null)\n", 1)])
def test_a_gpu_is_asked_for_where_there_are_some(said: str, some: int, tmp_path: Path, slurm: dict[str, str]) -> None:
    """By what Slurm says of the partition, unless the user says how many, or which device."""
    slurm["sinfo"] = said
    for device, given, expected in (("auto", None, some), ("cpu", None, 0), ("cuda:0", None, 1), ("cpu", 3, 3)):
        config = ClusterConfig(cluster="slurm", gpus=given, partition="main")
        jobs = SlurmJobs(config, tmp_path, "test", device)
        assert config.gpus_for(device, jobs.has_gpus) == expected
    assert slurm["asked"] == "sinfo --noheader --format=%G --partition=main"
    with pytest.raises(InputError, match="--device cuda:1 given, but each job counts its own GPUs from 0, and has 1"):
        ClusterConfig(cluster="slurm").gpus_for("cuda:1", lambda: True)


def test_what_slurm_says_of_jobs(tmp_path: Path, slurm: dict[str, str]) -> None:
    """What it says of a job that is over is known; with any other word, known or not, the job is there."""
    slurm["squeue"] = (
        "7_0|RUNNING|None\n7_1|PENDING|Resources\n7_2|PENDING|PartitionTimeLimit\n7_3|POWER_UP_NODE|None\n"
        "7_4|COMPLETED|None\n7_5|PREEMPTED|None\n7_6|TIMEOUT|TimeLimit\n7_7|OUT_OF_MEMORY|OutOfMemory\n"
        "7_8|CANCELLED|None\n9|NODE_FAIL|None\n"
    )
    jobs = SlurmJobs(ClusterConfig(cluster="slurm"), tmp_path, "test", "cpu")
    assert jobs.alive([*(f"7_{n}" for n in range(10)), "9"]) == {
        "7_0": "running", "7_1": "pending", "7_2": "pending (PartitionTimeLimit)", "7_3": "power_up_node",
        "7_7": "out_of_memory", "7_8": "cancelled",
    }  # fmt: skip
    assert "--jobs=7,9" in slurm["asked"]
    assert jobs.alive([]) == {}


def test_a_job_of_slurms_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From within another job, and from a folder that holds a package of the user's: neither is the new job's.

    `sbatch` and `srun` are stood in for, by a script that keeps what it is given.
    """
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in ("sbatch", "srun"):
        (bin_ / name).write_text(f"#!/bin/sh\nenv > '{tmp_path}/env'\ncp \"$1\" '{tmp_path}/script'\necho job 12\n")
        (bin_ / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "3")
    monkeypatch.setenv("SLURM_CONF", "conf")
    monkeypatch.chdir(tmp_path)
    jobs = SlurmJobs(ClusterConfig(cluster="slurm", time=1.0), tmp_path, "test", "cpu")
    assert jobs.submit([len, len]) == ["12_0", "12_1"]
    script, env = (tmp_path / "script").read_text(), (tmp_path / "env").read_text()
    assert "#SBATCH --requeue\n" in script
    assert f"{sys.executable} -P -u -m submitit.core._submit" in script
    assert "SLURM_CONF=conf" in env
    assert "SLURM_ARRAY_JOB_ID" not in env
    assert os.environ["SLURM_JOB_ID"] == "3"


def test_gpus_of_this_machine_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for named, expected in ((None, (0, 1)), ("3,1", (3, 1))):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if named is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert own_gpus() == expected
    for given, device, expected in (
        ({}, "auto", 2), ({}, "cpu", 8), ({"gpus": 2}, "cuda", 1), ({"jobs": 5}, "cuda", 5), ({"gpus": 3}, "cuda", 1),
    ):  # fmt: skip
        with monkeypatch.context() as context:
            context.setattr("os.cpu_count", lambda: 64)
            assert shards_of(ClusterConfig(cluster="local", **given), device) == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1a,GPU-2b")
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES is 'GPU-1a,GPU-2b', expected numbers"):
        own_gpus()


def test_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with them is one line, before anything is written."""
    command = ["niah", "--model", "tiny-jamba", "--out", str(tmp_path / "out")]
    for words, line in (
        (["--jobs", "3"], "--jobs given without --cluster; give --cluster slurm or local"),
        (["--cluster", "slurmm"], "--cluster 'slurmm' does not exist"),
        (["--cluster", "local", "--jobs", "0"], "--jobs 0 given, expected greater than or equal to 1"),
        (["--cluster", "slurm", "--mem", "much"], "--mem 'much' given, expected a size such as 2GB"),
        (["--cluster", "local", "--mem", "2GB"], "--mem given with --cluster local, which has none; leave it out"),
        (["--cluster", "slurm"], "--cluster slurm given, but there is no sbatch here"),
    ):
        monkeypatch.setattr("shutil.which", lambda name: None)
        assert main([*command, *words]) == 2
        assert line in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main([*command, "--cluster", "local"]) == 2
    assert "submitit, which is not installed; pip install 'hybridlens[cluster]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["status", str(tmp_path)]) == 2
    assert "run.json is missing; give a folder that a hybridlens command has written" in capsys.readouterr().err


def test_the_command_that_is_recorded_is_the_plain_one() -> None:
    words = [
        "niah",
        "--cluster",
        "slurm",
        "--model",
        "m",
        "--jobs=4",
        "--array-parallelism",
        "2",
        "--out",
        "x",
        "--mem",
        "1GB",
    ]
    assert without_cluster(words) == ["niah", "--model", "m", "--out", "x"]
