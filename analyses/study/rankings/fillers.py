"""The prompts of later looks: copies of the grid, every prompt with a filler of its own.

A copy has the needles, lengths and depths of the grid. Its prompts are drawn one by one, each from its own seed, so
that they are independent of each other and of how many there are: from the built-in essays another text for every
prompt, less the sentences of the calibration; from a user's haystack a stretch that starts anywhere in it. In results
a copy's needles have names of their own, "paper, filler 2" being that of the second.

How it fails: as `hybridlens.niah.grid`. Of a short haystack stretches are alike, and intervals are about that haystack.
"""

from __future__ import annotations

import random
from collections.abc import Container

from analyses.experiment.options.rankings import COPY, RankingsConfig
from analyses.study.prompts import prompts_of
from analyses.study.rankings.calibration import calibration_haystack, judging_prompts, prompt_lengths
from hybridlens import niah
from hybridlens.model import HybridLens

SPARE = 200
"""Sentences of a filler beside one for each token of the prompt: what the builder may choose among."""


def named(needle: str, copy: int) -> str:
    """What results call a needle in a copy of the grid; 0 is the grid itself."""
    return f"{needle}{COPY}{copy + 1}" if copy else needle


def copied_prompts(lens: HybridLens, config: RankingsConfig, copy: int) -> dict[str, list[niah.Prompt]]:
    """The prompts of one copy of the grid by the needle's name in it; those of `judging_prompts` for copy 0.

    Raises:
        InputError: see `analyses.study.prompts`.
    """
    if copy == 0:
        return judging_prompts(lens, config)
    lengths, taken = prompt_lengths(lens, config), frozenset(calibration_haystack(config).sentences)
    found: dict[str, list[niah.Prompt]] = {}
    for needle in config.hidden:
        prompts: list[niah.Prompt] = []
        for length in lengths:
            for depth in config.depths:
                draw = random.Random(f"filler {config.seed} {copy} {needle.name} {length} {depth}")
                haystack = _drawn(config, draw, length + SPARE, taken)
                prompts += prompts_of(lens, config, needle, lengths=(length,), depths=(depth,), haystack=haystack)
        found[named(needle.name, copy)] = prompts
    return found


def _drawn(config: RankingsConfig, draw: random.Random, sentences: int, taken: Container[str]) -> niah.Haystack:
    """A text to fill one prompt with."""
    if config.haystack is None:
        whole = niah.essays(draw.randrange(2**31), sentences)
        return niah.Haystack(whole.name, " ".join(one for one in whole.sentences if one not in taken))
    given = config.haystack.sentences
    start = draw.randrange(len(given))
    chosen = (*given[start:], *given[:start])[:sentences]
    return niah.Haystack(f"{config.haystack.name}, from sentence {start}", " ".join(chosen))
