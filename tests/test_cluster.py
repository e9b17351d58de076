"""Work shared among jobs: the shares are a division, results are those of one process, and whatever ends a job is met.

The jobs of these tests run in this process, but for one that is a process of submitit's. `tests/cluster/trial.py` does
the same on a real Slurm, where jobs are killed.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_lens import benchmark_lens

from analyses.circuits.experiment import CircuitsRun
from analyses.cli import main
from analyses.experiment.artefacts import Values
from analyses.experiment.cluster import submitting
from analyses.experiment.cluster.jobs import Jobs, LocalJobs
from analyses.experiment.cluster.plan import Report, place_of, read_plan, write_report
from analyses.experiment.cluster.shards import Shard, Task
from analyses.experiment.cluster.status import results_digest, status_lines
from analyses.experiment.cluster.submitting import Left, submit
from analyses.experiment.options.base import Options
from analyses.experiment.options.circuits import CircuitsConfig
from analyses.experiment.options.cluster import ClusterConfig, without_cluster
from analyses.experiment.options.crossover import CrossoverConfig
from analyses.experiment.options.patch import PatchConfig
from analyses.experiment.options.prompts import OwnPair
from analyses.experiment.options.rankings import RankingsConfig
from analyses.experiment.options.states import StatesConfig
from analyses.experiment.options.study import NiahConfig, StudyConfig
from analyses.experiment.parts import Part, share, stage
from analyses.experiment.running import Experiment, conduct
from analyses.heads import answering
from analyses.heads.portions import Work, portions
from analyses.kv_cache.experiment import CrossoverRun
from analyses.patching.experiment import PatchRun
from analyses.states.experiment import StatesRun
from analyses.study.niah import NiahRun
from analyses.study.rankings.sweep import RankingsRun
from analyses.study.running import StudyRun
from hybridlens import niah
from hybridlens.decoding import BOUNDARIES, Boundary
from hybridlens.engine import Job
from hybridlens.errors import HybridLensError, InputError, ResultsError
from hybridlens.results import Folder, Manifest
from hybridlens.viz.article import Article

PROMPTS: dict[str, Any] = {"lengths": (110,), "depths": (0, 100), "max_new_tokens": 3, "batch_size": 2}
NIAH = NiahConfig(model="random", heads=(0, 4), control=False, **PROMPTS)
STUDY = StudyConfig(model="random", experiments=("fig2", "scope"), heads=(1,), control=False, **PROMPTS)
RANKINGS = RankingsConfig(
    model="random", rankings=("copying",), counts=(0, 4, 8), draws=1, needles=(niah.PAPER_NEEDLE,), run_time=False,
    filler_rows=0, tasks=(), **PROMPTS,
)  # fmt: skip
PATCH = PatchConfig(model="random", sweeps=("attn_out", "ssm_out"), length=110, attribution=False)
CROSSOVER = CrossoverConfig(
    model="random", prompts=(OwnPair("one", "the first of the words", "the last of the words", (" a", " b")),),
    max_new_tokens=2,
)  # fmt: skip
CIRCUITS = CircuitsConfig(model="random", sample=10)
STATES = StatesConfig(model="random", length=110, depths=(50,), knockouts=False, probes=False)


class NumbersConfig(Options):
    n: int = 4


class Numbers(Experiment[NumbersConfig, int]):
    """The sum of some squares, each in a file of its own, and no model."""

    job = "numbers"
    unit = "square"
    opened_times = 0

    def __init__(self, options: NumbersConfig) -> None:
        self.options = options

    @classmethod
    def opened(cls, options: NumbersConfig, device: str, dtype: str) -> "Numbers":
        Numbers.opened_times += 1
        return cls(options)

    def manifest(self) -> Manifest:
        options = self.options
        return Manifest(
            model=options.model, arguments={"n": options.n}, seed=0, max_score=0, config_hash="", weights_hash="",
            job=self.job, command=options.command,
        )  # fmt: skip

    def square(self, folder: Folder, i: int) -> int:
        return folder.take(f"squares/{i}.json", i, Values.load, lambda: Values(i * i)).value

    def parts(self, folder: Folder, wave: int) -> list[Part]:
        return [stage(f"square {i}", partial(self.square, folder, i)) for i in range(self.options.n)]

    def run(self, folder: Folder, progress: Any) -> int:
        return sum(self.square(folder, i) for i in range(self.options.n))

    def page(self, result: int, record: Mapping[str, Any]) -> Article:
        return Article("numbers", "Numbers", (), (str(result),), (), ())

    def table(self, result: int) -> list[str]:
        return [f"sum {result}"]


NUMBERS = NumbersConfig(model="none")


def shard(folder: Path, wave: int, number: int, shards: int) -> Shard:
    kind = f"{__name__}:Numbers"
    return Shard(kind, NUMBERS, "cpu", "float32", folder, shards, wave, "token", shard=number)


def report_of(task: Task) -> Report:
    return Report(token=task.token, wave=task.wave, began=time.time(), told=0.0)


def work(experiment: Experiment[Any, Any], folder: Path, wave: int, number: int, shards: int) -> Report:
    """What a shard's job does when its model is loaded."""
    task = shard(folder, wave, number, shards)
    place_of(folder, task.name).mkdir(parents=True, exist_ok=True)
    report = report_of(task)
    task.work(experiment, report)
    return report


