"""Configurations as they are published: what a checkpoint's config.json says, and what its model then has.

Nothing of hybridlens is used here. `source` says where sizes and count are from: the model's "card" (its config.json),
its "paper", or the "docstring" of the class in transformers, whose defaults stand for some.
"""

from typing import Any, NamedTuple


class Published(NamedTuple):
    """One published model."""

    config: str
    """Class of its configuration in transformers."""
    fields: dict[str, Any]
    """Of its config.json."""
    parameters: float
    """Of the model that is opened, to 1 %."""
    source: str
    """Of both: "card", "paper" or "docstring"."""
    layers: str
    """What mixes each layer's tokens: A attention, S a recurrence, H both, M neither."""
    sizes: dict[str, Any]
    """Fields of the lens' configuration."""


PUBLISHED: dict[str, Published] = {
    "RecurrentGemma-2B": Published(
        "RecurrentGemmaConfig",
        {
            "model_type": "recurrent_gemma", "architectures": ["RecurrentGemmaForCausalLM"], "num_hidden_layers": 26,
            "vocab_size": 256000, "hidden_size": 2560, "intermediate_size": 15360, "num_attention_heads": 10,
            "num_key_value_heads": 1, "head_dim": 256, "lru_width": 2560, "attention_window_size": 2048,
            "conv1d_width": 4, "logits_soft_cap": 30.0, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5, "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False,
            "_block_types": ["recurrent", "recurrent", "attention"], "w_init_variance_scale": 0.01,
            "final_w_init_variance_scale": 0.07692307692307693, "pad_token_id": 0, "bos_token_id": 2,
            "eos_token_id": 1, "torch_dtype": "bfloat16",
        },
        2.68e9, "card", "SSA" * 8 + "SS",
        {"d_model": 2560, "d_mlp": 7680, "n_heads": 10, "n_kv_heads": 1, "window": 2048, "d_channels": 2560},
    ),
    "Jamba-v0.1": Published(
        "JambaConfig",
        {
            "model_type": "jamba", "architectures": ["JambaForCausalLM"], "num_hidden_layers": 32, "vocab_size": 65536,
            "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
            "num_experts": 16, "num_experts_per_tok": 2, "attn_layer_period": 8, "attn_layer_offset": 4,
            "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 16, "mamba_d_conv": 4,
            "mamba_expand": 2, "mamba_dt_rank": 256, "mamba_conv_bias": True, "mamba_proj_bias": False,
            "mamba_inner_layernorms": True, "use_mamba_kernels": True, "hidden_act": "silu", "rms_norm_eps": 1e-6,
            "sliding_window": None, "tie_word_embeddings": False, "n_ctx": 262144, "num_logits_to_keep": 1,
            "calc_logits_for_entire_prompt": False, "attention_dropout": 0.0, "output_router_logits": False,
            "router_aux_loss_coef": 0.001, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        },
        52e9, "card", ("SSSSA" + "SSS") * 4,
        {"d_model": 4096, "d_mlp": 14336, "n_heads": 32, "n_kv_heads": 8, "n_experts": 16, "d_state": 16},
    ),
    # The original's config.json names d_model, n_layer and vocab_size alone; the others follow from its code.
    "Mamba-2-2.7B": Published(
        "Mamba2Config",
        {
            "model_type": "mamba2", "architectures": ["Mamba2ForCausalLM"], "num_hidden_layers": 64,
            "vocab_size": 50288, "hidden_size": 2560, "expand": 2, "num_heads": 80, "head_dim": 64, "state_size": 128,
            "n_groups": 1, "conv_kernel": 4, "chunk_size": 256, "tie_word_embeddings": True, "rms_norm": True,
            "residual_in_fp32": True, "use_bias": False, "use_conv_bias": True, "hidden_act": "silu",
            "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
        },
        2.70e9, "card", "S" * 64,
        {"d_model": 2560, "n_heads": 0, "d_channels": 5120, "d_state": 128, "d_conv": 4, "n_ctx": None},
    ),
    "Falcon-H1-0.5B": Published(
        "FalconH1Config",
        {
            "model_type": "falcon_h1", "architectures": ["FalconH1ForCausalLM"], "num_hidden_layers": 36,
            "vocab_size": 32784, "hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 8,
            "num_key_value_heads": 2, "head_dim": 64, "mamba_d_ssm": 1536, "mamba_n_heads": 24, "mamba_d_head": 64,
            "mamba_n_groups": 1, "mamba_d_state": 128, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_chunk_size": 128,
            "mamba_conv_bias": True, "mamba_proj_bias": False, "mamba_rms_norm": False, "mamba_use_mlp": True,
            "mamba_norm_before_gate": False, "projectors_bias": False, "attention_bias": False, "mlp_bias": False,
            "attention_in_multiplier": 1.0, "attention_out_multiplier": 0.9375, "key_multiplier": 0.390625,
            "embedding_multiplier": 5.656854249492381, "lm_head_multiplier": 0.0390625,
            "mlp_multipliers": [0.8838834764831845, 0.5859375], "ssm_in_multiplier": 1.25,
            "ssm_out_multiplier": 0.23570226039551587, "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "ssm_multipliers": [0.3535533905932738, 0.25, 0.3535533905932738, 0.5, 0.3535533905932738],
            "max_position_embeddings": 16384, "rope_theta": 100000000000.0, "rope_scaling": None,
            "num_logits_to_keep": 1, "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 11,
        },
        521e6, "paper", "H" * 36,
        {"d_model": 1024, "d_mlp": 2048, "n_heads": 8, "n_kv_heads": 2, "d_head": 64, "d_channels": 1536,
         "d_state": 128},
    ),
    "Qwen3-Next-80B-A3B": Published(
        "Qwen3NextConfig",
        {
            "model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"], "num_hidden_layers": 48,
            "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5120, "num_attention_heads": 16,
            "num_key_value_heads": 2, "head_dim": 256, "full_attention_interval": 4, "linear_num_key_heads": 16,
            "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4, "num_experts": 512, "num_experts_per_tok": 10, "norm_topk_prob": True,
            "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "decoder_sparse_step": 1,
            "mlp_only_layers": [], "partial_rotary_factor": 0.25, "rope_theta": 10000000, "rope_scaling": None,
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 262144, "attention_dropout": 0.0,
            "output_router_logits": False, "router_aux_loss_coef": 0.001, "tie_word_embeddings": False,
            "bos_token_id": 151643, "eos_token_id": 151645, "torch_dtype": "bfloat16",
        },
        80e9, "card", "SSSA" * 12,
        {"d_model": 2048, "n_heads": 16, "n_kv_heads": 2, "d_head": 256, "n_experts": 512, "n_experts_per_token": 10,
         "d_mlp": 512, "d_channels": 4096, "d_state": 128, "d_conv": 4, "n_ctx": 262144},
    ),
}  # fmt: skip

