"""LFM2 with mixtures of experts: LFM2's mixers, and behind the first few layers sigmoid-routed experts.

A bias that balances the load enters the choice of experts and not their weights. The configuration says the width of
dense MLPs as it is, and has no default for `layer_types`. Where transformers is inexact, `lfm2` says.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from hybridlens.blocks import Block
from hybridlens.config import LensConfig, MlpConfig
from hybridlens.families.lfm2 import NAMES, NORMS, PUBLISHED, configured, dense, mixers
from hybridlens.families.parts import last_norm, pre_normed
from hybridlens.families.spec import Family, check_fields, require
from hybridlens.mlps import MoeParts
from hybridlens.projections import Held
from hybridlens.routing import sigmoids

FLOOR = 1e-6
"""Added to the sum that the weights of a token's experts are divided by."""


def configure(config: Any) -> LensConfig:
    """What an LFM2-MoE is made of; refuses what the family was not built for."""
    check_fields(LFM2_MOE, config)
    experts, used, layers = config.num_experts, config.num_experts_per_tok, config.num_hidden_layers
    first = min(config.num_dense_layers, layers)
    require(first == layers or used <= experts, "LFM2-MoE", "num_experts_per_tok", used, f"at most {experts} experts")
    mixture = MlpConfig(config.moe_intermediate_size, experts, used)
    mlps = (MlpConfig(config.intermediate_size),) * first + (mixture,) * (layers - first)
    return configured("lfm2_moe", "LFM2-MoE", config, mlps)


def _nothing() -> None:
    return None


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, config = model.model.layers[layer], model.config
    mlp = hf.feed_forward
    has = cfg.layers[layer].mlp
    assert has is not None
    if has.n_experts is None:
        parts = dense(mlp)
    else:
        route = partial(
            sigmoids,
            bias=Held(mlp, "expert_bias") if config.use_expert_bias else _nothing,
            floor=FLOOR,
            renormalise=config.norm_topk_prob,
            scale=config.routed_scaling_factor,
        )
        parts = MoeParts(mlp.gate, mlp.experts, route)
    return pre_normed(hf, cfg, layer, mixers(model, cfg, layer, model.model.pos_emb), parts, NORMS, NAMES)


LFM2_MOE = Family(
    name="lfm2_moe",
    architecture="Lfm2MoeForCausalLM",
    other_fields=PUBLISHED,
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "embedding_norm"),
)
