"""The random models of the benchmarks, and TransformerLens' bridge around one of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import JambaConfig, JambaForCausalLM, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

VOCAB = 1000


def jamba(width: int, layers: int, **changes: Any) -> JambaForCausalLM:
    """Attention in layers 2, 6, …, four experts of which two are used on odd layers, as in tiny-jamba."""
    fields = {
        "hidden_size": width, "num_hidden_layers": layers, "vocab_size": VOCAB, "intermediate_size": 2 * width,
        "num_attention_heads": 8, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2,
        "attn_layer_period": 4, "attn_layer_offset": 2, "initializer_range": 0.1,
    }  # fmt: skip
    torch.manual_seed(0)
    return JambaForCausalLM(JambaConfig(**{**fields, **changes})).eval()


def recurrentgemma(width: int, layers: int, **changes: Any) -> RecurrentGemmaForCausalLM:
    """Attention in layers 2, 5, …, one key/value head."""
    fields = {
        "hidden_size": width, "num_hidden_layers": layers, "vocab_size": VOCAB, "intermediate_size": 6 * width,
        "num_attention_heads": 8, "num_key_value_heads": 1, "attention_window_size": 256,
    }  # fmt: skip
    torch.manual_seed(0)
    return RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**{**fields, **changes})).eval()


def tokens(batch: int, length: int, vocab: int = VOCAB) -> torch.Tensor:
    """Random ids [batch, length], special tokens left out."""
    return torch.randint(4, vocab, (batch, length), generator=torch.Generator().manual_seed(1))


def bridge(model: JambaForCausalLM) -> Any:
    """TransformerLens' bridge around a copy of `model`, which it changes.

    Attention runs by the explicit formula, as in the bridges that TransformerLens boots itself: it has no pattern
    otherwise.
    """
    copied = copy.deepcopy(model)
    copied.set_attn_implementation("eager")
    return build_bridge_from_module(copied, "JambaForCausalLM", hf_config=copied.config).eval()