PUBLISHED |= {
    # The class's defaults are its sizes; its positions turn nothing.
    "OLMo-Hybrid-7B": Published(
        "OlmoHybridConfig",
        {
            "model_type": "olmo_hybrid", "architectures": ["OlmoHybridForCausalLM"], "num_hidden_layers": 32,
            "vocab_size": 100352, "hidden_size": 3840, "intermediate_size": 11008, "num_attention_heads": 30,
            "num_key_value_heads": 30, "linear_num_key_heads": 30, "linear_num_value_heads": 30,
            "linear_key_head_dim": 96, "linear_value_head_dim": 192, "linear_conv_kernel_dim": 4,
            "linear_allow_neg_eigval": True, "linear_use_gate": True,
            "layer_types": [*["linear_attention"] * 3, "full_attention"] * 8, "attention_bias": False,
            "attention_dropout": 0.0, "hidden_act": "silu", "rms_norm_eps": 1e-6, "initializer_range": 0.02,
            "max_position_embeddings": 65536, "rope_parameters": {"rope_theta": None, "rope_type": "default"},
            "tie_word_embeddings": False, "pad_token_id": 100277, "bos_token_id": None, "eos_token_id": 100257,
            "dtype": "float32", "use_cache": True,
        },
        7.43e9, "docstring", "SSSA" * 8,
        {"d_model": 3840, "n_heads": 30, "n_kv_heads": 30, "d_head": 128, "d_mlp": 11008, "d_channels": 5760,
         "d_state": 96, "d_conv": 4, "n_ctx": 65536},
    ),
    # Layers are numbered from 1; latents and shared keys are what its attention holds.
    "Kimi-Linear-48B-A3B": Published(
        "KimiLinearConfig",
        {
            "model_type": "kimi_linear", "architectures": ["KimiLinearForCausalLM"], "num_hidden_layers": 27,
            "vocab_size": 163840, "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 32,
            "num_key_value_heads": 32, "head_dim": 72, "kv_lora_rank": 512, "q_lora_rank": None,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "mla_use_nope": True,
            "linear_attn_config": {
                "full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "head_dim": 128, "num_heads": 32,
                "kda_layers": [layer for layer in range(1, 27) if layer % 4], "short_conv_kernel_size": 4,
            },
            "first_k_dense_replace": 1, "moe_layer_freq": 1, "moe_intermediate_size": 1024, "num_experts": 256,
            "num_experts_per_token": 8, "num_shared_experts": 1, "num_expert_group": 1, "topk_group": 1,
            "use_grouped_topk": True, "moe_renormalize": True, "moe_router_activation_func": "sigmoid",
            "routed_scaling_factor": 2.446, "num_nextn_predict_layers": 0, "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "model_max_length": 1048576, "rope_theta": 10000.0, "rope_scaling": None, "initializer_range": 0.02,
            "tie_word_embeddings": False, "pad_token_id": 163839, "bos_token_id": 163584, "eos_token_id": 163586,
            "dtype": "bfloat16", "use_cache": True,
        },
        49.12e9, "card", "SSSA" * 6 + "SSA",
        {"d_model": 2304, "n_heads": 32, "n_kv_heads": 32, "d_head": 192, "d_mlp": 9216, "n_experts": 256,
         "n_experts_per_token": 8, "d_channels": 4096, "d_state": 128, "d_conv": 4, "n_ctx": 1048576},
    ),
}  # fmt: skip
