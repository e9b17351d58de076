"""Granite 4 (granitemoehybrid): Mamba-2 or attention by layer, and experts beside a shared MLP that packs gate and up.

Each branch is multiplied before it is added, so that the hook points of what a part writes hold what is really added.
Scores have a scale of their own, and there is no rotary embedding unless `position_embedding_type` is "rope". Without
experts (`num_local_experts` 0) the shared MLP is the layer's only one.

transformers keeps the step size within `time_step_limit` in passes of several tokens and not in those of one; here it
is kept in both, so that a text read token by token is the text read at once. Where no layer has attention it cannot go
on from a cache of its own; here it can.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

from torch import nn

from hybridlens.blocks import Block
from hybridlens.config import LayerConfig, LensConfig, MlpConfig
from hybridlens.families.parts import (
    Norms,
    attention,
    attention_sizes,
    last_norm,
    mamba2,
    mamba2_sizes,
    model_sizes,
    pre_normed,
)
from hybridlens.families.spec import Family, check_fields, require, turning
from hybridlens.mixers.rotary import Turning
from hybridlens.mlps import MlpParts, MoeParts
from hybridlens.projections import Projection
from hybridlens.routing import softmax_last

NORMS = Norms()
MIXERS = {"linear_attention": "mamba", "full_attention": "self_attn"}
"""What each kind of layer mixes tokens with, by its module's name."""


def configure(config: Any) -> LensConfig:
    """What a Granite 4 is made of; refuses what the family was not built for."""
    check_fields(GRANITEMOEHYBRID, config)
    odd = next((kind for kind in config.layer_types if kind not in MIXERS), None)
    require(odd is None, "Granite", "a layer of layer_types", odd, f"one of {', '.join(MIXERS)}")
    require(config.hidden_act in ("silu", "swish"), "Granite", "hidden_act", config.hidden_act, "'silu'")
    positions, limit = config.position_embedding_type, config.time_step_limit
    known = (None, "nope", "rope")
    require(positions in known, "Granite", "position_embedding_type", positions, "'rope', 'nope' or none")
    require(limit is not None and len(limit) == 2, "Granite", "time_step_limit", limit, "two numbers")
    shared = config.shared_intermediate_size
    require(shared > 0, "Granite", "shared_intermediate_size", shared, "at least 1")
    experts, used = config.num_local_experts, config.num_experts_per_tok
    require(used <= experts, "Granite", "num_experts_per_tok", used, f"at most num_local_experts = {experts}")
    sizes = attention_sizes(config)
    sizes = replace(sizes, rotary=_turning(config, sizes.d_head) is not None)
    heads, width, groups = config.mamba_n_heads, config.mamba_d_head, config.mamba_n_groups
    recurrent = mamba2_sizes(heads, width, config.mamba_d_state, groups, config.mamba_d_conv, "Granite")
    dense = MlpConfig(shared)
    mlp = MlpConfig(config.intermediate_size, experts, used, shared_expert=True) if experts else dense
    kinds = {
        "linear_attention": LayerConfig(ssm=recurrent, mlp=mlp),
        "full_attention": LayerConfig(attn=sizes, mlp=mlp),
    }
    return model_sizes("granitemoehybrid", config, [kinds[kind] for kind in config.layer_types])


def _turning(config: Any, d_head: int) -> Turning | None:
    """Its rotary embedding, of whole heads; None for none."""
    if config.position_embedding_type != "rope":
        return None
    made = turning(config, d_head)
    part = (config.rope_parameters or {}).get("partial_rotary_factor")  # which the library does not read
    require(made is not None and made.dims == d_head, "Granite", "partial_rotary_factor", part, "1 or none")
    return made


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, has, config = model.model.layers[layer], cfg.layers[layer], model.config
    added, mixers = config.residual_multiplier, dict[str, nn.Module]()
    if has.attn is not None:
        out = Projection(hf.self_attn, "o_proj", scale=added)
        turns, embedding = _turning(config, has.attn.d_head), model.model.rotary_emb
        scale = config.attention_multiplier
        mixers["attn"] = attention(hf.self_attn, has.attn, cfg.d_model, turns, embedding, o=out, scale=scale)
    else:
        mixers["ssm"] = mamba2(hf.mamba, cfg.recurrence(layer), cfg.d_model, added)
    shared = MlpParts(
        gate=Projection(hf.shared_mlp, "input_linear", part=(0, 2)),
        up=Projection(hf.shared_mlp, "input_linear", part=(1, 2)),
        down=Projection(hf.shared_mlp, "output_linear", scale=added),
        act=hf.shared_mlp.activation,
    )
    mlp, sparse = shared, hf.block_sparse_moe
    if sparse is not None:
        mlp = MoeParts(sparse.router, sparse.experts, softmax_last, shared=shared, scale=added)
    return pre_normed(hf, cfg, layer, mixers, mlp, NORMS)


def _over_scaling(config: Any) -> float:
    return 1.0 / config.logits_scaling


GRANITEMOEHYBRID = Family(
    name="granitemoehybrid",
    architecture="GraniteMoeHybridForCausalLM",
    other_fields={
        "rope_theta": (),
        "rope_scaling": (None,),
        "init_method": (),
        "normalization_function": ("rmsnorm",),
    },
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "norm"),
    embed_scale=attrgetter("embedding_multiplier"),
    unembed_scale=_over_scaling,
)
