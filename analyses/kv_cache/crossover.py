"""Crossover: with the keys and values of one prompt and the recurrent state of another, which needle does a model tell?

Two prompts that differ in the needle alone are read up to their last token, which is left out. Memories of one are put
in place of the other's (`mixes`), the last token, the same in both, is read under the mixed state, and the model
answers. Where the needle is held in keys and values, the answer follows these; where in a recurrent state, that.

Each prompt is read twice, once with either needle, whatever the number of mixes; mixed states are many rows of a batch.

How it fails: a mixed state is one that no text leads to. An answer that tells neither needle may say that memory is
needed of both kinds, or that the model is lost; look at the text of the cells. Prompts are read under `edits` of phase
"prefill" and answered under those of phase "decode", which are the same for all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from annotated_types import MinLen

from analyses.kv_cache.crossover_results import CrossCell, Crossover
from analyses.kv_cache.decoding import generate_with
from analyses.kv_cache.mixes import Mix, check_mixes, mixes
from analyses.kv_cache.pairs import PromptPair
from analyses.kv_cache.telling import logprobs
from hybridlens.boundary import Positive, public
from hybridlens.hooks import Edit
from hybridlens.model import HybridLens
from hybridlens.progress import counted
from hybridlens.state import HybridState

ROWS = 96
"""Rows of a batch."""


@public
def crossover(
    lens: HybridLens,
    pairs: Annotated[Sequence[PromptPair], MinLen(1)],
    chosen: Annotated[Sequence[Mix], MinLen(1)] | None = None,
    *,
    max_new_tokens: Positive = 40,
    edits: Sequence[Edit] = (),
    rows: Positive = ROWS,
    done: Callable[[int], None] | None = None,
) -> Crossover:
    """What the model answers from every mix of every pair of prompts.

    Args:
        lens: the model.
        pairs: such as `prompt_pairs` makes.
        chosen: which mixes; by default the ready ones of the model (`mixes`).
        max_new_tokens: of each answer.
        edits: of hook points, in their phases.
        rows: of a batch, in reading and in answering.
        done: called with the number of cells after each batch.

    Raises:
        InputError: no pairs, mixes that do not fit, or prompts that do not fit the model's context.
    """
    wanted = mixes(lens.cfg) if chosen is None else list(chosen)
    check_mixes(wanted, lens.cfg)
    window = lens.cfg.window if lens.cfg.attention_layers else 0  # without attention no token is seen again
    order = sorted(range(len(pairs)), key=lambda i: pairs[i].length)  # a batch has about one length
    cells: dict[tuple[str, int], CrossCell] = {}
    with counted(len(wanted) * len(pairs), "answers", None if done is None else lambda _: done(len(cells))) as more:
        for start in range(0, len(order), rows):
            numbers = order[start : start + rows]
            states = read_pairs(lens, [pairs[i] for i in numbers], edits)
            at_once = max(1, rows // len(numbers))
            for first in range(0, len(wanted), at_once):
                batch = wanted[first : first + at_once]
                places = [(mix.name, i) for mix in batch for i in numbers]
                asked = [pairs[i] for _, i in places]
                state = HybridState.cat([mix.of(*states) for mix in batch])
                said = generate_with(
                    lens, [[pair.a[-1]] for pair in asked], (), max_new_tokens, edits, state=state
                ).text
                likely = logprobs(lens, state, asked, edits)
                for (mix, i), text, a, b in zip(places, said, likely.a.tolist(), likely.b.tolist(), strict=True):
                    pair, told = pairs[i], pairs[i].tells(text)
                    seen = pair.seen(window)
                    cells[mix, i] = CrossCell(mix, pair.name, pair.length, pair.depth, seen, *told, a, b, text)
                more(len(places))
    ordered = tuple(cells[mix.name, i] for mix in wanted for i in range(len(pairs)))
    return Crossover(lens.network.signature, tuple(wanted), ordered, max_new_tokens)


def read_pairs(
    lens: HybridLens, pairs: Sequence[PromptPair], edits: Sequence[Edit] = ()
) -> tuple[HybridState, HybridState]:
    """What all prompts A and all prompts B leave behind, their last tokens not read; a row for each pair."""
    with torch.no_grad():
        states = [
            lens.prefill([prompt[:-1] for prompt in side], edits, last_only=True).state
            for side in ([pair.a for pair in pairs], [pair.b for pair in pairs])
        ]
    return states[0], states[1]
