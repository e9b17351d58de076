"""Many conditions in one batch: every prompt is read once, and decoded under as many k as are asked for.

A condition is a prompt with a number of heads to keep. In the generation version all conditions of a prompt
share its prefill: the state is read once with every head, its rows are repeated, and each row decodes under
its own k. In the prefill version each row keeps its own k from the first token on.

How it fails: rows of one batch are computed together, so rounding may differ in the last bits from a batch
of another size; a text can differ only where two logits, or two entropies, agree to that precision. A batch
too large for the device raises `InputError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch

from analyses.sparsification import top_k
from hybridlens.errors import InputError
from hybridlens.generation import Boundary, continue_from
from hybridlens.model import HybridLens

Version: TypeAlias = Literal["generation", "prefill"]
"""The paper's names: heads are dropped while answering only, or while reading the prompt too."""

VERSIONS: tuple[Version, ...] = ("generation", "prefill")


class Condition(NamedTuple):
    """A prompt and the heads to keep per layer."""

    tokens: tuple[int, ...]
    k: int


def decode(
    lens: HybridLens,
    conditions: Sequence[Condition],
    version: Version,
    boundary: Boundary = "last_prompt_token",
    semantics: str = "clean",
    max_new_tokens: int = 40,
) -> list[str]:
    """What the model says under each condition, greedily: one batch, one text a condition.

    Args:
        lens: the model, with a tokenizer.
        conditions: the rows of the batch; prompts of any lengths, at least two tokens each.
        version: "generation" or "prefill".
        boundary: which rules read the last token of the prompt.
        semantics: of the entropy that ranks heads.
        max_new_tokens: at most so many for each row, less where its end-of-text token comes first.

    Raises:
        InputError: for k outside 0 … n_heads, prompts that do not fit the model, or a batch that does not
            fit its memory.
    """
    try:
        if version == "generation":
            return _shared_prefill(lens, conditions, boundary, semantics, max_new_tokens)
        rows = [list(condition.tokens) for condition in conditions]
        edits = top_k(lens, [condition.k for condition in conditions], "both", "layer", semantics)
        return lens.generate(rows, max_new_tokens, edits, boundary).text
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"a batch of {len(conditions)} rows does not fit the memory of {lens.device}; give a smaller --batch-size"
        ) from error


def _shared_prefill(
    lens: HybridLens,
    conditions: Sequence[Condition],
    boundary: Boundary,
    semantics: str,
    max_new_tokens: int,
) -> list[str]:
    """The generation version: each distinct prompt is read once, with all heads."""
    prompts = list(dict.fromkeys(condition.tokens for condition in conditions))
    row_of = {prompt: row for row, prompt in enumerate(prompts)}
    rows = [row_of[condition.tokens] for condition in conditions]
    edits = top_k(lens, [condition.k for condition in conditions], "decode", "layer", semantics)
    held_back = 1 if boundary == "last_prompt_token" else 0
    with torch.no_grad():
        state, logits = lens.prefill([list(prompt[: len(prompt) - held_back]) for prompt in prompts], last_only=True)
        state, logits = state.select(rows), logits[rows]
        if held_back:
            state, logits = lens.extend(state, [[condition.tokens[-1]] for condition in conditions], edits)
        return continue_from(lens, state, logits[:, -1], max_new_tokens, edits).text
