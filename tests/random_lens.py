"""Random hybrids with a tokenizer that can read the needle benchmark, in memory and as folders."""

from functools import cache
from pathlib import Path
from typing import Any

from models import make
from niah_tokenizers import word_level

import hybridlens as hl

NEW_TOKENS = 40


@cache
def benchmark_lens(family: str, seed: int = 0, **changes: Any) -> hl.HybridLens:
    """A random model of a family over the word-level tokenizer, with room for prompts of 300 tokens."""
    tokenizer = word_level()
    changes = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, **changes}
    if family == "jamba":
        changes = {"max_position_embeddings": 400, **changes}
    else:
        changes = {"attention_window_size": 64, **changes}
    return hl.HybridLens(make(family, seed, **changes), tokenizer)


def save_checkpoint(folder: Path, family: str = "recurrentgemma", seed: int = 0, **changes: Any) -> Path:
    """A folder that `hl.load` opens: configuration, safetensors, tokenizer."""
    lens = benchmark_lens(family, seed, **changes)
    lens.hf_model.save_pretrained(folder)
    lens.tokenizer.save_pretrained(folder)
    return folder
