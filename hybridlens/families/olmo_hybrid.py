"""OLMo-Hybrid: gated delta rules with write strengths up to 2, and attention whose norms stand behind the branches.

Layers with a delta rule normalise what their branches read; layers with attention normalise what theirs write. Queries
and keys are normalised over all heads at once. Positions turn them only where `rope_theta` is a number: the released
models have none, while a configuration that says nothing means 10,000.

A write strength above 1 makes the state's share at an address change its sign (Grazzi et al. 2024, arXiv 2411.12537);
`linear_allow_neg_eigval` says whether there are such.

What transformers computes is exact, whatever is in its cache, as far as rounding allows.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hybridlens.blocks import Block, Branch
from hybridlens.config import LayerConfig, LensConfig, MlpConfig
from hybridlens.families.parts import (
    Norms,
    attention,
    attention_sizes,
    delta_sizes,
    gated_mlp,
    hooked_mlp,
    last_norm,
    model_sizes,
    pre_normed,
)
from hybridlens.families.spec import Family, check_fields, require, turning
from hybridlens.mixers.gated_delta import DeltaInputs, DeltaParts, DeltaWeights, GatedDelta
from hybridlens.mixers.gated_norm import GatedNorm
from hybridlens.mixers.rotary import Turning
from hybridlens.norms import NormStyle
from hybridlens.projections import Projection, Read

NORMS = Norms(NormStyle(rounding="after"))
KINDS = ("linear_attention", "full_attention")


def configure(config: Any) -> LensConfig:
    """What an OLMo-Hybrid is made of; refuses what the family was not built for."""
    check_fields(OLMO_HYBRID, config)
    require(config.hidden_act == "silu", "OLMo-Hybrid", "hidden_act", config.hidden_act, "'silu'")
    for kind in config.layer_types:
        require(kind in KINDS, "OLMo-Hybrid", "layer_types", kind, " or ".join(KINDS))
    sizes = attention_sizes(config, qk_norm=True)
    sizes = replace(sizes, rotary=_turning(config, sizes.d_head) is not None)
    recurrent, dense = delta_sizes(config), MlpConfig(config.intermediate_size)
    return model_sizes(
        "olmo_hybrid",
        config,
        [
            LayerConfig(attn=sizes, mlp=dense) if kind == "full_attention" else LayerConfig(ssm=recurrent, mlp=dense)
            for kind in config.layer_types
        ],
    )


def _turning(config: Any, d_head: int) -> Turning | None:
    """The rotary embedding, which turns whole heads; None where `rope_theta` is no number."""
    rope = config.rope_parameters or {}
    if rope.get("rope_theta") is None:
        return None
    part = rope.get("partial_rotary_factor")  # which the model would not look at
    require(part in (None, 1.0), "OLMo-Hybrid", "partial_rotary_factor", part, "1")
    return turning(config, d_head)


def _inputs(mixer: Any, x: Tensor) -> DeltaInputs:
    qkv = torch.cat([mixer.q_proj(x), mixer.k_proj(x), mixer.v_proj(x)], dim=-1)
    return DeltaInputs(qkv, mixer.g_proj(x), mixer.b_proj(x), mixer.a_proj(x))


def _weights(mixer: Any, read: Read) -> DeltaWeights:
    return DeltaWeights(read(mixer, "v_proj.weight"), read(mixer, "g_proj.weight"))


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, has, config = model.model.layers[layer], cfg.layers[layer], model.config
    mlp = gated_mlp(hf.mlp)
    if has.attn is None:
        mixer = hf.linear_attn
        norm = GatedNorm(mixer, "o_norm", mixer.o_norm.variance_epsilon, "norm_first", mixer.num_v_heads, rounded=True)
        strength, out = 2.0 if mixer.allow_neg_eigval else 1.0, Projection(mixer, "o_proj")
        delta = DeltaParts(mixer, _inputs, _weights, mixer.num_k_heads, norm, out, strength)
        return pre_normed(hf, cfg, layer, {"ssm": GatedDelta(cfg.recurrence(layer), delta, cfg.d_model)}, mlp, NORMS)
    normed: dict[str, Any] = {f"{role}_norm": NORMS.of(hf.self_attn, f"{role}_norm") for role in "qk"}
    rotary, embedding = _turning(config, has.attn.d_head), model.model.rotary_emb
    heads = attention(hf.self_attn, has.attn, cfg.d_model, rotary, embedding, joint_norm=True, **normed)
    branches = [
        Branch({"attn": heads}, None, NORMS.hooked(hf, "post_attention_layernorm", cfg)),
        Branch({"mlp": hooked_mlp(cfg, layer, mlp)}, None, NORMS.hooked(hf, "post_feedforward_layernorm", cfg)),
    ]
    return Block(branches, home=hf, d_model=cfg.d_model)


OLMO_HYBRID = Family(
    name="olmo_hybrid",
    architecture="OlmoHybridForCausalLM",
    other_fields={"linear_use_gate": (True,), "rope_theta": (), "rope_scaling": (None,)},
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "norm"),
)
