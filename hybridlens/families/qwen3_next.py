"""Qwen3-Next: gated delta rules, attention with a gate packed beside its query, and mixtures with a shared expert.

Norms multiply by 1 + w; queries and keys are normalised per head; rotary embedding turns a part of each head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridlens.blocks import Block
from hybridlens.config import AttentionConfig, LayerConfig, LensConfig, MlpConfig, RecurrentConfig
from hybridlens.families.layers import gated_mlp, pre_normed
from hybridlens.families.spec import Family, check_fields, eos_ids, require, turning
from hybridlens.mixers.attention import AttentionParts, HookedAttention
from hybridlens.mixers.gated_delta import DeltaInputs, DeltaParts, DeltaWeights, GatedDelta
from hybridlens.mixers.gated_norm import GatedNorm
from hybridlens.mixers.rotary import Rotary
from hybridlens.mlps import MoeParts
from hybridlens.norms import HookedNorm, Norm, NormStyle
from hybridlens.projections import Projection, Read

STYLE = NormStyle(offset=1.0, rounding="after")


def configure(config: Any) -> LensConfig:
    """What a Qwen3-Next is made of; refuses what the family was not built for."""
    check_fields(QWEN3_NEXT, config)
    require(config.hidden_act == "silu", "Qwen3-Next", "hidden_act", config.hidden_act, "'silu'")
    heads, keys = config.linear_num_value_heads, config.linear_num_key_heads
    require(heads % keys == 0, "Qwen3-Next", "linear_num_key_heads", keys, f"a divisor of {heads} value heads")
    attention = AttentionConfig(
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        d_head=config.head_dim,
        rotary=turning(config, config.head_dim) is not None,
        qk_norm=True,
        gated=True,
    )
    values = heads * config.linear_value_head_dim
    recurrent = RecurrentConfig(
        kind="gated_delta",
        state_shape=(heads, config.linear_value_head_dim, config.linear_key_head_dim),
        d_channels=values,
        d_conv_channels=values + 2 * keys * config.linear_key_head_dim,
        d_conv=config.linear_conv_kernel_dim,
        n_heads=heads,
    )
    dense = MlpConfig(config.intermediate_size)
    mixture = MlpConfig(config.moe_intermediate_size, config.num_experts, config.num_experts_per_tok, True)

    def sparse(layer: int) -> bool:
        among = layer not in config.mlp_only_layers and config.num_experts > 0
        return among and (layer + 1) % config.decoder_sparse_step == 0

    return LensConfig(
        family="qwen3_next",
        layers=tuple(
            LayerConfig(
                attn=attention if kind == "full_attention" else None,
                ssm=None if kind == "full_attention" else recurrent,
                mlp=mixture if sparse(layer) else dense,
            )
            for layer, kind in enumerate(config.layer_types)
        ),
        d_model=config.hidden_size,
        d_vocab=config.vocab_size,
        n_ctx=config.max_position_embeddings,
        act_fn=config.hidden_act,
        eos_token_ids=eos_ids(config),
    )


def _inputs(mixer: Any, x: Tensor) -> DeltaInputs:
    """Queries, keys and values behind one another; the file has them by key head, as it has gates and strengths."""
    q, k, v, z, b, a = mixer.fix_query_key_value_ordering(mixer.in_proj_qkvz(x), mixer.in_proj_ba(x))
    return DeltaInputs(torch.cat([part.flatten(2) for part in (q, k, v)], dim=-1), z.flatten(2), b, a)


def _weights(mixer: Any, read: Read) -> DeltaWeights:
    rows = read(mixer, "in_proj_qkvz.weight").unflatten(0, (mixer.num_k_heads, -1))
    keys, values = 2 * mixer.head_k_dim, mixer.head_v_dim * mixer.num_v_heads // mixer.num_k_heads
    _, v, z = rows.split([keys, values, values], dim=1)
    return DeltaWeights(v.flatten(0, 1), z.flatten(0, 1))


def _normed(owner: Any, name: str) -> Norm:
    return Norm(owner, name, getattr(owner, name).eps, STYLE)


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, has, config = model.model.layers[layer], cfg.layers[layer], model.config
    assert has.mlp is not None
    if has.attn is not None:
        attn, rotary = hf.self_attn, turning(config, config.head_dim)
        attention = AttentionParts(
            q=Projection(attn, "q_proj"),
            k=Projection(attn, "k_proj"),
            v=Projection(attn, "v_proj"),
            o=Projection(attn, "o_proj"),
            scale=has.attn.d_head**-0.5,
            rotary=None if rotary is None else Rotary(model.model.rotary_emb, rotary),
            q_norm=_normed(attn, "q_norm"),
            k_norm=_normed(attn, "k_norm"),
            packed_gate=True,
        )
        mixers = {"attn": HookedAttention(has.attn, attention, cfg.d_model)}
    else:
        mixer = hf.linear_attn
        norm = GatedNorm(mixer, "norm", mixer.norm.variance_epsilon, "norm_first", mixer.num_v_heads, rounded=True)
        delta = DeltaParts(mixer, _inputs, _weights, mixer.num_k_heads, norm, Projection(mixer, "out_proj"))
        mixers = {"ssm": GatedDelta(cfg.recurrence(layer), delta, cfg.d_model)}
    if has.mlp.n_experts is None:
        parts = gated_mlp(hf.mlp)
    else:
        shared, gate = gated_mlp(hf.mlp.shared_expert), Projection(hf.mlp, "shared_expert_gate")
        parts = MoeParts(hf.mlp.gate, hf.mlp.experts, config.norm_topk_prob, shared, gate)
    norms = _normed(hf, "input_layernorm"), _normed(hf, "post_attention_layernorm")
    return pre_normed(hf, cfg, layer, mixers, parts, norms)


def _final_norm(model: Any, cfg: LensConfig) -> HookedNorm:
    return HookedNorm(_normed(model.model, "norm"), cfg.d_model)


QWEN3_NEXT = Family(
    name="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    other_fields={
        "rope_theta": (),
        "rope_scaling": (None,),
        "partial_rotary_factor": (),
        "full_attention_interval": (),
    },
    configure=configure,
    block=_block,
    final_norm=_final_norm,
)
