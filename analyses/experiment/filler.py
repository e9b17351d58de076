"""Held-out filler text: nothing to retrieve in it, and no sentence that the embedded models were trained on.

Sentences are drawn from the built-in essays' grammar by random streams of their own, which neither training nor any
prompt uses, whatever their seeds. The grammar is small, though: 64 of 100 sentences so drawn stand in the embedded
models' training filler (`hybridlens.tiny.documents.filler_sentences`, seed 0 for both). These are left out, for every
model; their words and shapes were trained on.

How it fails: one `InputError` for a lens without a tokenizer, or a length that its context has not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor

from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.niah import essay_sentences
from hybridlens.tiny.documents import filler_sentences

TRAINED_SEED = 0
"""Of the training runs of the embedded models."""

TEXT_ROWS, TEXT_TOKENS = 8, 256
"""Of what recurrent layers are linearised on: rows, and tokens of each at most."""


def filler_tokens(lens: HybridLens, length: int, rows: int, seed: int = 0) -> Int[Tensor, "row pos"]:
    """Held-out filler: rows of exactly `length` tokens, each a text of its own with the tokenizer's own beginning.

    Row i is the same however many rows there are, and of other lengths it is the same text, shorter or longer.

    Args:
        lens: the model, with its tokenizer.
        length: tokens of each row, at least 2, the one that begins every text (BOS) included.
        rows: how many texts.
        seed: of the texts.

    Raises:
        InputError: no tokenizer; a length under 2 or beyond the model's context; no rows.
    """
    if lens.tokenizer is None:
        raise InputError("filler text needs a tokenizer, and this lens has none; give one to HybridLens")
    if length < 2 or (lens.cfg.n_ctx is not None and length > lens.cfg.n_ctx):
        raise InputError(f"filler of {length} tokens asked for, expected 2..{lens.cfg.n_ctx or ''}")
    if rows < 1:
        raise InputError(f"{rows} rows of filler asked for, expected at least 1")
    return torch.tensor([_text(lens.tokenizer, length, f"held-out filler {seed} {row}") for row in range(rows)])


def linearising_text(lens: HybridLens, seed: int = 0) -> Int[Tensor, "row pos"]:
    """The filler on which recurrent layers are taken for linear: `TEXT_ROWS` rows, as long as the context lets them be.

    Raises:
        InputError: see `filler_tokens`.
    """
    return filler_tokens(lens, min(TEXT_TOKENS, lens.cfg.n_ctx or TEXT_TOKENS), TEXT_ROWS, seed)


def _text(tokenizer: Any, length: int, stream: str) -> list[int]:
    """The first `length` tokens of the text of a random stream."""
    sentences = unseen_sentences(stream)
    text = next(sentences)
    while True:
        ids = cast(list[int], tokenizer(text, verbose=False)["input_ids"])
        if len(ids) > length + 1:  # one more, since a tokenizer may end every text with a token of its own
            return ids[:length]
        text += " " + " ".join(next(sentences) for _ in range(1 + length // 16))


def unseen_sentences(stream: str) -> Iterator[str]:
    """Sentences without end, of a random stream, that stood in no embedded model's training filler."""
    trained = _trained()
    return (sentence for sentence in essay_sentences(random.Random(stream)) if sentence not in trained)


@cache
def _trained() -> frozenset[str]:
    return frozenset(filler_sentences(TRAINED_SEED))
