"""A job alone, and what Slurm says of it: time that is too short, queues that take nothing back, GPUs, options.

`tests/test_cluster.py` has the process that waits for jobs.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sharing import NUMBERS, NUMBERS_CLASS, report_of, shard

from analyses.cli import main
from analyses.experiment.cluster.jobs import LocalJobs, SlurmJobs, shards_of
from analyses.experiment.cluster.plan import place_of
from analyses.experiment.cluster.shards import Merge
from analyses.experiment.cluster.surroundings import own_gpus
from analyses.experiment.options.cluster import ClusterConfig, without_cluster
from analyses.experiment.options.study import NiahConfig
from hybridlens.errors import InputError
from hybridlens.results.settled import forget


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What each of Slurm's commands prints, and under "asked" the last one that was given."""
    printed: dict[str, str] = {}

    def run(words: Sequence[str], **given: Any) -> subprocess.CompletedProcess[str]:
        printed["asked"] = " ".join(words)
        return subprocess.CompletedProcess(words, 0, printed[words[0]], "")

    monkeypatch.setattr("subprocess.run", run)
    return printed


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
