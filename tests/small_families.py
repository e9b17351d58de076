"""Small random models of the families with matrix states, every weight away from its default."""

from functools import cache

import torch
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from hybridlens import HybridLens

VOCAB = 97
MATRIX_FAMILIES = ("mamba2", "falcon_h1", "qwen3_next")
WITH_HEADS = ("falcon_h1", "qwen3_next")
"""Those of them that have attention."""

BASE = {"vocab_size": VOCAB, "hidden_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def mamba2(**changes) -> Mamba2ForCausalLM:
    """Three layers of 8 recurrent heads, each 16 x 10."""
    fields = {"num_heads": 8, "head_dim": 16, "state_size": 10, "num_hidden_layers": 3, "n_groups": 2, "chunk_size": 8}
    return Mamba2ForCausalLM(Mamba2Config(**{**BASE, **fields, **changes}))


def falcon_h1(**changes) -> FalconH1ForCausalLM:
    """Three layers with attention and 6 recurrent heads, each 16 x 10, side by side; a multiplier at every step."""
    fields = {
        "intermediate_size": 80, "num_hidden_layers": 3, "mamba_d_ssm": 96, "mamba_n_heads": 6, "mamba_d_head": 16,
        "mamba_n_groups": 2, "mamba_d_state": 10, "mamba_chunk_size": 8, "lm_head_multiplier": 0.7,
        "embedding_multiplier": 1.3, "mlp_multipliers": [0.8, 1.2], "key_multiplier": 0.6,
        "attention_out_multiplier": 0.9, "attention_in_multiplier": 1.1,
        "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7], "ssm_in_multiplier": 1.2, "ssm_out_multiplier": 0.85,
    }  # fmt: skip
    return FalconH1ForCausalLM(FalconH1Config(**{**BASE, **HEADS, **fields, **changes}))


def qwen3_next(**changes) -> Qwen3NextForCausalLM:
    """Four layers (D A D D) with 4 delta-rule heads, each 12 x 8; attention gated; mixtures but in layer 1."""
    fields = {
        "intermediate_size": 80, "num_hidden_layers": 4, "head_dim": 16, "linear_key_head_dim": 8,
        "linear_value_head_dim": 12, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "moe_intermediate_size": 24, "shared_expert_intermediate_size": 20, "num_experts_per_tok": 2,
        "num_experts": 6, "mlp_only_layers": [1],
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    }  # fmt: skip
    return Qwen3NextForCausalLM(Qwen3NextConfig(**{**BASE, **HEADS, **fields, **changes}))


MAKERS = {"mamba2": mamba2, "falcon_h1": falcon_h1, "qwen3_next": qwen3_next}


def small(family: str, seed: int = 0, **changes) -> torch.nn.Module:
    """A small random model of a family."""
    torch.manual_seed(seed)
    return shaken(MAKERS[family](**changes).eval(), seed + 1)


@cache
def small_lens(family: str, seed: int = 0) -> HybridLens:
    """A lens on it, made once."""
    return HybridLens(small(family, seed))


def ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids [batch, length]."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def shaken(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights large enough that states matter, decays of all speeds, norms and biases away from their default."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=draws)
            if name.endswith("A_log"):
                weight.copy_(-0.5 + 0.7 * drawn)
            elif name.endswith("dt_bias"):
                weight.copy_(-2.0 + 0.8 * drawn)
            elif weight.ndim == 1:
                weight.add_(0.2 * drawn)
            elif weight.ndim == 3 and "conv" in name:
                weight.copy_(0.5 * drawn)
            else:
                weight.copy_(drawn * (1.3 / weight.shape[-1] ** 0.5))
    return model
