"""What tests of shared work need: a job without a cluster, a study without a model, and results without a report."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from analyses.experiment.artefacts import Values
from analyses.experiment.cluster.plan import Report, place_of
from analyses.experiment.cluster.shards import Shard, Task
from analyses.experiment.cluster.status import results_digest
from analyses.experiment.options.base import Options
from analyses.experiment.parts import Part, stage
from analyses.experiment.running import Experiment
from hybridlens.results import Folder, Manifest
from hybridlens.viz.article import Article


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
NUMBERS_CLASS = f"{__name__}:Numbers"


def shard(folder: Path, wave: int, number: int, shards: int) -> Shard:
    kind = NUMBERS_CLASS
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
