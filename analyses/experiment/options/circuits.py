"""The options of the head circuits."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from analyses.experiment.options.base import MaybeNumbers, Memory, Options, Seed, one_of

METRICS = (
    "copying", "copying_share", "matching", "matching_share", "previous", "induction", "induction_match", "retrieval"
)  # fmt: skip

LEVELS = ("random", "writers")

Level = Annotated[str, one_of(LEVELS, "--level")]


class CircuitsConfig(Options):
    """Options of head circuits; a field with a description is one of the command's."""

    metric: Annotated[str | None, one_of(METRICS, "--metric")] = Field(
        None, description="Print every head by this score, such as copying; the best of each by default."
    )
    sample: int = Field(2048, ge=2, description="Tokens among which shares are taken, at least 2.")
    distances: MaybeNumbers = Field(
        None, description="From query to key, like 1,16,256, for matching under rotary embedding."
    )
    measure: bool | None = Field(
        None,
        description="Run the model on filler text for the linear paths and their error; by default only embedded "
        "models are run. Otherwise weights are read straight from the files, and no model is made.",
    )
    level: Level = Field(
        "random",
        description="What K-composition has to exceed for induction: random directions, or the mean over the head's "
        "earlier writers, which with --measure finds the induction heads of large models.",
    )
    memory: Memory = None
    seed: Seed = 0
