"""The prompts that a ranking is measured on, checked, and where in each of them the needle is.

A ranking that asks what a head does for retrieval needs prompts with a needle in them, and a model with attention.
Both are checked before anything runs. `Needle` holds what is needed afterwards: the needle's positions over all
readings of the context, and its own words as tokens, taken from the prompt itself, so that no tokenizer is needed.

How it fails: controls, prompts of the authors' builder whose span leaves the prompt, and models without attention
raise `InputError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hybridlens.display import many
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.niah import Prompt


class Needle(NamedTuple):
    """The needle of one prompt."""

    positions: frozenset[int]
    """Where its tokens stand in the prompt, all readings of the context together."""
    tokens: tuple[int, ...]
    """Its token ids in order, as they stand in the last reading: the true answer."""


def needles_of(lens: HybridLens, prompts: Sequence[Prompt]) -> list[Needle]:
    """The needle of each prompt.

    Spans of the authors' builder, which are one too low, are put right here.

    Raises:
        InputError: no prompt; one without a needle, or whose needle lies outside of it; a model without attention.
    """
    lens.cfg.need_attention("ranking heads")
    if not prompts:
        raise InputError("no prompt given, expected at least one with a needle, such as those of niah.grid")
    needles: list[Needle] = []
    for index, prompt in enumerate(prompts):
        if prompt.control:
            raise InputError(
                f"prompt {index} ({prompt.length} tokens) has no needle, so no head can retrieve it; "
                "give prompts of niah.grid, not of niah.controls"
            )
        shift = 1 if prompt.semantics == "published" else 0
        spans = [(start + shift, end + shift) for start, end in prompt.needle_spans]
        for start, end in spans:
            if not 0 <= start < end < len(prompt.tokens):
                raise InputError(
                    f"prompt {index}: needle tokens {start}..{end} do not lie in a prompt of "
                    f"{len(prompt.tokens)} tokens with its question behind them"
                )
        start, end = spans[-1]
        positions = frozenset(at for first, last in spans for at in range(first, last))
        needles.append(Needle(positions, prompt.tokens[start:end]))
    return needles


def in_words(prompts: Sequence[Prompt]) -> str:
    """What the prompts are, for the source of a ranking: how many, and how long."""
    lengths = sorted({len(prompt.tokens) for prompt in prompts})
    size = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    return f"{many(len(prompts), 'needle prompt')} of {size} tokens"
