"""Curves of training as an experiment: `curves.json`, made checkpoint by checkpoint.

Each checkpoint's numbers are kept in ``parts`` as soon as they are measured, and stay there: a run of training that has
gone on is gone on with, and a checkpoint that has been measured may be deleted, all but one of each run. The folder
knows every checkpoint by its weights: another run of training in the same work folder is refused.

How it fails: see `analyses.experiment`, and `runs` for work folders that are none. A checkpoint that is gone and whose
numbers are damaged is left out, with a remark that says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from analyses.experiment.checkpoints import open_model
from analyses.experiment.options.curves import CurvesConfig
from analyses.experiment.options.needles import arguments_of, identity_of
from analyses.experiment.parts import Part, stage
from analyses.experiment.running import Experiment, Progress
from analyses.study.training_curves.measuring import Prompts, make_prompts, measure
from analyses.study.training_curves.report import article_of, curves_table
from analyses.study.training_curves.results import Measured, RunCurves, TrainingCurves
from analyses.study.training_curves.runs import Training, read_training
from hybridlens.niah import MAX_SCORE
from hybridlens.progress import shown
from hybridlens.results import Folder, Manifest, hash_json
from hybridlens.viz.article import Article

FILE = "curves.json"

_OF = re.compile(r"(?P<run>.+) at step (?P<step>\d+)")


class CurvesRun(Experiment[CurvesConfig, TrainingCurves]):
    """What each kept checkpoint of one or more runs of training retrieves, from where, and what its weights say.

    Args:
        options: the runs and their prompts.
        device: as typed.
        dtype: as typed.

    Raises:
        InputError: see `runs.read_training` and `measuring.make_prompts`.
    """

    job = "curves"
    unit = "checkpoint"
    of_heads = False

    def __init__(self, options: CurvesConfig, device: str = "cpu", dtype: str = "auto") -> None:
        self.options = options
        self.commit = None
        self.weights_hash = ""
        self.device, self.dtype = device, dtype
        self.trainings = [read_training(run) for run in options.runs]
        self.prompts: dict[str, Prompts] = {}
        self.attention: dict[str, bool] = {}
        for training in self.trainings:
            lens = open_model(str(training.checkpoints[-1].folder), device, dtype)
            self.prompts[training.name] = make_prompts(lens, options)
            self.attention[training.name] = bool(lens.cfg.attention_layers)
        self.digests = {
            _name(training, one.step): one.digest for training in self.trainings for one in training.checkpoints
        }

    @classmethod
    def opened(cls, options: CurvesConfig, device: str, dtype: str) -> CurvesRun:
        """See `Experiment`; each checkpoint is loaded when its turn comes."""
        with shown():
            return cls(options, device, dtype)

    def manifest(self) -> Manifest:
        """Checkpoints may join later; the weights at a step, and the prompts of a run, stay."""
        options = self.options
        arguments = {
            **arguments_of(options),
            "lengths": None if options.lengths is None else list(options.lengths),
            "depths": list(options.depths),
            "needles": [identity_of(needle) for needle in options.hidden],
            "dtype": self.dtype,
        }
        return Manifest(
            model=options.model,
            arguments=arguments,
            seed=options.seed,
            max_score=MAX_SCORE,
            config_hash="of each checkpoint, with its weights",
            weights_hash="of each checkpoint, below",
            job=self.job,
            command=options.command,
            settings={"batch_size": options.batch_size, "memory": options.memory, "device": self.device},
            facts={training.name: training.summary() for training in self.trainings},
            growing={**{f"prompts of {name}": made.hash for name, made in self.prompts.items()}, **self.digests},
        )

    def run(self, folder: Folder, progress: Progress) -> TrainingCurves:
        """See `Experiment`."""
        steps = {training.name: self._steps(folder, training) for training in self.trainings}
        total, done = sum(map(len, steps.values())), 0
        progress(0, total)
        runs: list[RunCurves] = []
        for training in self.trainings:
            found: list[Measured] = []
            for step in steps[training.name]:
                one = self._measured(folder, training, step)
                found += [] if one is None else [one]
                done += 1
                progress(done, total)
            runs.append(self._run(training, found))
        result = TrainingCurves(tuple(runs))
        folder.keep(FILE, hash_json([list(row) for row in result.table().rows]), result)
        return result

    def parts(self, folder: Folder, wave: int) -> Sequence[Part]:
        """See `Experiment`: each checkpoint that is there."""
        return [
            stage(_name(training, one.step), partial(self._measured, folder, training, one.step))
            for training in self.trainings
            for one in training.checkpoints
        ]

    def _run(self, training: Training, found: Sequence[Measured]) -> RunCurves:
        """The curves of a run."""
        name = training.name
        return RunCurves(
            name, training.architecture, training.seed, training.steps, self.attention[name],
            self.prompts[name].lengths, tuple(found),
        )  # fmt: skip

    def _steps(self, folder: Folder, training: Training) -> list[int]:
        """The steps that are there, and those whose numbers an earlier session has left."""
        there = {one.step for one in training.checkpoints}
        named = (_OF.fullmatch(name) for name in folder.record.get("growing") or ())
        return sorted(there | {int(match["step"]) for match in named if match and match["run"] == training.name})

    def _measured(self, folder: Folder, training: Training, step: int) -> Measured | None:
        """One checkpoint's numbers: stored, or measured now; None where it is gone and nothing of it is left."""
        name = _name(training, step)
        file = f"parts/{training.name}/step-{step:05d}.json"
        growing: Mapping[str, Any] = folder.record.get("growing") or {}
        depends = [self.digests.get(name) or growing[name], self.prompts[training.name].hash]
        place = next((one.folder for one in training.checkpoints if one.step == step), None)
        if place is None:
            found = folder.stored(file, depends, Measured.load)
            if found is None:
                folder.remark(f"{name}: the checkpoint is gone, and its numbers with it; it is left out.")
            return found

        def made() -> Measured:
            lens = open_model(str(place), self.device, self.dtype)
            return measure(lens, self.prompts[training.name], self.options, training, step)

        return folder.take(file, depends, Measured.load, made)

    def page(self, result: TrainingCurves, record: Mapping[str, Any]) -> Article:
        """See `Experiment`."""
        return article_of(result, record)

    def table(self, result: TrainingCurves) -> Iterable[str]:
        """See `Experiment`."""
        return curves_table(result)


def _name(training: Training, step: int) -> str:
    """How the record of a folder names a checkpoint."""
    return f"{training.name} at step {step}"
