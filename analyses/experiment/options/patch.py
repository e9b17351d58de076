"""The options of patching."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from analyses.experiment.options.base import MaybeWords, Options, Seed, one_of

PAIRS = ("needle", "none", "moved")
METRICS = ("logit-difference", "log-probability", "rank", "kl", "score")


class PatchConfig(Options):
    """Options of patching between one pair of prompts; a field with a description is one of the command's."""

    pair: Annotated[str, one_of(PAIRS, "--pair")] = Field(
        "needle", description="In the corrupt prompt: needle (another one), none, or moved (elsewhere)."
    )
    needle: str = Field("paper", description="A built-in needle, of the clean prompt.")
    sweeps: MaybeWords = Field(
        None, description="Names with commas, like v_by_position,state (the README lists them), or all."
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
