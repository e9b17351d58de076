"""Which experiments the zoo runs of every model, each a row: its command, its options, and what is read of it.

A part is an ordinary run of an ordinary command, in a folder of its own; an option whose default is not the same for
all models is given, so that numbers of one name are measured alike. How it fails: what a model rules out by its
sizes (patching of attention where there is none) is known before anything is run, as the experiment's own refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from analyses.experiment.options.base import Options, flag
from analyses.experiment.options.benchmarks import LOCAL_TASKS
from analyses.experiment.options.capacity import CapacityConfig
from analyses.experiment.options.circuits import CircuitsConfig
from analyses.experiment.options.crossover import CrossoverConfig
from analyses.experiment.options.patch import PatchConfig
from analyses.experiment.options.states import StatesConfig
from analyses.experiment.options.study import ReproduceConfig
from analyses.experiment.parts import loaded
from analyses.study.points import Point
from analyses.study.zoo import reading
from analyses.study.zoo.of_study import of_study
from hybridlens.config import LensConfig
from hybridlens.errors import InputError


class Part(NamedTuple):
    """One experiment.

    Attributes:
        name: of its folder.
        job: its command.
        experiment: its class, as "module:Class".
        options: of that class.
        given: option -> value; of all models the same.
        read: the numbers of a finished run, from its folder.
    """

    name: str
    job: str
    experiment: str
    options: type[Options]
    given: Mapping[str, Any]
    read: Callable[[Path], list[Point]]

    def words(self, model: str, out: Path, device: str, dtype: str) -> list[str]:
        """What stands after `hybridlens` on its command line."""
        named = {"model": model, **self.given, "out": out, "device": device, "dtype": dtype}
        typed = [word for name, value in named.items() for word in _typed(flag(name), value)]
        return [self.job, *(["all"] if self.job == "reproduce" else []), *typed]

    def refusal(self, model: str, cfg: LensConfig) -> str:
        """Why a model of these sizes has no such experiment; empty where it has."""
        options = self.options(model=model, **self.given)
        try:
            loaded(self.experiment).check(options, cfg)
        except InputError as error:
            return str(error)
        return ""


def _typed(option: str, value: object) -> list[str]:
    """An option with its value as one would type them."""
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    return [option, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]


PARTS: Mapping[str, Part] = {
    part.name: part
    for part in (
        Part("study", "reproduce", "analyses.study.running:StudyRun", ReproduceConfig,
             {"tasks": LOCAL_TASKS}, of_study),
        Part("capacity", "capacity",
             "analyses.study.capacity.experiment:CapacityRun", CapacityConfig,
             {"length": 256, "facts": (1, 2, 4, 8)}, reading.of_capacity),
        Part("crossover", "crossover", "analyses.kv_cache.experiment:CrossoverRun",
             CrossoverConfig, {}, reading.of_crossover),
        Part("patch", "patch", "analyses.patching.experiment:PatchRun", PatchConfig,
             {}, reading.of_patch),
        Part("circuits", "circuits", "analyses.circuits.experiment:CircuitsRun",
             CircuitsConfig, {"measure": True}, reading.of_circuits),
        Part("states", "states", "analyses.states.experiment:StatesRun",
             StatesConfig, {}, reading.of_states),
    )
}  # fmt: skip
"""By name, in the order of the report."""
