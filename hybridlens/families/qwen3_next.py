"""Qwen3-Next: gated delta rules, attention with a gate packed beside its query, and mixtures with a shared expert.

Norms multiply by 1 + w; queries and keys are normalised per head; rotary embedding turns a part of each head.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hybridlens.blocks import Block
from hybridlens.config import LayerConfig, LensConfig, MlpConfig
from hybridlens.families.parts import Norms, attention, attention_sizes, delta_sizes, gated_mlp, last_norm, pre_normed
from hybridlens.families.spec import Family, check_fields, eos_ids, require, turning
from hybridlens.mixers.gated_delta import DeltaInputs, DeltaParts, DeltaWeights, GatedDelta
from hybridlens.mixers.gated_norm import GatedNorm
from hybridlens.mlps import MoeParts
from hybridlens.norms import NormStyle
from hybridlens.projections import Projection, Read
from hybridlens.routing import softmax_first

NORMS = Norms(NormStyle(offset=1.0, rounding="after"), eps="eps")


def configure(config: Any) -> LensConfig:
    """What a Qwen3-Next is made of; refuses what the family was not built for."""
    check_fields(QWEN3_NEXT, config)
    require(config.hidden_act == "silu", "Qwen3-Next", "hidden_act", config.hidden_act, "'silu'")
    sizes = attention_sizes(config, rotary=turning(config, config.head_dim) is not None, qk_norm=True, gated=True)
    recurrent = delta_sizes(config)
    dense = MlpConfig(config.intermediate_size)
    mixture = MlpConfig(config.moe_intermediate_size, config.num_experts, config.num_experts_per_tok, True)

    def sparse(layer: int) -> bool:
        among = layer not in config.mlp_only_layers and config.num_experts > 0
        return among and (layer + 1) % config.decoder_sparse_step == 0

    return LensConfig(
        family="qwen3_next",
        layers=tuple(
            LayerConfig(
                attn=sizes if kind == "full_attention" else None,
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


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, has, config = model.model.layers[layer], cfg.layers[layer], model.config
    assert has.mlp is not None
    if has.attn is not None:
        normed = {f"{role}_norm": NORMS.of(hf.self_attn, f"{role}_norm") for role in "qk"}
        rotary, embedding = turning(config, has.attn.d_head), model.model.rotary_emb
        mixers = {"attn": attention(hf.self_attn, has.attn, cfg.d_model, rotary, embedding, packed_gate=True, **normed)}
    else:
        mixer = hf.linear_attn
        norm = GatedNorm(mixer, "norm", mixer.norm.variance_epsilon, "norm_first", mixer.num_v_heads, rounded=True)
        delta = DeltaParts(mixer, _inputs, _weights, mixer.num_k_heads, norm, Projection(mixer, "out_proj"))
        mixers = {"ssm": GatedDelta(cfg.recurrence(layer), delta, cfg.d_model)}
    if has.mlp.n_experts is None:
        parts = gated_mlp(hf.mlp)
    else:
        shared, gate = gated_mlp(hf.mlp.shared_expert), Projection(hf.mlp, "shared_expert_gate")
        route = partial(softmax_first, renormalise=config.norm_topk_prob)
        parts = MoeParts(hf.mlp.gate, hf.mlp.experts, route, shared=shared, shared_gate=gate)
    return pre_normed(hf, cfg, layer, mixers, parts, NORMS)


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
    final_norm=partial(last_norm, NORMS, "norm"),
)
