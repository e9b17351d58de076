"""The options of curves measured over the checkpoints of training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from analyses.experiment.options.base import MaybeNumbers, once
from analyses.experiment.options.needles import Depths, Needles, PromptOptions
from hybridlens import niah
from hybridlens.errors import InputError

NEEDLES = ("paper", "oslo", "secret-word", "mayor", "violin", "code")
"""By default: three forms of answer, twice each."""

MOST_RUNS = 6
"""Curves beside each other, at most: as many as there are colours."""


class CurvesConfig(PromptOptions):
    """Options of curves of training; a field with a description is one of the command's.

    The model is named by the runs: what results call it need not be given.
    """

    model: str = ""
    revision: str | None = None
    runs: Annotated[tuple[str, ...], AfterValidator(once)] = Field(
        (),
        description=f"Folders of trainings, one to {MOST_RUNS}: seeds and architectures are shown beside each other.",
    )
    lengths: MaybeNumbers = Field(
        None, description="Prompt lengths in tokens; the shortest and the longest that fit when left out."
    )
    depths: Depths = Field((0, 30, 60, 90), description="Needle depths in percent, 0 the start.")
    needles: Needles = Field(None, description="A JSON file, or built-in names like oslo,code; six of them by default.")

    @model_validator(mode="before")
    @classmethod
    def _named_by_the_runs(cls, given: Any) -> Any:
        runs = given.get("runs") or ()
        if not runs:
            raise InputError("no run is named; give the work folder of python -m hybridlens.tiny.train --keep-every N")
        if len(runs) > MOST_RUNS:
            raise InputError(f"{len(runs)} runs are named, expected at most {MOST_RUNS} beside each other")
        names = [run_name(run) for run in runs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"two runs are named {twice}, and results could not tell them apart; rename a folder")
        return {**given, "model": given.get("model") or " + ".join(names)}

    @property
    def hidden(self) -> tuple[niah.Needle, ...]:
        """The needles of the prompts."""
        return tuple(niah.NEEDLES[name] for name in NEEDLES) if self.needles is None else self.needles


def run_name(folder: str) -> str:
    """What results call the run of a work folder: the folder's own name."""
    return Path(folder).resolve().name
