"""The options of the crossover."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from analyses.experiment.options.base import MaybeNumbers, MaybeWords, Numbers, Options, Seed, typed


class CrossoverConfig(Options):
    """Options of a crossover; a field with a description is one of the command's."""

    lengths: MaybeNumbers = Field(
        None, description="Prompt lengths in tokens; by default a short one and one beyond the window, if there is."
    )
    depths: Numbers = Field((0, 10, 50), description="Needle depths in percent, 0 the start.")
    pairs: Annotated[MaybeWords, typed(lambda text: None if text == "all" else text)] = Field(
        None, description="Built-in needles whose twins are needle B, like paper,oslo; or all that fit, the default."
    )
    max_new_tokens: int = Field(40, ge=1, le=100_000, description="Longest answer, in tokens.")
    block: int | None = Field(None, ge=1, description="Positions at a time of the maps; about 32 places by default.")
    rows: int = Field(96, ge=1, description="Rows that answer together; changes no result.")
    seed: Seed = 0
