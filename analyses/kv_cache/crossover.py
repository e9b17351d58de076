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

from collections.abc import Callable, Iterator, Sequence

import torch

from analyses.kv_cache.crossover_results import CrossCell, Crossover
from analyses.kv_cache.decoding import generate_with
from analyses.kv_cache.mixes import Mix, check_mixes, mixes
from analyses.kv_cache.pairs import PromptPair
from analyses.kv_cache.telling import logprobs
from hybridlens.boundary import Positive, public
from hybridlens.errors import InputError
from hybridlens.hooks import Edit
from hybridlens.model import HybridLens
from hybridlens.state import HybridState

ROWS = 96
"""Rows of a batch."""


@public
def crossover(
    lens: HybridLens,
    pairs: Sequence[PromptPair],
    chosen: Sequence[Mix] | None = None,
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
    if not pairs:
        raise InputError("no pair of prompts given, expected at least one")
    cells: dict[tuple[str, int], CrossCell] = {}
    for numbers, states in _read(lens, pairs, edits, rows):
        for batch in _batches(wanted, len(numbers), rows):
            state = HybridState.cat([mix.of(*states) for mix in batch])
            last = [[pairs[i].a[-1]] for _ in batch for i in numbers]
            said = generate_with(lens, last, (), max_new_tokens, edits, state=state).text
            likely = logprobs(lens, state, [pairs[i] for _ in batch for i in numbers], edits)
            for place, (mix, i) in enumerate((mix, i) for mix in batch for i in numbers):
                logprob = float(likely.a[place]), float(likely.b[place])
                cells[mix.name, i] = _cell(lens, mix, pairs[i], said[place], logprob)
            if done is not None:
                done(len(cells))
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


def _read(
    lens: HybridLens, pairs: Sequence[PromptPair], edits: Sequence[Edit], rows: int
) -> Iterator[tuple[list[int], tuple[HybridState, HybridState]]]:
    """Pairs of about the same length, by number, and what was read of them."""
    order = sorted(range(len(pairs)), key=lambda i: pairs[i].length)
    for start in range(0, len(order), rows):
        numbers = order[start : start + rows]
        yield numbers, read_pairs(lens, [pairs[i] for i in numbers], edits)


def _batches(wanted: Sequence[Mix], each: int, rows: int) -> Iterator[Sequence[Mix]]:
    """As many mixes at once as fill a batch."""
    step = max(1, rows // each)
    for start in range(0, len(wanted), step):
        yield wanted[start : start + step]


def _cell(lens: HybridLens, mix: Mix, pair: PromptPair, text: str, logprob: tuple[float, float]) -> CrossCell:
    told, a, b = pair.tells(text)
    seen = pair.seen(lens.cfg.window) if lens.cfg.attention_layers else 0.0
    return CrossCell(mix.name, pair.name, pair.length, pair.depth, seen, told, a, b, *logprob, text)
