"""The options of what states say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from analyses.experiment.options.base import MaybeNumbers, Seed, alone, one_of
from analyses.experiment.options.needles import FILLER, Depths, Filler, NeedleOptions

METRICS = ("logit-difference", "kl")


class StatesConfig(NeedleOptions):
    """Options of what states say; a field with a description is one of the command's."""

    texts: Path | None = Field(
        None, description="A text file, or a JSON list of texts, to measure instead of needle prompts."
    )
    haystack: Filler = Field(None, description=FILLER)
    length: int | None = Field(
        None, ge=1, le=10**7, description="Tokens of the prompts; the shortest of the benchmark by default."
    )
    depths: Depths = Field((10, 50, 90), description="Needle depths in percent, 0 the start.")
    layers: MaybeNumbers = Field(None, description="Recurrent layers, like 0,2 or 0..3; all when left out.")
    first: int = Field(4, ge=1, le=10**6, description="Tokens at the start that may be a sink.")
    knockouts: bool = Field(True, description="Silence the heads that hold most of the needle, and random ones.")
    metric: Annotated[str | None, one_of(METRICS, "--metric")] = Field(
        None,
        description="Of knockouts: logit-difference or kl; by default the first, where answers differ with the needle.",
    )
    controls: int = Field(20, ge=1, le=10_000, description="Random sets of heads.")
    probes: bool = Field(True, description="Read which needle it was from the states, by linear probes.")
    haystacks: int = Field(24, ge=5, le=10_000, description="Of the probes: essays, with either needle in each.")
    shuffles: int = Field(20, ge=1, le=10_000, description="Of the probes: times that labels are shuffled.")
    seed: Seed = 0

    @model_validator(mode="after")
    def _of_one_kind(self) -> StatesConfig:
        alone(self, "texts", ("needle", "length", "depths", "haystack"))
        return self
