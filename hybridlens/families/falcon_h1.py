"""Falcon-H1: attention and Mamba-2 side by side in each layer, and a multiplier at every step (muP)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from transformers.models.falcon_h1.modeling_falcon_h1 import compute_mup_vector

from hybridlens.blocks import Block
from hybridlens.config import LayerConfig, LensConfig, MlpConfig
from hybridlens.families.parts import (
    Norms,
    attention,
    attention_sizes,
    last_norm,
    mamba2_sizes,
    model_sizes,
    pre_normed,
)
from hybridlens.families.spec import Family, check_fields, require, turning
from hybridlens.mixers.gated_norm import GatedNorm, Order
from hybridlens.mixers.mamba2 import Mamba2, Mamba2Parts
from hybridlens.mlps import MlpParts
from hybridlens.projections import Projection

NORMS = Norms()


def configure(config: Any) -> LensConfig:
    """What a Falcon-H1 is made of; refuses what the family was not built for."""
    check_fields(FALCON_H1, config)
    width = config.mamba_d_ssm if config.mamba_d_ssm is not None else int(config.mamba_expand * config.hidden_size)
    heads = config.mamba_n_heads * config.mamba_d_head
    require(config.hidden_act in ("silu", "swish"), "Falcon-H1", "hidden_act", config.hidden_act, "'silu'")
    require(heads == width, "Falcon-H1", "mamba_n_heads * mamba_d_head", heads, f"mamba_d_ssm = {width}")
    sizes = attention_sizes(config)
    sizes = replace(sizes, rotary=turning(config, sizes.d_head) is not None)
    taps, groups = config.mamba_d_conv, config.mamba_n_groups
    recurrent = mamba2_sizes(config.mamba_n_heads, config.mamba_d_head, config.mamba_d_state, groups, taps, "Falcon-H1")
    layer = LayerConfig(attn=sizes, ssm=recurrent, mlp=MlpConfig(config.intermediate_size))
    return model_sizes("falcon_h1", config, (layer,) * config.num_hidden_layers)


def _by_channel(config: Any, mixer: Any) -> Tensor:
    """A mixer's channel multipliers; no file holds them, so that of a model without weights they are made anew."""
    if mixer.mup_vector.device.type != "meta":
        return mixer.mup_vector
    with torch.device("cpu"):
        return compute_mup_vector(config).to(config.dtype or torch.float32)


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, config = model.model.layers[layer], model.config
    attn, mixer, mlp = hf.self_attn, hf.mamba, hf.feed_forward
    enters, leaves = config.attention_in_multiplier, config.attention_out_multiplier
    heads = attention(
        attn,
        cfg.attention(layer),
        cfg.d_model,
        turning(config, cfg.attention(layer).d_head),
        model.model.rotary_emb,
        q=Projection(attn, "q_proj", enters),
        k=Projection(attn, "k_proj", enters, config.key_multiplier),
        v=Projection(attn, "v_proj", enters),
        o=Projection(attn, "o_proj", scale=leaves),
    )
    order: Order = "gate_only"
    if config.mamba_rms_norm:
        order = "norm_first" if config.mamba_norm_before_gate else "gate_first"
    eps = getattr(mixer.norm, "variance_epsilon", 0.0)  # without a norm the module is an identity
    recurrence = Mamba2Parts(
        mixer=mixer,
        project=Projection(mixer, "in_proj", config.ssm_in_multiplier),
        groups=config.mamba_n_groups,
        limit=(float(config.time_step_limit[0]), float(config.time_step_limit[1])),
        norm=GatedNorm(mixer, "norm", eps, order, config.mamba_n_groups),
        out=Projection(mixer, "out_proj", scale=config.ssm_out_multiplier),
        by_channel=partial(_by_channel, config),
    )
    dense = MlpParts(
        gate=Projection(mlp, "gate_proj", scale=config.mlp_multipliers[0]),
        up=Projection(mlp, "up_proj"),
        down=Projection(mlp, "down_proj", scale=config.mlp_multipliers[1]),
        act=mlp.act_fn,
    )
    mixers = {"ssm": Mamba2(cfg.recurrence(layer), recurrence, cfg.d_model), "attn": heads}
    return pre_normed(hf, cfg, layer, mixers, dense, NORMS, ("input_layernorm", "pre_ff_layernorm"))


FALCON_H1 = Family(
    name="falcon_h1",
    architecture="FalconH1ForCausalLM",
    other_fields={"rope_theta": (), "rope_scaling": (None,), "num_logits_to_keep": (), "mamba_use_mlp": (True,)},
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "final_layernorm"),
    embed_scale=attrgetter("embedding_multiplier"),
    unembed_scale=attrgetter("lm_head_multiplier"),
)
