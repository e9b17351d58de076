"""MiniMax: lightning attention or attention by layer, and experts; the stream goes on behind its norms.

A layer adds what its mixer and its experts write, each times a number (beta), to a multiple (alpha) of what the norm
before them gives, and not to the stream that entered: so the stream is no sum of what is written to it, and what needs
one (direct attribution, paths, edges, circuits) is refused. Heads of lightning attention decay by fixed numbers, fewer
tokens in early layers than in late ones, which the model holds beside its weights (`slope_rate`).

The makers' code turns half of each head with positions (`rotary_dim`); transformers turns whole ones, and a
configuration that asks for a part is refused.

transformers counts tokens by the cache of layer 0. Where that has lightning attention, positions begin again at 0 in
every cached call without `position_ids`, and a chunk of several tokens is masked as if nothing had been read before it;
its state is kept in the model's dtype. Here a text read in pieces is the text read at once, its state float32.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from hybridlens.blocks import Block, Branch
from hybridlens.config import LayerConfig, LensConfig, MlpConfig, RecurrentConfig
from hybridlens.families.parts import Norms, attention, attention_sizes, hooked_mlp, last_norm, model_sizes
from hybridlens.families.spec import Family, check_fields, require, turning
from hybridlens.mixers.gated_norm import GatedNorm
from hybridlens.mixers.lightning import Lightning, LightningParts
from hybridlens.mixers.rotary import Turning
from hybridlens.mlps import MoeParts
from hybridlens.projections import Projection
from hybridlens.routing import softmax_first

NORMS = Norms()
KINDS = ("linear_attention", "full_attention")
"""Of layers, numbered as `attn_type_list` has them."""


def configure(config: Any) -> LensConfig:
    """What a MiniMax is made of; refuses what the family was not built for."""
    check_fields(MINIMAX, config)
    _check(config)
    sizes = attention_sizes(config)
    sizes = replace(sizes, rotary=_turning(config, sizes.d_head) is not None)
    state = (sizes.n_heads, sizes.d_head, sizes.d_head)
    recurrent = RecurrentConfig("lightning", state, sizes.n_heads * sizes.d_head, 0, 0, sizes.n_heads)
    mlp = MlpConfig(config.intermediate_size, config.num_local_experts, config.num_experts_per_tok)
    kinds = {
        "linear_attention": LayerConfig(ssm=recurrent, mlp=mlp, carries_norm=True),
        "full_attention": LayerConfig(attn=sizes, mlp=mlp, carries_norm=True),
    }
    return model_sizes("minimax", config, [kinds[kind] for kind in config.layer_types])


def _check(config: Any) -> None:
    """Refuse values whose computation is not built, or would be another than they say."""

    def need(holds: bool, field: str, expected: object) -> None:
        require(holds, "MiniMax", field, getattr(config, field), expected)

    need(config.hidden_act == "silu", "hidden_act", "'silu'")
    need(config.sliding_window is None, "sliding_window", None)
    layers, kinds, experts = config.num_hidden_layers, list(config.layer_types), config.num_local_experts
    known = len(kinds) == layers and set(kinds) <= set(KINDS)
    need(known, "layer_types", f"{' or '.join(KINDS)} for each of {layers} layers")
    need(0 < config.num_experts_per_tok <= experts, "num_experts_per_tok", f"1 to num_local_experts = {experts}")
    if getattr(config, "attn_type_list", None) is not None:  # which transformers does not read
        numbers = [KINDS.index(kind) for kind in kinds]
        need(config.attn_type_list == numbers, "attn_type_list", f"{numbers}, as layer_types has them")
    if getattr(config, "rotary_dim", None) is not None:
        width = attention_sizes(config).d_head
        need(config.rotary_dim == width, "rotary_dim", f"{width}: transformers turns whole heads")


def _turning(config: Any, d_head: int) -> Turning | None:
    return turning(config, d_head, whole=True)


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, has, config = model.model.layers[layer], cfg.layers[layer], model.config
    mixer, mixers = hf.self_attn, dict[str, nn.Module]()
    if has.attn is not None:
        kept, added = config.full_attn_alpha_factor, config.full_attn_beta_factor
        out, turns = Projection(mixer, "o_proj", scale=added), _turning(config, has.attn.d_head)
        mixers["attn"] = attention(mixer, has.attn, cfg.d_model, turns, model.model.rotary_emb, o=out)
    else:
        kept, added = config.linear_attn_alpha_factor, config.linear_attn_beta_factor
        eps, sigmoid = mixer.norm.variance_epsilon, torch.sigmoid
        parts = LightningParts(
            mixer=mixer,
            project=Projection(mixer, "qkv_proj"),
            gate=Projection(mixer, "output_gate"),
            norm=GatedNorm(mixer, "norm", eps, "norm_first", groups=1, rounded=True, activation=sigmoid),
            out=Projection(mixer, "out_proj", scale=added),
        )
        mixers["ssm"] = Lightning(cfg.recurrence(layer), parts, cfg.d_model)
    route = partial(softmax_first, renormalise=True)
    experts = hooked_mlp(cfg, layer, MoeParts(hf.mlp.gate, hf.mlp.experts, route, scale=config.mlp_beta_factor))
    first, second = (NORMS.hooked(hf, name, cfg) for name in ("input_layernorm", "post_attention_layernorm"))
    branches = [
        Branch(mixers, first, carried=kept),
        Branch({"mlp": experts}, second, carried=config.mlp_alpha_factor),
    ]
    return Block(branches, home=hf, d_model=cfg.d_model)


MINIMAX = Family(
    name="minimax",
    architecture="MiniMaxForCausalLM",
    other_fields={
        "attn_type_list": (),
        "postnorm": (True,),
        "rotary_dim": (),
        "shared_intermediate_size": (0,),
        "shared_moe_mode": (),
        "rope_theta": (),
        "rope_scaling": (None,),
    },
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "norm"),
)