def results(experiment: Experiment[Any, Any], path: Path, shards: Sequence[Path] = ()) -> str:
    """The digest of what an experiment finds, without a report."""
    with Folder.open(path, experiment.manifest(), experiment.expected()) as folder:
        for one in shards:
            folder.adopt(one)
        experiment.run(folder, lambda done, total: None)
        assert not folder.damaged
        folder.finish()
    return results_digest(path)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 9))
def test_shares_are_a_division(sizes: list[int], shards: int) -> None:
    """Every part is in one share, in its order, and no share has more than the mean and one part."""
    parts = [Part(str(i), 1, size, lambda tell: None) for i, size in enumerate(sizes)]
    shares = [share(parts, k, shards) for k in range(shards)]
    assert sorted(int(part.name) for one in shares for part in one) == list(range(len(parts)))
    for one in shares:
        assert one == sorted(one, key=lambda part: int(part.name))
        assert sum(part.size for part in one) <= sum(sizes) / shards + max(sizes, default=0)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.sampled_from(BOUNDARIES)), max_size=60, unique=True),
    st.integers(1, 12),
)
def test_portions_are_whole_families(kinds: list[tuple[int, int, Boundary]], rows: int) -> None:
    """Each answer is in one portion, of one boundary; what is read under one treatment is parted only where wide."""
    made_of = [
        Work(Job((0,) * length, treatment, answering, ()), boundary, ())
        for treatment, length, boundary in kinds
        for answering in range(3)
    ]
    made = portions(made_of, rows)
    assert sorted(map(id, made_of)) == sorted(id(piece) for portion in made for piece in portion)
    for portion in made:
        assert len({piece.boundary for piece in portion}) == 1
    for family in {(piece.boundary, piece.job.reading) for piece in made_of}:
        of = [piece for piece in made_of if (piece.boundary, piece.job.reading) == family]
        holding = [portion for portion in made if any(piece in of for piece in portion)]
        assert len(holding) == 1 or (len(of) > 2 * rows and len(holding) <= len({len(p.job.tokens) for p in of}))
    for one, after in pairwise(made):
        assert one[0].boundary != after[0].boundary or len(one) + len(after) > rows


