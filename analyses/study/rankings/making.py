"""The rankings that are compared: those made by running the model on calibration prompts, and those from weights.

Each is a stage, signed with the calibration prompts and the seed, so that a run that was killed goes on with the same
orders, and no order of another model, seed or prompt is taken for one of these.

How it fails: see `analyses.study.rankings.candidates` and `analyses.circuits`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from analyses.circuits import circuits
from analyses.experiment.options.rankings import RankingsConfig
from analyses.heads.ranking import HeadRanking
from analyses.study.rankings.candidates import RUNTIME, runtime_rankings
from hybridlens.errors import UnknownNameError, closest
from hybridlens.model import HybridLens
from hybridlens.niah import Prompt
from hybridlens.results import Folder

FROM_WEIGHTS: Mapping[str, str] = {
    "copying": "copying",
    "matching": "matching",
    "induction": "induction",
    "induction matching": "induction_match",
    "retrieval strength": "retrieval",
}
"""Name of a ranking -> metric of `HeadCircuits`."""

NAMES: tuple[str, ...] = (*RUNTIME, *FROM_WEIGHTS)
"""All rankings that are made here, in the order in which they are shown."""


def make_rankings(
    lens: HybridLens, config: RankingsConfig, prompts: Sequence[Prompt], folder: Folder
) -> dict[str, HeadRanking]:
    """The rankings that a comparison wants, by name.

    Args:
        lens: the model, with a tokenizer.
        config: the comparison's.
        prompts: the calibration prompts.
        folder: of the run.

    Raises:
        UnknownNameError: one that is wanted does not exist.
        InputError: see the modules that make them.
    """

    @cache
    def running() -> dict[str, HeadRanking]:
        return runtime_rankings(lens, prompts, config.seed)

    @cache
    def static() -> dict[str, HeadRanking]:
        found = circuits(lens, model=config.model, seed=config.seed)
        return {name: found.ranking(metric) for name, metric in FROM_WEIGHTS.items()}

    depends = [config.seed, [prompt.hash for prompt in prompts]]
    return {
        name: folder.take(
            f"rankings/{name.replace(' ', '-')}.json", [*depends, name], HeadRanking.load,
            lambda name=name: (running() if name in RUNTIME else static())[name],
        )
        for name in check_names(config)
    }  # fmt: skip


def check_names(config: RankingsConfig) -> tuple[str, ...]:
    """The rankings wanted, in the order in which they are shown.

    Raises:
        UnknownNameError: one does not exist.
    """
    for name in config.rankings or ():
        if name not in NAMES:
            raise UnknownNameError(
                f"ranking {name!r} does not exist{closest(name, NAMES)}; expected some of {', '.join(NAMES)}"
            )
    return NAMES if config.rankings is None else tuple(name for name in NAMES if name in config.rankings)
