"""Nemotron-H: every layer is one branch, Mamba-2, attention without positions, an MLP or a mixture of experts.

MLPs and experts have no gate and square what their ReLU gives. Experts are chosen among the best groups by sigmoids
with a bias that balances their load, may work in a narrower space, and stand beside an expert that all tokens go to.

Where transformers is inexact: it keeps Δ from falling below `time_step_min` where it reads several tokens at once, and
not where it reads one. Here one token is kept as several are, so that every way of reading a text gives what the model
gives for all of it. Its `time_step_limit` it does not read. Heads for several tokens ahead (MTP) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from hybridlens.blocks import Block, Branch
from hybridlens.config import LayerConfig, LensConfig, MlpConfig
from hybridlens.families.parts import (
    Norms,
    attention,
    attention_sizes,
    hooked_mlp,
    last_norm,
    mamba2,
    mamba2_sizes,
    model_sizes,
)
from hybridlens.families.spec import Family, check_fields, require
from hybridlens.mlps import MlpParts, MoeParts
from hybridlens.norms import NormStyle
from hybridlens.projections import Held, Projection
from hybridlens.routing import sigmoids

NORMS = Norms(NormStyle(rounding="after"))
UNREAD: Mapping[str, Any] = {
    "attention_bias": False, "mamba_proj_bias": False, "sliding_window": None, "residual_in_fp32": False,
    "tie_word_embeddings": False, "n_shared_experts": 1, "time_step_limit": (0.0, math.inf),
}  # fmt: skip
"""Fields that transformers does not read, and the values that mean what it does."""
TWICE = {
    "attention_head_dim": "head_dim", "num_query_groups": "num_key_value_heads",
    "rms_norm_eps": "layer_norm_epsilon", "norm_eps": "layer_norm_epsilon",
}  # fmt: skip
"""Fields of published files, and those that transformers reads instead."""


def configure(config: Any) -> LensConfig:
    """What a Nemotron-H is made of; refuses what the family was not built for."""
    check_fields(NEMOTRON_H, config)
    for field, value in UNREAD.items():
        given = getattr(config, field)
        given = tuple(given) if isinstance(given, list) else given
        require(given == value, "Nemotron-H", field, given, repr(value))
    for field, read in TWICE.items():
        given, value = getattr(config, field, getattr(config, read)), getattr(config, read)
        require(given == value, "Nemotron-H", field, given, f"{read} = {value}")
    act = config.mamba_hidden_act
    require(act in ("silu", "swish"), "Nemotron-H", "mamba_hidden_act", act, "'silu'")
    sizes = (config.mamba_num_heads, config.mamba_head_dim, config.ssm_state_size, config.n_groups, config.conv_kernel)
    kinds = {
        "linear_attention": LayerConfig(ssm=mamba2_sizes(*sizes, family="Nemotron-H", field="n_groups")),
        "full_attention": LayerConfig(attn=attention_sizes(config)),
        "mlp": LayerConfig(mlp=MlpConfig(config.intermediate_size, gated=False)),
        "moe": LayerConfig(mlp=_mixture(config)),
    }
    for kind in config.layer_types:
        require(kind in kinds, "Nemotron-H", "a layer's type", kind, f"one of {', '.join(kinds)}")
    return model_sizes("nemotron_h", config, [kinds[kind] for kind in config.layer_types], act_fn=config.mlp_hidden_act)


def _mixture(config: Any) -> MlpConfig | None:
    """Sizes of the mixtures; None for a model that has none, whose configuration may say anything of them."""
    if "moe" not in config.layer_types:
        return None
    experts, chosen, groups, kept = (
        getattr(config, field) for field in ("n_routed_experts", "num_experts_per_tok", "n_group", "topk_group")
    )
    expected = f"a divisor of n_routed_experts = {experts}, with at least 2 experts a group"
    require(experts % groups == 0 and experts // groups > 1, "Nemotron-H", "n_group", groups, expected)
    require(kept <= groups, "Nemotron-H", "topk_group", kept, f"at most n_group = {groups}")
    room = kept * experts // groups
    require(chosen <= room, "Nemotron-H", "num_experts_per_tok", chosen, f"at most {room}, what the best groups hold")
    return MlpConfig(config.moe_intermediate_size, experts, chosen, shared_expert=True, gated=False)


def _ungated(mlp: Any) -> MlpParts:
    return MlpParts(Projection(mlp, "up_proj"), Projection(mlp, "down_proj"), mlp.act_fn)


def _experts(mixer: Any, config: Any) -> MoeParts:
    route = partial(
        sigmoids, bias=Held(mixer.gate, "e_score_correction_bias"), floor=1e-20, renormalise=config.norm_topk_prob,
        scale=float(config.routed_scaling_factor), groups=config.n_group, kept=config.topk_group,
    )  # fmt: skip
    narrow, widen = (
        None if config.moe_latent_size is None else Projection(mixer, name)
        for name in ("fc1_latent_proj", "fc2_latent_proj")
    )
    shared = _ungated(mixer.shared_experts)
    return MoeParts(mixer.gate, mixer.experts, route, wide=True, shared=shared, narrow=narrow, widen=widen)


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, has = model.model.layers[layer], cfg.layers[layer]
    mixer, part = hf.mixer, dict[str, nn.Module]()
    if has.attn is not None:
        part["attn"] = attention(mixer, has.attn, cfg.d_model)
    elif has.ssm is not None:
        part["ssm"] = mamba2(mixer, has.ssm, cfg.d_model)
    else:
        assert has.mlp is not None
        parts = _ungated(mixer) if has.mlp.n_experts is None else _experts(mixer, model.config)
        part["mlp"] = hooked_mlp(cfg, layer, parts)
    return Block([Branch(part, NORMS.hooked(hf, "norm", cfg))], home=hf, d_model=cfg.d_model)


NEMOTRON_H = Family(
    name="nemotron_h",
    architecture="NemotronHForCausalLM",
    other_fields=dict.fromkeys((*TWICE, "rope_theta", "rope_scaling", "partial_rotary_factor"), ()),
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "norm_f"),
    logits_in_float32=True,
    spare_tensors=(r"^mtp\.",),
)
