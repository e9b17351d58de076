"""The numbers of heads kept and the prompts that a comparison of rankings stands for.

How it fails: what depends on the model (counts above its heads, prompts beyond its context) raises `InputError`.
"""

from __future__ import annotations

from typing import Any

from analyses.experiment.options.rankings import RankingsConfig
from analyses.study.prompts import longest, prompts_of
from hybridlens import niah
from hybridlens.config import LensConfig
from hybridlens.display import many
from hybridlens.errors import InputError
from hybridlens.model import HybridLens

SEED_STEP = 1000
"""From the essay seed of the test prompts to that of the calibration prompts."""

EVERY_COUNT = 32
"""Models of up to so many attention heads are run at every number of heads kept."""


def counts_of(cfg: LensConfig, config: RankingsConfig) -> tuple[tuple[int, ...], str | None]:
    """The numbers of heads kept, ascending, none and all among them, and a note where these are not all there are.

    The ladder of larger models is 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, …: dense where retrieval is lost, so that areas
    under a curve rest on straight lines elsewhere.

    Raises:
        InputError: no attention layer, or a count above the heads there are.
    """
    cfg.need_attention("ranking heads")
    most = cfg.n_heads * (1 if config.scope == "layer" else len(cfg.attention_layers))
    where = "each layer" if config.scope == "layer" else "the model"
    if config.counts is not None:
        if max(config.counts) > most:
            raise InputError(f"--counts {max(config.counts)} given, expected 0..{most}, the heads of {where}")
        return tuple(sorted({0, *config.counts, most})), None
    if most <= EVERY_COUNT:
        return tuple(range(most + 1)), None
    steps = {0, 1, most} | {n << i for n in (2, 3) for i in range(most.bit_length())}
    counts = tuple(sorted(n for n in steps if n <= most))
    return counts, f"Of the {many(most, 'head')} of {where}, so many were kept in turn: {', '.join(map(str, counts))}."


def prompt_lengths(lens: HybridLens, config: RankingsConfig) -> tuple[int, ...]:
    """Tokens of the test prompts: those given, or the two shortest of the ten that a study has.

    Raises:
        InputError: a context too short.
    """
    if config.lengths is not None:
        return config.lengths
    how: dict[str, Any] = {"template": config.template, "haystack": config.haystack, "seed": config.seed}
    shortest = max(
        niah.shortest_length(lens.tokenizer, needle=needle, **how) for needle in (*config.hidden, *config.learned)
    )
    ten = niah.default_lengths(longest(lens, config), shortest)
    return (ten[0], ten[1])


def judging_prompts(lens: HybridLens, config: RankingsConfig) -> dict[str, list[niah.Prompt]]:
    """The prompts that judge, by the needle's name.

    Raises:
        InputError: see `analyses.study.prompts`.
    """
    lengths = prompt_lengths(lens, config)
    return {needle.name: prompts_of(lens, config, needle, lengths=lengths) for needle in config.hidden}


def calibration_prompts(lens: HybridLens, config: RankingsConfig) -> list[niah.Prompt]:
    """The prompts that rankings are made on: needles, essay seed and sentences that no test prompt has.

    Raises:
        InputError: see `analyses.study.prompts`.
    """
    calibration, haystack = config.calibration, calibration_haystack(config)
    lengths, depths = calibration.lengths or prompt_lengths(lens, config), calibration.depths
    return [
        prompt
        for needle in config.learned
        for prompt in prompts_of(lens, config, needle, lengths=lengths, depths=depths, haystack=haystack)
    ]


def calibration_haystack(config: RankingsConfig) -> niah.Haystack:
    """The built-in essays of another seed, less every sentence of the test's haystack."""
    tested = set((niah.essays(config.seed) if config.haystack is None else config.haystack).sentences)
    seed = config.calibration.seed
    whole = niah.essays(config.seed + SEED_STEP if seed is None else seed, 4000)
    return niah.Haystack(
        f"{whole.name}, calibration", " ".join(sentence for sentence in whole.sentences if sentence not in tested)
    )
