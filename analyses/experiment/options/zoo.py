"""The options of the zoo: which models, which of the experiments, how many at a time."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from analyses.experiment.options.base import Checked, MaybeWords, once, one_of

PARTS = ("study", "capacity", "crossover", "patch", "circuits", "states")
"""The experiments, by the folders that they are kept in; `analyses.study.zoo.parts` says what each is."""


class ZooConfig(Checked):
    """Options of the zoo; a field with a description is one of the command's."""

    models: Annotated[tuple[str, ...] | None, AfterValidator(once)] = Field(
        None,
        description="Embedded models, folders, or hub ids that were fetched before; every embedded one when left out.",
    )
    parts: Annotated[MaybeWords, one_of(PARTS, "--parts")] = Field(
        None, description=f"Experiments of each, with commas between: {', '.join(PARTS)}; all when left out."
    )
    jobs: int | None = Field(
        None, ge=1, le=1024, description="Experiments run side by side; one a processor core, or a GPU, when left out."
    )
