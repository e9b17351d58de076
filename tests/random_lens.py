"""Random hybrids with a tokenizer that can read the needle benchmark, in memory and as folders."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from models import ROWS, make
from niah_tokenizers import KINDS

import hybridlens as hl

LOUD = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The matrices that are made larger, so that attention is sharp and heard."""


@cache
def small_lens(family: str, seed: int = 0) -> hl.HybridLens:
    """A lens on a small random model of a family, without a tokenizer, made once."""
    return hl.HybridLens(make(family, seed))


@cache
def benchmark_lens(family: str, seed: int = 0, words: str = "word", gain: float = 5.0, **changes: Any) -> hl.HybridLens:
    """A random model of a family over one of the tokenizers of `niah_tokenizers`, with room for 400 tokens.

    Its attention's matrices are `gain` times what they would be, or the next token would follow from the last
    ones alone, whatever the prompt and the heads.
    """
    tokenizer = KINDS[words]()
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    model = make(family, seed, **{**ids, **ROWS[family].room, **changes})
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".weight") and name.split(".")[-2] in LOUD:
                weight.mul_(gain)
    return hl.HybridLens(model, tokenizer)


def save_checkpoint(folder: Path, family: str = "recurrentgemma", seed: int = 0, **changes: Any) -> Path:
    """A folder that `hl.load` opens: configuration, safetensors, tokenizer."""
    lens = benchmark_lens(family, seed, **changes)
    lens.hf_model.save_pretrained(folder)
    lens.tokenizer.save_pretrained(folder)
    return folder
