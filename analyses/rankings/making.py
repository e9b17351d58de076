"""The rankings that are compared: those made by running the model on calibration prompts, and those from weights.

With a folder each is kept there as it is made, so that a run that was killed goes on with the same orders.

How it fails: see `analyses.rankings.candidates` and `analyses.circuits`; a stored ranking that is damaged raises
`InputError` naming its file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from analyses import folders
from analyses.circuits import circuits
from analyses.ranking import HeadRanking
from analyses.rankings.candidates import RUNTIME, runtime_rankings
from analyses.rankings.config import RankingsConfig, calibration_prompts
from hybridlens.errors import UnknownNameError, closest
from hybridlens.model import HybridLens

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


def make_rankings(lens: HybridLens, config: RankingsConfig, folder: Path | None = None) -> dict[str, HeadRanking]:
    """The rankings that a comparison wants, by name.

    Args:
        lens: the model, with a tokenizer.
        config: the comparison's; the calibration prompts are its.
        folder: where they are kept; None for nowhere.

    Raises:
        UnknownNameError: one that is wanted does not exist.
        InputError: see the modules that make them.
        ResultsError: the folder cannot be written.
    """
    wanted = check_names(config)
    held = [] if folder is None else [name for name in wanted if _file(folder, name).exists()]
    stored = {} if folder is None else {name: HeadRanking.load(_file(folder, name)) for name in held}
    missing = [name for name in wanted if name not in stored]
    made: dict[str, HeadRanking] = dict(stored)
    if any(name in RUNTIME for name in missing):
        made |= runtime_rankings(lens, calibration_prompts(lens, config), config.seed) | stored
    if any(name in FROM_WEIGHTS for name in missing):
        found = circuits(lens, model=config.model, seed=config.seed)
        made |= {name: found.ranking(metric) for name, metric in FROM_WEIGHTS.items()} | stored
    if folder is not None and missing:
        folders.made(folder / "rankings")
        for name in missing:
            made[name].save(_file(folder, name))
    return {name: made[name] for name in wanted}


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


def _file(folder: Path, name: str) -> Path:
    return folder / "rankings" / f"{name.replace(' ', '-')}.json"
