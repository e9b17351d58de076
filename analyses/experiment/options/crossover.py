"""The options of the crossover."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from analyses.experiment.options.base import MaybeNumbers, Numbers, Options, Seed, alone, once, typed
from analyses.experiment.options.needles import FILLER, Filler, read_needles
from analyses.experiment.options.prompts import OwnPair, read_pairs
from hybridlens import niah


class CrossoverConfig(Options):
    """Options of a crossover; a field with a description is one of the command's."""

    lengths: MaybeNumbers = Field(
        None, description="Prompt lengths in tokens; by default a short one and one beyond the window, if there is."
    )
    depths: Numbers = Field((0, 10, 50), description="Needle depths in percent, 0 the start.")
    needles: Annotated[
        tuple[niah.Needle, ...] | None, typed(lambda text: None if text == "all" else read_needles(text)),
        AfterValidator(once),
    ] = Field(
        None,
        description="Built-in names like paper,oslo, which have twins; a JSON file, where needles of one question are "
        "twins; or all built-in ones that fit, the default.",
    )  # fmt: skip
    haystack: Filler = Field(None, description=FILLER)
    prompts: Annotated[tuple[OwnPair, ...] | None, typed(read_pairs)] = Field(
        None, description="JSON file with prompt pairs of your own and their answers, instead of needle prompts."
    )
    max_new_tokens: int = Field(40, ge=1, le=100_000, description="Longest answer, in tokens.")
    block: int | None = Field(None, ge=1, description="Positions at a time of the maps; about 32 places by default.")
    rows: int = Field(96, ge=1, description="Rows that answer together; changes no result.")
    seed: Seed = 0

    @model_validator(mode="after")
    def _of_one_kind(self) -> CrossoverConfig:
        alone(self, "prompts", ("needles", "lengths", "depths", "haystack"))
        return self
