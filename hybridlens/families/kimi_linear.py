"""Kimi-Linear: delta rules with a decay for each channel of an address, and latent attention without positions.

Kimi delta attention makes the logits of its decay and of its output gate, a sigmoid, through a narrow layer. Attention
holds one latent a token and a part of its key that all heads share; nothing turns with positions. The first layers have
an MLP, the others experts, chosen in groups by sigmoids and a bias, beside shared ones.

Published configurations number layers from 1 (`linear_attn_config`), and have other names for sizes than transformers.
What transformers computes is exact, whatever is in its cache; its softplus rounds decays near 1 more than ours.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hybridlens.blocks import Block
from hybridlens.config import AttentionConfig, LatentConfig, LayerConfig, LensConfig, MlpConfig, RecurrentConfig
from hybridlens.families.parts import Norms, gated_mlp, last_norm, model_sizes, pre_normed
from hybridlens.families.spec import Family, check_fields, require
from hybridlens.mixers.gated_delta import DeltaInputs, DeltaParts, DeltaWeights, GatedDelta
from hybridlens.mixers.gated_norm import GatedNorm
from hybridlens.mixers.latent_attention import LatentAttention, LatentParts
from hybridlens.mlps import MoeParts
from hybridlens.projections import Held, Projection, Read
from hybridlens.routing import sigmoids

NORMS = Norms()
NAMED = ("full_attn_layers", "head_dim", "kda_layers", "num_heads", "short_conv_kernel_size")
"""Of `linear_attn_config`: what transformers makes its own fields of."""


def configure(config: Any) -> LensConfig:
    """What a Kimi-Linear is made of; refuses what the family was not built for."""
    check_fields(KIMI_LINEAR, config)
    _check(config)
    heads = config.num_attention_heads
    latent = LatentConfig(config.kv_lora_rank, config.qk_rope_head_dim, config.v_head_dim)
    sizes = AttentionConfig(heads, heads, config.qk_nope_head_dim + config.qk_rope_head_dim, latent=latent)
    width = config.linear_num_heads * config.linear_head_dim
    recurrent = RecurrentConfig(
        kind="kimi_delta",
        state_shape=(config.linear_num_heads, config.linear_head_dim, config.linear_head_dim),
        d_channels=width,
        d_conv_channels=3 * width,
        d_conv=config.linear_conv_kernel_dim,
        n_heads=config.linear_num_heads,
    )
    mixture = MlpConfig(config.moe_intermediate_size, config.num_local_experts, config.num_experts_per_tok, True)
    dense = MlpConfig(config.intermediate_size)
    kinds: list[dict[str, Any]] = [
        {"attn": sizes} if kind == "full_attention" else {"ssm": recurrent} for kind in config.layer_types
    ]
    mlps = [mixture if kind == "sparse" else dense for kind in config.mlp_layer_types]
    return model_sizes(
        "kimi_linear", config, [LayerConfig(mlp=mlp, **kind) for kind, mlp in zip(kinds, mlps, strict=True)]
    )


def _check(config: Any) -> None:
    """Refuse values whose computation is not built, or would be another than they say."""

    def need(holds: bool, field: str, expected: object) -> None:
        require(holds, "Kimi-Linear", field, getattr(config, field), expected)

    groups, experts, layers = config.n_group, config.num_local_experts, config.num_hidden_layers
    need(config.hidden_act == "silu", "hidden_act", "'silu'")
    need(config.q_lora_rank is None, "q_lora_rank", None)
    need(config.num_key_value_heads == config.num_attention_heads, "num_key_value_heads", config.num_attention_heads)
    kinds = ("linear_attention", "full_attention")
    need(all(kind in kinds for kind in config.layer_types), "layer_types", f"{' or '.join(kinds)} for each layer")
    need(len(config.mlp_layer_types) == layers, "mlp_layer_types", f"'dense' or 'sparse' for each of {layers} layers")
    need(experts % groups == 0 and experts >= 2 * groups, "n_group", f"groups of at least two of {experts} experts")
    need(config.topk_group <= groups, "topk_group", f"at most n_group = {groups}")
    most = config.topk_group * experts // groups  # in the groups that are kept
    need(config.num_experts_per_tok <= most, "num_experts_per_tok", f"at most {most}")
    unknown = sorted(set(getattr(config, "linear_attn_config", None) or {}) - set(NAMED))
    require(not unknown, "Kimi-Linear", "linear_attn_config", ", ".join(unknown), f"nothing but {', '.join(NAMED)}")


def _inputs(mixer: Any, x: Tensor) -> DeltaInputs:
    qkv = torch.cat([mixer.q_proj(x), mixer.k_proj(x), mixer.v_proj(x)], dim=-1)
    decay = mixer.forget_gate.f_b_proj(mixer.forget_gate.f_a_proj(x))
    return DeltaInputs(qkv, mixer.g_b_proj(mixer.g_a_proj(x)), mixer.b_proj(x), decay)


def _weights(mixer: Any, read: Read) -> DeltaWeights:
    narrow, wide = read(mixer, "g_a_proj.weight"), read(mixer, "g_b_proj.weight")
    return DeltaWeights(read(mixer, "v_proj.weight"), wide @ narrow)


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, has, config = model.model.layers[layer], cfg.layers[layer], model.config
    mixer, mlp = hf.self_attn, hf.mlp
    assert has.mlp is not None
    if has.attn is not None:
        names = {"q": "q_proj", "k": "kv_a_proj_with_mqa", "v": "kv_b_proj", "o": "o_proj"}
        maps: dict[str, Any] = {role: Projection(mixer, name) for role, name in names.items()}
        latent = LatentParts(**maps, scale=has.attn.d_head**-0.5, norm=NORMS.of(mixer, "kv_a_layernorm"))
        mixers = {"attn": LatentAttention(has.attn, latent, cfg.d_model)}
    else:
        eps, heads = mixer.o_norm.variance_epsilon, mixer.num_heads
        rounding: Any = {"rounded": True, "rounded_between": False}
        norm = GatedNorm(mixer, "o_norm", eps, "norm_first", heads, **rounding, activation=torch.sigmoid)
        out, rates = Projection(mixer, "o_proj"), mixer.forget_gate
        delta = DeltaParts(mixer, _inputs, _weights, heads, norm, out, rates=rates, by_channel=True)
        mixers = {"ssm": GatedDelta(cfg.recurrence(layer), delta, cfg.d_model)}
    if has.mlp.n_experts is None:
        return pre_normed(hf, cfg, layer, mixers, gated_mlp(mlp), NORMS)
    route = partial(
        sigmoids,
        bias=Held(mlp.gate, "e_score_correction_bias"),
        floor=1e-20,
        renormalise=config.norm_topk_prob,
        scale=config.routed_scaling_factor,
        groups=config.n_group,
        kept=config.topk_group,
    )
    parts = MoeParts(mlp.gate, mlp.experts, route, wide=True, shared=gated_mlp(mlp.shared_experts))
    return pre_normed(hf, cfg, layer, mixers, parts, NORMS)


KIMI_LINEAR = Family(
    name="kimi_linear",
    architecture="KimiLinearForCausalLM",
    other_fields={
        "first_k_dense_replace": (),
        "linear_attn_config": (),
        "mla_use_nope": (True,),
        "moe_layer_freq": (1,),
        "moe_router_activation_func": ("sigmoid",),
        "num_nextn_predict_layers": (0,),
        "use_grouped_topk": (True,),
        "rope_theta": (),
        "rope_scaling": (None,),
    },
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "norm"),
)
