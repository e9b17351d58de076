"""Published configurations, as their config.json has them: what is made of them on the meta device.

Sizes stand in the models' cards; where a card says less than the configuration, the source says where the rest is from.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """One published model.

    Attributes:
        config: the class of its configuration in transformers.
        fields: of its config.json.
        parameters: in all, tied ones once; to one in a hundred.
        source: of the fields: "card", "paper", or the docstring of transformers.
        layers: the kinds of its layers, as the first letter of each: a(ttention), s(sm), h(ybrid), m(lp).
        sizes: fields of the lens's configuration that follow.
        active: parameters that a token uses, where those are fewer.
    """

    config: str
    fields: dict[str, Any]
    parameters: float
    source: str
    layers: str
    sizes: dict[str, Any]
    active: float | None = None


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

PUBLISHED = {
    "Granite-4.0-H-Micro": Published(
        "GraniteMoeHybridConfig",
        GRANITE | {
            "attention_multiplier": 0.015625, "hidden_size": 2048, "intermediate_size": 8192, "logits_scaling": 8,
            "mamba_n_heads": 64, "num_attention_heads": 32, "num_experts_per_tok": 0, "num_key_value_heads": 8,
            "num_local_experts": 0, "router_aux_loss_coef": 0.0, "shared_intermediate_size": 8192,
        },
        3.19e9,
        "card: sizes; the multipliers, which change no shape, as in Granite 4's configurations",
        ("s" * 5 + "a" + "s" * 4) * 4,
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
        ("s" * 5 + "a" + "s" * 4) * 4,
        {"d_model": 1536, "n_heads": 12, "n_kv_heads": 4, "d_head": 128, "d_mlp": 512, "n_experts": 64,
         "n_experts_per_token": 6, "d_channels": 3072, "d_state": 128, "n_ctx": 131072, "d_vocab": 100352},
        1.47e9,
    ),
}  # fmt: skip
