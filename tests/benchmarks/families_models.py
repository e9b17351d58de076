"""A random model of every family, of the size at which all are timed: eight layers, mixed as the family mixes them.

Sizes that a published configuration ties to its width are in proportion to it; numbers that are the same in all of
them (taps, groups, chunks, rates, state widths up to 64) are as published. Attention and experts run as transformers
runs them by default, which is what it has of fast ways on a CPU.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch
import transformers

VOCAB = 1000
LAYERS = 8


def fields(width: int, longest: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """By family, the stem of its class and its configuration's fields.

    Args:
        width: of the residual stream, a multiple of 32.
        longest: tokens that it may read.
    """
    heads, d_head = 8, width // 8
    attention = {"num_attention_heads": heads, "num_key_value_heads": 2}
    mlp = {"intermediate_size": 3 * width}
    alike: dict[str, Any] = {
        "hidden_size": width, "vocab_size": VOCAB, "num_hidden_layers": LAYERS, "initializer_range": 0.06,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": longest,
    }  # fmt: skip
    turns = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 2
    delta = {
        "linear_num_key_heads": 4, "linear_num_value_heads": heads, "linear_key_head_dim": 2 * d_head,
        "linear_value_head_dim": 2 * d_head, "layer_types": turns, "head_dim": 2 * d_head, **attention,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
    }  # fmt: skip
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": width}
    mamba2 = {"mamba_n_heads": heads, "mamba_d_head": 2 * d_head, "mamba_d_state": 64, "mamba_n_groups": 1}
    windows = ["sliding_attention", "full_attention"] * 4
    of_family: dict[str, tuple[str, dict[str, Any]]] = {
        "recurrentgemma": ("RecurrentGemma", {
            "intermediate_size": 6 * width, "num_attention_heads": heads, "num_key_value_heads": 1,
            "attention_window_size": max(16, longest // 4),
        }),
        "jamba": ("Jamba", attention | mlp | {
            "num_experts": 8, "num_experts_per_tok": 2, "attn_layer_period": 4, "attn_layer_offset": 2,
            "mamba_d_state": 16, "mamba_dt_rank": width // 16,
        }),
        "mamba2": ("Mamba2", {
            "expand": 2, "num_heads": heads, "head_dim": 2 * d_head, "state_size": 64, "n_groups": 1,
        }),
        "falcon_h1": ("FalconH1", attention | mlp | mamba2 | {
            "head_dim": d_head, "mamba_d_ssm": 2 * width, "mamba_chunk_size": 128,
        }),
        "llama": ("Llama", attention | mlp),
        "qwen3": ("Qwen3", attention | mlp | {"head_dim": d_head}),
        "gemma2": ("Gemma2", attention | mlp | {
            "head_dim": d_head, "query_pre_attn_scalar": d_head, "layer_types": windows,
            "sliding_window": max(16, longest // 4),
        }),
        "gemma3": ("Gemma3", attention | mlp | {
            "head_dim": d_head, "query_pre_attn_scalar": d_head, "layer_types": windows,
            "sliding_window": max(16, longest // 4),
        }),
        "qwen3_next": ("Qwen3Next", delta | mlp | experts | {"shared_expert_intermediate_size": width}),
        "qwen3_5": ("Qwen3_5", delta | mlp),
        "qwen3_5_moe": ("Qwen3_5Moe", delta | experts | {"shared_expert_intermediate_size": width}),
        "mamba": ("Mamba", {"state_size": 16, "time_step_rank": width // 16}),
        "falcon_mamba": ("FalconMamba", {"state_size": 16, "time_step_rank": width // 16}),
        "nemotron_h": ("NemotronH", attention | mlp | {
            "layers_block_type": [
                "linear_attention", "mlp", "linear_attention", "full_attention", "linear_attention", "moe",
                "linear_attention", "moe",
            ],
            "head_dim": d_head, "mamba_num_heads": heads, "mamba_head_dim": 2 * d_head, "n_groups": 2,
            "ssm_state_size": 64, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": width,
            "moe_shared_expert_intermediate_size": width,
        }),
        "bamba": ("Bamba", attention | mlp | mamba2 | {"attn_layer_indices": [3, 7]}),
        "granitemoehybrid": ("GraniteMoeHybrid", attention | mamba2 | {
            "layer_types": turns, "intermediate_size": width, "shared_intermediate_size": width,
            "num_local_experts": 8, "num_experts_per_tok": 2, "embedding_multiplier": 12.0, "logits_scaling": 8.0,
            "residual_multiplier": 0.22, "attention_multiplier": d_head**-0.5,
        }),
        "lfm2": ("Lfm2", attention | mlp | {
            "full_attn_idxs": [2, 5, 7], "block_auto_adjust_ff_dim": False,
        }),
        "lfm2_moe": ("Lfm2Moe", attention | mlp | experts | {
            "layer_types": ["conv", "conv", "full_attention", "conv", "conv", "full_attention", "conv", "conv"],
            "num_dense_layers": 2,
        }),
        "olmo_hybrid": ("OlmoHybrid", delta | mlp | {
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        }),
        "kimi_linear": ("KimiLinear", {
            "layer_types": turns, "mlp_layer_types": ["dense", *["sparse"] * 7], "intermediate_size": 3 * width,
            "moe_intermediate_size": width, "num_attention_heads": heads, "num_key_value_heads": heads,
            "kv_lora_rank": width // 2, "qk_nope_head_dim": d_head, "qk_rope_head_dim": d_head // 2,
            "v_head_dim": d_head, "linear_head_dim": d_head, "linear_num_heads": heads, "num_local_experts": 8,
            "num_experts_per_tok": 2, "n_shared_experts": 1,
        }),
        "zamba": ("Zamba", mlp | {
            "layers_block_type": ["linear_attention", "linear_attention", "linear_attention", "hybrid"] * 2,
            "num_attention_heads": heads, "num_key_value_heads": heads, "n_mamba_heads": 2, "mamba_d_state": 16,
        }),
        "zamba2": ("Zamba2", {
            "layers_block_type": ["linear_attention", "linear_attention", "linear_attention", "hybrid"] * 2,
            "num_mem_blocks": 2, "intermediate_size": 3 * width, "num_attention_heads": heads, "n_mamba_heads": heads,
            "mamba_ngroups": 1, "mamba_d_state": 64, "adapter_rank": 16, "use_shared_attention_adapter": False,
            "use_mem_rope": True,
        }),
        "minimax": ("MiniMax", attention | {
            "layer_types": turns, "intermediate_size": width, "num_local_experts": 8, "num_experts_per_tok": 2,
        }),
    }  # fmt: skip
    return {family: (stem, _known(alike, stem) | own) for family, (stem, own) in of_family.items()}


def _known(alike: dict[str, Any], stem: str) -> dict[str, Any]:
    """Those of the fields that a family's configuration has."""
    known = inspect.signature(getattr(transformers, f"{stem}ForCausalLM").config_class).parameters
    return {name: value for name, value in alike.items() if name in known}


FAMILIES = tuple(fields(64, 64))
"""All that there are, in the order of the small models of the tests."""


def make(family: str, width: int, longest: int) -> Any:
    """A family's model, with random weights.

    Args:
        family: by its name in `hybridlens.families`.
        width: of the residual stream, a multiple of 32.
        longest: tokens that it may read.
    """
    stem, given = fields(width, longest)[family]
    kind: Any = getattr(transformers, f"{stem}ForCausalLM")
    torch.manual_seed(0)
    return kind(kind.config_class(**given)).eval()


def tokens(batch: int, length: int) -> torch.Tensor:
    """Random ids [batch, length], special tokens left out."""
    return torch.randint(4, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def new_cache(model: torch.nn.Module) -> Any:
    """An empty cache of the library's that a model takes: MiniMax takes none but its own kind."""
    config: Any = model.config
    if config.model_type == "minimax":
        return importlib.import_module("transformers.models.minimax.modeling_minimax").MiniMaxCache()
    return transformers.DynamicCache(config=config)
