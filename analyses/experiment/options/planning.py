"""The options of a plan: those of a study, the machine, and among how many jobs it is shared.

How it fails: see `analyses.experiment.options.base`.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from analyses.experiment.options.base import MaybeWords
from analyses.experiment.options.study import BENCHMARKS, StudyConfig
from hybridlens.errors import InputError


class PlanConfig(StudyConfig):
    """Options of a plan."""

    experiments: tuple[str, ...] | None = None
    """Those of `experiment`."""
    experiment: MaybeWords = Field(
        None, description="fig2, fig3-jrt, table1, maps, needles, scope, boundary, semantics, several, or all."
    )
    gpu: str = Field("80gb", description="80gb, a100-80gb, h100, h200, or cpu for one core.")
    jobs: int | None = Field(None, ge=1, le=1000, description="Jobs that share the work, as reproduce --jobs has it.")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """The experiments, as a study takes them."""
        names = given.get("experiment")
        if names is None:
            return given
        names = tuple(part.strip() for part in names.split(",")) if isinstance(names, str) else tuple(names)
        if "all" in names and len(names) > 1:
            raise InputError(f"--experiment {','.join(names)} given; all stands for every experiment, name it alone")
        if BENCHMARKS in names:
            raise InputError(
                f"--experiment {BENCHMARKS} given, whose documents lm-eval fetches; a plan has cells alone"
            )
        return {**given, "experiment": names, "experiments": None if "all" in names else names}
