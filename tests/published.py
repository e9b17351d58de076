"""Configurations as they are published: what a checkpoint's config.json says, and what its model then has.

Nothing of hybridlens is used here. `source` says where sizes and count are from: the model's "card" (its config.json),
its "paper", or the "docstring" of the class in transformers, whose defaults stand for some.

No hub was at hand when these were written: "card" means the sizes that the model's card is known by, from public copies
of its configuration and from memory, held against the count of parameters; fields that change no shape may differ from
the file's.
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


QWEN3_5 = {
    "vocab_size": 248320, "head_dim": 256, "full_attention_interval": 4, "linear_num_key_heads": 16,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "max_position_embeddings": 262144, "attention_bias": False, "attention_dropout": 0.0,
    "attn_output_gate": True, "mamba_ssm_dtype": "float32", "mtp_num_hidden_layers": 1, "dtype": "bfloat16",
    "mtp_use_dedicated_embeddings": False, "eos_token_id": 248044, "use_cache": True, "initializer_range": 0.02,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25, "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
    },
}  # fmt: skip
"""Of the text model, alike in all of them."""


def qwen3_5(kind: str, model: str, tied: bool, **text: Any) -> dict[str, Any]:
    """The config.json of a Qwen3.5, which nests its text model's."""
    text |= QWEN3_5 | {"model_type": f"{kind}_text", "tie_word_embeddings": tied}
    seen = {"model_type": kind, "depth": 27, "hidden_size": 1152, "num_heads": 16, "deepstack_visual_indexes": []}
    return {
        "model_type": kind, "architectures": [model], "text_config": text, "vision_config": seen,
        "tie_word_embeddings": tied, "image_token_id": 248056, "video_token_id": 248057,
        "vision_start_token_id": 248053, "vision_end_token_id": 248054,
    }  # fmt: skip


