"""Bamba: layers of Mamba-2 or of attention, each with a gated MLP; half of each head turns with its position.

Where transformers is inexact: it counts positions anew from 0 in every call that is not given `position_ids`, and keeps
Δ within `time_step_limit` only where it reads several tokens at once. Here a text that is read in pieces, or token by
token, gives what the model gives for all of it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from hybridlens.blocks import Block
from hybridlens.config import LayerConfig, LensConfig, MlpConfig
from hybridlens.families.parts import (
    Norms,
    attention,
    attention_sizes,
    gated_mlp,
    last_norm,
    mamba2,
    mamba2_sizes,
    model_sizes,
    pre_normed,
)
from hybridlens.families.spec import Family, check_fields, require, turning

NORMS = Norms()


def configure(config: Any) -> LensConfig:
    """What a Bamba is made of; refuses what the family was not built for."""
    check_fields(BAMBA, config)
    require(config.hidden_act in ("silu", "swish"), "Bamba", "hidden_act", config.hidden_act, "'silu'")
    limit, last = config.time_step_limit, config.num_hidden_layers - 1
    require(limit is not None and len(limit) == 2, "Bamba", "time_step_limit", limit, "two numbers")
    for layer in config.attn_layer_indices or ():
        require(0 <= layer <= last, "Bamba", "an entry of attn_layer_indices", layer, f"one of the layers 0..{last}")
    sizes = attention_sizes(config)
    rotary = turning(config, sizes.d_head)
    turned = 0 if rotary is None else rotary.dims
    stated = getattr(config, "attn_rotary_emb", turned)
    require(stated == turned, "Bamba", "attn_rotary_emb", stated, f"{turned}, what rope_parameters turn of a head")
    heads, width = config.mamba_n_heads, config.mamba_d_head
    state, groups = config.mamba_d_state, config.mamba_n_groups
    mixer = mamba2_sizes(heads, width, state, groups, config.mamba_d_conv, "Bamba")
    mlp = MlpConfig(config.intermediate_size)
    recurrent = LayerConfig(ssm=mixer, mlp=mlp)
    attending = LayerConfig(attn=replace(sizes, rotary=rotary is not None), mlp=mlp)
    return model_sizes(
        "bamba", config, [attending if kind == "full_attention" else recurrent for kind in config.layer_types]
    )


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, has = model.model.layers[layer], cfg.layers[layer]
    if has.attn is not None:
        rotary = turning(model.config, has.attn.d_head)
        mixers = {"attn": attention(hf.self_attn, has.attn, cfg.d_model, rotary, model.model.rotary_emb)}
    else:
        mixers = {"ssm": mamba2(hf.mamba, cfg.recurrence(layer), cfg.d_model)}
    return pre_normed(
        hf, cfg, layer, mixers, gated_mlp(hf.feed_forward), NORMS, ("input_layernorm", "pre_ff_layernorm")
    )


BAMBA = Family(
    name="bamba",
    architecture="BambaForCausalLM",
    other_fields={
        "attn_rotary_emb": (), "use_mamba_kernels": (), "rope_theta": (), "rope_scaling": (None,),
        "partial_rotary_factor": (),
    },
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "final_layernorm"),
)  # fmt: skip
