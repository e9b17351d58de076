"""The options of patching."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from analyses.experiment.options.base import MaybeWords, Seed, alone, one_of, typed
from analyses.experiment.options.needles import FILLER, Filler, NeedleOptions, named_needle
from analyses.experiment.options.prompts import OwnPair, read_pair
from hybridlens import niah
from hybridlens.errors import InputError

PAIRS = ("needle", "none", "moved")
METRICS = ("logit-difference", "log-probability", "rank", "kl", "score")


class PatchConfig(NeedleOptions):
    """Options of patching between one pair of prompts; a field with a description is one of the command's."""

    pair: Annotated[str, one_of(PAIRS, "--pair")] = Field(
        "needle", description="In the corrupt prompt: needle (another one), none, or moved (elsewhere)."
    )
    twin: str | None = Field(
        None, description="What the corrupt prompt has in the needle's place: a needle's name, or a sentence."
    )
    haystack: Filler = Field(None, description=FILLER)
    prompts: Annotated[OwnPair | None, typed(read_pair)] = Field(
        None, description="JSON file with a clean and a corrupt prompt of your own (FILE.json:NAME for one of several)."
    )
    sweeps: MaybeWords = Field(
        None, description="Names with commas, like v_by_position,state (docs/states.md lists them), or all."
    )
    metric: Annotated[str, one_of(METRICS, "--metric")] = Field(
        METRICS[0], description="logit-difference, log-probability, rank, kl or score."
    )
    direction: Annotated[str, one_of(("denoise", "noise"))] = Field(
        "denoise",
        description="denoise: clean values into the corrupt run; noise: corrupt ones into the clean run.",
    )
    length: int | None = Field(
        None, ge=1, le=10**7, description="Tokens of the prompts; the shortest of the benchmark by default."
    )
    depth: int = Field(50, ge=0, le=100, description="Needle depth in percent, 0 the start.")
    attribution: bool = Field(True, description="Estimate sweeps and direct paths by gradients too.")
    batch_size: int = Field(32, ge=1, description="Patches in one forward pass, at most.")
    seed: Seed = 0

    @property
    def other(self) -> niah.Needle | None:
        """The corrupt prompt's needle, where one was asked for; a sentence answers the clean one's question."""
        if self.twin is None:
            return None
        twin = named_needle(self.twin)
        if twin is None:
            return niah.Needle("twin", self.twin, self.hidden.question, niah.full_match_rubric(self.twin))
        return twin

    @model_validator(mode="after")
    def _one_kind_of_pair(self) -> PatchConfig:
        _ = self.other
        if self.twin is not None and self.pair != "needle":
            raise InputError(
                f"--twin and --pair {self.pair} given; a twin is the corrupt prompt's needle, give one of them"
            )
        alone(self, "prompts", ("needle", "twin", "pair", "length", "depth", "haystack"))
        return self