MAMBA = {
    "model_type": "mamba", "architectures": ["MambaForCausalLM"], "bos_token_id": 0, "conv_kernel": 4,
    "eos_token_id": 0, "expand": 2, "fused_add_norm": True, "hidden_act": "silu", "initializer_range": 0.1,
    "layer_norm_epsilon": 1e-05, "pad_token_id": 0, "pad_vocab_size_multiple": 8, "rescale_prenorm_residual": False,
    "residual_in_fp32": True, "rms_norm": True, "ssm_cfg": {}, "state_size": 16, "time_step_floor": 0.0001,
    "time_step_init_scheme": "random", "time_step_max": 0.1, "time_step_min": 0.001, "time_step_scale": 1.0,
    "torch_dtype": "float32", "use_bias": False, "use_cache": True, "use_conv_bias": True, "vocab_size": 50280,
}  # fmt: skip
"""What the sizes of Mamba have in common."""
GRANITE = {
    "architectures": ["GraniteMoeHybridForCausalLM"], "model_type": "granitemoehybrid", "attention_bias": False,
    "attention_dropout": 0.0, "bos_token_id": 100257, "embedding_multiplier": 12, "eos_token_id": 100257,
    "hidden_act": "silu", "init_method": "mup", "initializer_range": 0.1,
    "layer_types": ["attention" if layer in (5, 15, 25, 35) else "mamba" for layer in range(40)],
    "mamba_chunk_size": 256, "mamba_conv_bias": True, "mamba_d_conv": 4, "mamba_d_head": 64, "mamba_d_state": 128,
    "mamba_expand": 2, "mamba_n_groups": 1, "mamba_proj_bias": False, "max_position_embeddings": 131072,
    "normalization_function": "rmsnorm", "num_hidden_layers": 40, "output_router_logits": False,
    "pad_token_id": 100256, "position_embedding_type": "nope", "residual_multiplier": 0.22, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "rope_theta": 10000, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "use_cache": True, "vocab_size": 100352,
}  # fmt: skip
"""What Granite 4's hybrids have in common."""
ZAMBA = ["H" if (layer % 6 == 1 and layer > 1) or layer == 2 else "S" for layer in range(76)]
"""Layers of Zamba-7B: with the shared block, and without."""
SHARED = [6, 12, 18, 24, 30, 36, 42, 47, 51]
"""Layers of Zamba2-2.7B with a shared block."""
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
    # Counts of the text model alone; the card's are with the vision tower and rounded.
    "Qwen3.5-0.8B": Published(
        "Qwen3_5Config",
        qwen3_5(
            "qwen3_5", "Qwen3_5ForConditionalGeneration", True, num_hidden_layers=24, hidden_size=1024,
            intermediate_size=3584, num_attention_heads=8, num_key_value_heads=2, linear_num_value_heads=16,
        ),
        752e6, "card", "SSSA" * 6,
        {"d_model": 1024, "d_mlp": 3584, "n_heads": 8, "n_kv_heads": 2, "d_head": 256, "d_channels": 2048,
         "n_ctx": 262144},
    ),
    "Qwen3.5-9B": Published(
        "Qwen3_5Config",
        qwen3_5(
            "qwen3_5", "Qwen3_5ForConditionalGeneration", False, num_hidden_layers=32, hidden_size=4096,
            intermediate_size=12288, num_attention_heads=16, num_key_value_heads=4, linear_num_value_heads=32,
        ),
        8.95e9, "docstring", "SSSA" * 8,
        {"d_model": 4096, "d_mlp": 12288, "n_heads": 16, "n_kv_heads": 4, "d_channels": 4096, "d_state": 128},
    ),
    "Qwen3.5-27B": Published(
        "Qwen3_5Config",
        qwen3_5(
            "qwen3_5", "Qwen3_5ForConditionalGeneration", False, num_hidden_layers=64, hidden_size=5120,
            intermediate_size=17408, num_attention_heads=24, num_key_value_heads=4, linear_num_value_heads=48,
        ),
        26.9e9, "card", "SSSA" * 16,
        {"d_model": 5120, "d_mlp": 17408, "n_heads": 24, "n_kv_heads": 4, "d_channels": 6144, "d_state": 128},
    ),
    "Qwen3.5-35B-A3B": Published(
        "Qwen3_5MoeConfig",
        qwen3_5(
            "qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", False, num_hidden_layers=40, hidden_size=2048,
            num_attention_heads=16, num_key_value_heads=2, linear_num_value_heads=32, num_experts=256,
            num_experts_per_tok=8, moe_intermediate_size=512, shared_expert_intermediate_size=512,
            output_router_logits=False, router_aux_loss_coef=0.001,
        ),
        35e9, "card", "SSSA" * 10,
        {"d_model": 2048, "n_heads": 16, "n_kv_heads": 2, "n_experts": 256, "n_experts_per_token": 8, "d_mlp": 512},
    ),
    "Mamba-130M": Published(
        "MambaConfig",
        MAMBA | {
            "d_inner": 1536, "d_model": 768, "hidden_size": 768, "intermediate_size": 1536, "n_layer": 24,
            "num_hidden_layers": 24, "time_step_rank": 48,
        },
        129.1e6, "card", "S" * 24,
        {"d_model": 768, "n_heads": 0, "d_channels": 1536, "d_state": 16, "d_conv": 4, "n_ctx": None},
    ),
    "Mamba-2.8B": Published(
        "MambaConfig",
        MAMBA | {
            "d_inner": 5120, "d_model": 2560, "hidden_size": 2560, "intermediate_size": 5120, "n_layer": 64,
            "num_hidden_layers": 64, "time_step_rank": 160,
        },
        2.768e9, "card", "S" * 64,
        {"d_model": 2560, "n_heads": 0, "d_channels": 5120, "d_state": 16, "d_conv": 4, "n_ctx": None},
    ),
    "Falcon-Mamba-7B": Published(
        "FalconMambaConfig",
        {
            "model_type": "falcon_mamba", "architectures": ["FalconMambaForCausalLM"], "bos_token_id": 0,
            "conv_kernel": 4, "eos_token_id": 11, "expand": 16, "hidden_act": "silu", "hidden_size": 4096,
            "initializer_range": 0.1, "intermediate_size": 8192, "layer_norm_epsilon": 1e-05, "num_hidden_layers": 64,
            "pad_token_id": 11, "rescale_prenorm_residual": False, "residual_in_fp32": True, "state_size": 16,
            "tie_word_embeddings": False, "time_step_floor": 0.0001, "time_step_init_scheme": "random",
            "time_step_max": 0.1, "time_step_min": 0.001, "time_step_rank": 256, "time_step_scale": 1.0,
            "torch_dtype": "bfloat16", "use_bias": False, "use_cache": True, "use_conv_bias": True,
            "vocab_size": 65024,
        },
        7.27e9, "card", "S" * 64,
        {"d_model": 4096, "n_heads": 0, "d_channels": 8192, "d_state": 16, "d_conv": 4, "n_ctx": None},
    ),
    # ε, positions and the width of a head stand twice in these files, for code of their own.
    "Nemotron-H-8B": Published(
        "NemotronHConfig",
        {
            "model_type": "nemotron_h", "architectures": ["NemotronHForCausalLM"], "num_hidden_layers": 52,
            "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-", "vocab_size": 131072,
            "hidden_size": 4096, "intermediate_size": 21504, "num_attention_heads": 32, "num_key_value_heads": 8,
            "attention_head_dim": 128, "mamba_num_heads": 128, "mamba_head_dim": 64, "ssm_state_size": 128,
            "n_groups": 8, "conv_kernel": 4, "expand": 2, "chunk_size": 128, "mlp_hidden_act": "relu2",
            "mamba_hidden_act": "silu", "layer_norm_epsilon": 1e-5, "rms_norm_eps": 1e-5, "attention_bias": False,
            "attention_dropout": 0.0, "hidden_dropout": 0.0, "mlp_bias": False, "use_bias": False,
            "use_conv_bias": True, "mamba_proj_bias": False, "residual_in_fp32": False, "sliding_window": None,
            "rescale_prenorm_residual": True, "use_mamba_kernels": True, "num_logits_to_keep": 1,
            "max_position_embeddings": 8192, "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2, "torch_dtype": "bfloat16",
        },
        8.1e9, "card", "SMSMSMSA" + "MSMSMSMSMSA" * 3 + "MSMSMSMSMSM",
        {"d_model": 4096, "n_heads": 32, "n_kv_heads": 8, "d_head": 128, "d_mlp": 21504, "n_experts": None,
         "d_channels": 8192, "d_state": 128, "d_conv": 4, "n_ctx": 8192},
    ),
    "Nemotron-3-Nano-30B-A3B": Published(
        "NemotronHConfig",
        {
            "model_type": "nemotron_h", "architectures": ["NemotronHForCausalLM"], "num_hidden_layers": 52,
            "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME", "vocab_size": 131072,
            "hidden_size": 2688, "intermediate_size": 1856, "num_attention_heads": 32, "num_key_value_heads": 2,
            "head_dim": 128, "mamba_num_heads": 64, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8,
            "conv_kernel": 4, "expand": 2, "chunk_size": 128, "mlp_hidden_act": "relu2", "mamba_hidden_act": "silu",
            "n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1,
            "moe_intermediate_size": 1856, "moe_shared_expert_intermediate_size": 3712, "norm_topk_prob": True,
            "routed_scaling_factor": 2.5, "layer_norm_epsilon": 1e-5, "norm_eps": 1e-5, "rope_theta": 10000,
            "partial_rotary_factor": 1.0, "attention_bias": False, "attention_dropout": 0.0, "hidden_dropout": 0.0,
            "mlp_bias": False, "use_bias": False, "use_conv_bias": True, "mamba_proj_bias": False,
            "mamba_ssm_cache_dtype": "float32", "time_step_floor": 1e-4, "time_step_max": 0.1, "time_step_min": 0.001,
            "residual_in_fp32": False, "sliding_window": None, "rescale_prenorm_residual": True,
            "use_mamba_kernels": True, "num_logits_to_keep": 1, "max_position_embeddings": 262144,
            "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        },
        31.6e9, "card", "SMSMSA" + "MSMSMSA" * 4 + "MSMSMSMSA" + "MSMSMSMSM",
        {"d_model": 2688, "n_heads": 32, "n_kv_heads": 2, "d_head": 128, "d_mlp": 1856, "n_experts": 128,
         "n_experts_per_token": 6, "d_channels": 4096, "d_state": 128, "d_conv": 4, "n_ctx": 262144},
    ),
    "Bamba-9B": Published(
        "BambaConfig",
        {
            "model_type": "bamba", "architectures": ["BambaForCausalLM"], "num_hidden_layers": 32,
            "attn_layer_indices": [9, 18, 27], "attn_rotary_emb": 64, "vocab_size": 128256, "hidden_size": 4096,
            "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "mamba_n_heads": 128,
            "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 128, "mamba_d_conv": 4, "mamba_expand": 2,
            "mamba_chunk_size": 256, "mamba_conv_bias": True, "mamba_proj_bias": False, "hidden_act": "silu",
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 262144, "attention_bias": False,
            "attention_dropout": 0.0, "mlp_bias": False, "use_mamba_kernels": True, "num_logits_to_keep": 1,
            "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 128000, "eos_token_id": 128001,
            "torch_dtype": "bfloat16",
        },
        9.78e9, "card", "SSSSSSSSSA" + "SSSSSSSSA" * 2 + "SSSS",
        {"d_model": 4096, "n_heads": 32, "n_kv_heads": 8, "d_head": 128, "d_mlp": 14336, "d_channels": 8192,
         "d_state": 128, "d_conv": 4, "n_ctx": 262144},
    ),
    "Granite-4.0-H-Micro": Published(
        "GraniteMoeHybridConfig",
        GRANITE | {
            "attention_multiplier": 0.015625, "hidden_size": 2048, "intermediate_size": 8192, "logits_scaling": 8,
            "mamba_n_heads": 64, "num_attention_heads": 32, "num_experts_per_tok": 0, "num_key_value_heads": 8,
            "num_local_experts": 0, "router_aux_loss_coef": 0.0, "shared_intermediate_size": 8192,
        },
        3.19e9,
        "card: sizes; the multipliers, which change no shape, as in Granite 4's configurations",
        ("S" * 5 + "A" + "S" * 4) * 4,
        {"d_model": 2048, "n_heads": 32, "n_kv_heads": 8, "d_head": 64, "d_mlp": 8192, "n_experts": None,
         "d_channels": 4096, "d_state": 128, "window": None, "n_ctx": 131072, "d_vocab": 100352},
    ),
    "Granite-4.0-H-Tiny": Published(
        "GraniteMoeHybridConfig",
        GRANITE | {
            "attention_multiplier": 0.0078125, "hidden_size": 1536, "intermediate_size": 512, "logits_scaling": 6,
            "mamba_n_heads": 48, "num_attention_heads": 12, "num_experts_per_tok": 6, "num_key_value_heads": 4,
            "num_local_experts": 64, "router_aux_loss_coef": 0.0001, "shared_intermediate_size": 1024,
        },
        6.94e9,
        "card: sizes; the multipliers, which change no shape, as in Granite 4's configurations",
        ("S" * 5 + "A" + "S" * 4) * 4,
        {"d_model": 1536, "n_heads": 12, "n_kv_heads": 4, "d_head": 128, "d_mlp": 512, "n_experts": 64,
         "n_experts_per_token": 6, "d_channels": 3072, "d_state": 128, "n_ctx": 131072, "d_vocab": 100352},
    ),
    # Also fields that transformers does not read, which repeat others.
    "LFM2-1.2B": Published(
        "Lfm2Config",
        {
            "model_type": "lfm2", "architectures": ["Lfm2ForCausalLM"], "num_hidden_layers": 16, "vocab_size": 65536,
            "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8, "num_heads": 32,
            "full_attn_idxs": [2, 5, 8, 10, 12, 14], "block_auto_adjust_ff_dim": True, "block_dim": 2048,
            "block_ff_dim": 12288, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256, "block_norm_eps": 1e-5,
            "block_mlp_init_scale": 1.0, "block_out_init_scale": 1.0, "block_use_swiglu": True,
            "block_use_xavier_init": True, "conv_L_cache": 3, "conv_bias": False, "conv_dim": 2048,
            "conv_dim_out": 2048, "conv_use_xavier_init": True, "initializer_range": 0.02, "norm_eps": 1e-5,
            "max_position_embeddings": 128000, "rope_theta": 1000000.0, "theta": 1000000.0, "use_pos_enc": True,
            "use_cache": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 7, "torch_dtype": "bfloat16",
        },
        1.1703e9, "card", "SSASSASSASASASAS",
        {"d_model": 2048, "d_mlp": 8192, "n_heads": 32, "n_kv_heads": 8, "d_head": 64, "d_channels": 2048,
         "d_state": None, "d_conv": 3, "n_ctx": 128000, "d_vocab": 65536},
    ),
    "LFM2-8B-A1B": Published(
        "Lfm2MoeConfig",
        {
            "model_type": "lfm2_moe", "architectures": ["Lfm2MoeForCausalLM"], "num_hidden_layers": 24,
            "vocab_size": 65536, "hidden_size": 2048, "intermediate_size": 7168, "moe_intermediate_size": 1792,
            "num_attention_heads": 32, "num_key_value_heads": 8, "num_dense_layers": 2, "num_experts": 32,
            "num_experts_per_tok": 4, "norm_topk_prob": True, "routed_scaling_factor": 1.0, "use_expert_bias": True,
            "layer_types": ["full_attention" if layer in (2, 6, 10, 14, 18, 21) else "conv" for layer in range(24)],
            "conv_L_cache": 3, "conv_bias": False, "initializer_range": 0.02, "norm_eps": 1e-5,
            "max_position_embeddings": 128000, "rope_theta": 1000000.0, "use_cache": True, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 7, "dtype": "bfloat16",
        },
        8.3399e9, "card", "SSASSSASSSASSSASSSASSASS",
        {"d_model": 2048, "d_mlp": 7168, "n_heads": 32, "n_kv_heads": 8, "d_head": 64, "n_experts": 32,
         "n_experts_per_token": 4, "d_channels": 2048, "d_state": None, "d_conv": 3, "n_ctx": 128000},
    ),
    "Llama-3.2-1B": Published(
        "LlamaConfig",
        {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 16,
            "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072, "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3",
            },
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "attention_bias": False, "mlp_bias": False,
            "attention_dropout": 0.0, "pretraining_tp": 1, "tie_word_embeddings": True, "bos_token_id": 128000,
            "eos_token_id": 128001, "torch_dtype": "bfloat16",
        },
        1.236e9, "card", "A" * 16,
        {"d_model": 2048, "d_mlp": 8192, "n_heads": 32, "n_kv_heads": 8, "d_head": 64, "window": None, "d_state": None},
    ),
    "Qwen3-8B": Published(
        "Qwen3Config",
        {
            "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 36,
            "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960, "rope_theta": 1000000,
            "rope_scaling": None, "sliding_window": None, "use_sliding_window": False, "max_window_layers": 36,
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False, "attention_dropout": 0.0,
            "tie_word_embeddings": False, "bos_token_id": 151643, "eos_token_id": 151645, "torch_dtype": "bfloat16",
        },
        8.19e9, "card", "A" * 36,
        {"d_model": 4096, "d_mlp": 12288, "n_heads": 32, "n_kv_heads": 8, "d_head": 128, "window": None},
    ),
    "Gemma-2-2B": Published(
        "Gemma2Config",
        {
            "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "num_hidden_layers": 26,
            "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192, "rope_theta": 10000.0,
            "sliding_window": 4096, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0, "cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "attention_bias": False,
            "attention_dropout": 0.0, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
            "torch_dtype": "float32",
        },
        2.614e9, "card", "A" * 26,
        {"d_model": 2304, "d_mlp": 9216, "n_heads": 8, "n_kv_heads": 4, "d_head": 256, "window": None,
         "windows": (4096, None) * 13, "n_ctx": 8192},
    ),
    "Gemma-3-1B": Published(
        "Gemma3TextConfig",
        {
            "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 26,
            "vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912, "num_attention_heads": 4,
            "num_key_value_heads": 1, "head_dim": 256, "max_position_embeddings": 32768, "rope_theta": 1000000,
            "rope_local_base_freq": 10000, "rope_scaling": None, "sliding_window": 512, "sliding_window_pattern": 6,
            "query_pre_attn_scalar": 256, "attn_logit_softcapping": None, "final_logit_softcapping": None,
            "cache_implementation": "hybrid", "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
            "attention_bias": False, "attention_dropout": 0.0, "pad_token_id": 0, "bos_token_id": 2,
            "eos_token_id": [1, 106], "torch_dtype": "bfloat16",
        },
        1.0e9, "card", "A" * 26,
        {"d_model": 1152, "d_mlp": 6912, "n_heads": 4, "n_kv_heads": 1, "d_head": 256, "n_ctx": 32768,
         "windows": ((512,) * 5 + (None,)) * 4 + (512, 512)},
    ),
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
    # The defaults of transformers, which names this model, and layers as it counts them; three fields besides of the
    # makers' own class. The card says 7B.
    "Zamba-7B-v1": Published(
        "ZambaConfig",
        {
            "model_type": "zamba", "architectures": ["ZambaForCausalLM"], "vocab_size": 32000, "hidden_size": 3712,
            "num_hidden_layers": 76, "attn_layer_period": 6, "attn_layer_offset": 4, "n_mamba_heads": 2,
            "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 232, "mamba_conv_bias": True,
            "mamba_proj_bias": False, "hidden_mamba_act": "silu", "num_attention_heads": 16, "num_key_value_heads": 16,
            "attention_hidden_size": 7424, "attention_head_dim": 464, "intermediate_size": 14848, "hidden_act": "gelu",
            "rms_norm_eps": 1e-5, "time_step_min": 0.001, "time_step_max": 0.1, "time_step_floor": 1e-4,
            "max_position_embeddings": 4096, "tie_word_embeddings": True, "num_logits_to_keep": 1,
            "attention_dropout": 0.0, "use_mamba_kernels": True, "initializer_range": 0.02, "sliding_window": None,
            "rope_theta": 10000, "unk_token_id": 0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            "layers_block_type": ["hybrid" if kind == "H" else "mamba" for kind in ZAMBA], "use_cache": True,
        },
        7.23e9, "docstring", "".join(ZAMBA),
        {"d_model": 3712, "n_heads": 16, "d_head": 464, "d_mlp": 14848, "d_channels": 7424, "d_state": 16,
         "n_ctx": 4096},
    ),
    # Every sixth layer, and three of the last: the docstring of transformers, and its sizes. The card says 2.7B.
    "Zamba2-2.7B": Published(
        "Zamba2Config",
        {
            "model_type": "zamba2", "architectures": ["Zamba2ForCausalLM"], "vocab_size": 32000, "hidden_size": 2560,
            "num_hidden_layers": 54, "mamba_d_state": 64, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_ngroups": 1,
            "n_mamba_heads": 80, "mamba_headdim": 64, "num_attention_heads": 32, "num_key_value_heads": 32,
            "intermediate_size": 10240, "attention_hidden_size": 5120, "attention_head_dim": 160, "kv_channels": 80,
            "num_mem_blocks": 2, "adapter_rank": 128, "use_shared_attention_adapter": False, "use_mem_rope": False,
            "use_long_context": False, "add_bias_linear": False, "use_conv_bias": True, "rope_theta": 10000,
            "hidden_act": "gelu", "rms_norm_eps": 1e-5, "time_step_min": 0.001, "time_step_max": 0.1,
            "time_step_floor": 1e-4, "max_position_embeddings": 4096, "chunk_size": 256, "tie_word_embeddings": True,
            "hybrid_layer_ids": SHARED, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            "layers_block_type": ["hybrid" if layer in SHARED else "mamba" for layer in range(54)],
        },
        2.66e9, "docstring", "".join("H" if layer in SHARED else "S" for layer in range(54)),
        {"d_model": 2560, "n_heads": 32, "d_head": 160, "d_mlp": 10240, "d_channels": 5120, "n_ctx": 4096},
    ),
    # Sizes, factors and count of the card (456B, 45.9B of them active); fields as transformers' own conversion names
    # them, without the makers' `rotary_dim` of half a head, of which transformers knows nothing.
    "MiniMax-Text-01": Published(
        "MiniMaxConfig",
        {
            "model_type": "minimax", "architectures": ["MiniMaxForCausalLM"], "num_hidden_layers": 80,
            "vocab_size": 200064, "hidden_size": 6144, "intermediate_size": 9216, "num_attention_heads": 64,
            "num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 32, "num_experts_per_tok": 2,
            "layer_types": [*["linear_attention"] * 7, "full_attention"] * 10,
            "attn_type_list": [*[0] * 7, 1] * 10, "block_size": 256, "postnorm": True, "shared_intermediate_size": 0,
            "shared_moe_mode": "sigmoid", "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000000,
            "full_attn_alpha_factor": 3.5565588200778455, "full_attn_beta_factor": 1.0,
            "linear_attn_alpha_factor": 3.5565588200778455, "linear_attn_beta_factor": 1.0,
            "mlp_alpha_factor": 3.5565588200778455, "mlp_beta_factor": 1.0, "max_position_embeddings": 10240000,
            "attention_dropout": 0.0, "initializer_range": 0.02, "output_router_logits": False,
            "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0, "sliding_window": None,
            "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "use_cache": True,
            "torch_dtype": "bfloat16",
        },
        456e9, "card", "SSSSSSSA" * 10,
        {"d_model": 6144, "n_heads": 64, "n_kv_heads": 8, "d_head": 128, "d_mlp": 9216, "n_experts": 32,
         "n_experts_per_token": 2, "d_channels": 8192, "d_state": 128, "d_conv": 0, "n_ctx": 10240000},
    ),
}  # fmt: skip