EXPERIMENTS = {
    "niah": (NiahRun, NIAH),
    "study": (StudyRun, STUDY),
    "rankings": (RankingsRun, RANKINGS),
    "patch": (PatchRun, PATCH),
    "crossover": (CrossoverRun, CROSSOVER),
    "circuits": (CircuitsRun, CIRCUITS),
    "states": (StatesRun, STATES),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_shards_find_what_one_process_finds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shards, the last first: cells and artefacts equal to the last bit, and the last job answers nothing.

    Margins are stored to a ten thousandth, texts come from a random model: other batches would show in them.
    """
    kind: Any
    kind, options = EXPERIMENTS[name]
    experiment = kind(benchmark_lens("jamba"), options)
    one, many = results(experiment, tmp_path / "one"), tmp_path / "many"
    totals = [
        [work(experiment, many, wave, number, 3).total for number in (2, 1, 0)] for wave in range(experiment.waves)
    ]
    assert all(any(wave) for wave in totals)
    assert any(sum(total > 0 for total in wave) > 1 for wave in totals)

    def refused(*args: Any) -> Any:
        raise AssertionError("the last job answers nothing")

    monkeypatch.setattr(answering, "answer_cells", refused)
    assert results(experiment, many, [place_of(many, str(number)) for number in range(3)]) == one


def test_a_killed_shard_answers_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the midst of its second portion: the first is kept, the second answered whole again, bit for bit."""
    experiment = NiahRun(benchmark_lens("jamba"), NIAH)
    one = results(experiment, tmp_path / "one")
    many, real, calls = tmp_path / "many", answering._cell, 0

    def killed(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(answering, "_cell", killed)
    with pytest.raises(KeyboardInterrupt):
        work(experiment, many, 0, 0, 1)
    kept = (place_of(many, "0") / "cells.jsonl").read_bytes()
    assert 0 < kept.count(b"\n") < 7
    work(experiment, many, 0, 0, 1)
    assert (place_of(many, "0") / "cells.jsonl").read_bytes().startswith(kept)
    assert results(experiment, many, [place_of(many, "0")]) == one


class Here(Jobs):
    """Jobs that run in this process when they are submitted; some are killed, others fail.

    Attributes:
        killed: shard -> how many of its jobs end before they begin.
        failing: shards whose jobs raise.
    """

    wait = 0.0

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
    submit(f"{__name__}:Numbers", options, folder, "cpu", "float32", config, lines.append)
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
        ResultsError, match=r"1 of 2 jobs failed \(ended without a word: cancelled, killed or lost\); see"
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
    with pytest.raises(ResultsError, match="1 of 2 jobs failed"):
        give(tmp_path)
    give(tmp_path)
    assert here.submitted == ["0", "1", "0", "merge"]


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
        InputError, match=r"no part of shard 0 was done in 0\.97 hours; give more --time, or smaller parts"
    ):
        task.checkpoint()
    task.made = 1
    assert task.checkpoint().function is task
    task.made, task.began = 0, time.time() - 60
    assert task.checkpoint().function is task


def test_a_process_of_submitits(tmp_path: Path) -> None:
    """A call is carried to a process of its own, seen while it runs, and gone afterwards."""
    jobs = LocalJobs(ClusterConfig(cluster="local", jobs=1), tmp_path, "test", "cpu")
    task: Any = partial(Path.touch, tmp_path / "made")
    (name,) = jobs.submit([task])
    end = time.monotonic() + 120
    seen = False
    while jobs.alive([name]) and time.monotonic() < end:
        seen = True
        time.sleep(0.05)
    assert seen
    assert (tmp_path / "made").exists()
    assert jobs.alive([name, "1"]) == {}


def test_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with them is one line, before anything is written."""
    command = ["niah", "--model", "tiny-jamba", "--out", str(tmp_path / "out")]
    for words, line in (
        (["--jobs", "3"], "--jobs given without --cluster; give --cluster slurm or local"),
        (["--cluster", "slurmm"], "--cluster 'slurmm' does not exist"),
        (["--cluster", "local", "--jobs", "0"], "--jobs 0 given, expected greater than or equal to 1"),
        (["--cluster", "local", "--mem", "much"], "--memory 'much' given, expected a size such as 2GB"),
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
