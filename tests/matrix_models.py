"""Small random models of the families with matrix states, of the real Hugging Face classes, in patching's tests.

Weights are drawn anew at a size that makes states and gates matter: decays well between 0 and 1, convolutions with
memory, norms and biases away from their defaults.
"""

from typing import Any

import torch
import transformers as T
from models import FAMILIES, VOCAB, make

BASE: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ATTENTION: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
STATES = ("mamba2", "falcon_h1", "qwen3_next")
ALL = (*FAMILIES, *STATES)


def mamba2(**changes: Any) -> T.Mamba2Config:
    """Three layers of recurrent heads alone: four of them, in two groups; no attention, no MLP."""
    sizes: dict[str, Any] = {
        "num_heads": 4, "head_dim": 16, "state_size": 6, "num_hidden_layers": 3, "n_groups": 2, "chunk_size": 8,
    }  # fmt: skip
    return T.Mamba2Config(**{**BASE, **sizes, **changes})


def falcon_h1(**changes: Any) -> T.FalconH1Config:
    """Three layers with attention and recurrent heads side by side, and a multiplier at every step."""
    sizes: dict[str, Any] = {
        "intermediate_size": 40, "num_hidden_layers": 3, "mamba_d_ssm": 48, "mamba_n_heads": 4, "mamba_d_head": 12,
        "mamba_n_groups": 2, "mamba_d_state": 6, "mamba_chunk_size": 8, "lm_head_multiplier": 0.7,
        "embedding_multiplier": 1.3, "mlp_multipliers": [0.8, 1.2], "key_multiplier": 0.6,
        "attention_out_multiplier": 0.9, "attention_in_multiplier": 1.1, "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7],
        "ssm_in_multiplier": 1.2, "ssm_out_multiplier": 0.85,
    }  # fmt: skip
    return T.FalconH1Config(**{**BASE, **ATTENTION, **sizes, **changes})


def qwen3_next(**changes: Any) -> T.Qwen3NextConfig:
    """Four layers (D A D D): delta rules, attention with a gate and norms, mixtures with a shared expert, one MLP."""
    sizes: dict[str, Any] = {
        "intermediate_size": 40, "num_hidden_layers": 4, "head_dim": 8, "linear_key_head_dim": 6,
        "linear_value_head_dim": 10, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24, "num_experts_per_tok": 2, "num_experts": 4,
        "mlp_only_layers": [2], "rms_norm_eps": 1e-6,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    }  # fmt: skip
    return T.Qwen3NextConfig(**{**BASE, **ATTENTION, **sizes, **changes})


CONFIGS = {"mamba2": mamba2, "falcon_h1": falcon_h1, "qwen3_next": qwen3_next}


def make_any(family: str, seed: int = 0, **changes: Any) -> Any:
    """A small random model of any family."""
    if family in FAMILIES:
        return make(family, seed, **changes)
    torch.manual_seed(seed)
    model: Any = T.AutoModelForCausalLM.from_config(CONFIGS[family](**changes)).eval()
    rng = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=rng)
            if name.endswith("A_log"):
                weight.copy_(-0.5 + 0.7 * drawn)
            elif name.endswith("dt_bias"):
                weight.copy_(-2.0 + 0.8 * drawn)
            elif weight.ndim == 1:
                weight.add_(0.2 * drawn)
            elif "embed" in name:
                weight.copy_(0.4 * drawn)
            elif weight.ndim == 3 and "conv" in name:
                weight.copy_(0.5 * drawn)
            else:
                weight.copy_(drawn * 0.9 / weight.shape[-1] ** 0.5)
    return model
