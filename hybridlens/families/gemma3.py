"""Gemma 3's text model: attention alone, as a control; there is no recurrence, and so no recurrent state.

As Gemma 2, with norms of queries and keys and without a cap on scores. Layers with a window and those without turn by
rotary embeddings of their own, either of which may be stretched.

transformers takes `attn_logit_softcapping` and does nothing with it, so that a value there is refused.
"""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from typing import Any

from hybridlens.blocks import Block
from hybridlens.config import LensConfig
from hybridlens.families.gemma2 import AFTER, NAMES, NORMS, made_of, root
from hybridlens.families.parts import attention, gated_mlp, last_norm, pre_normed
from hybridlens.families.spec import Family, require, turning
from hybridlens.mixers.rotary import Turning


def _turning(config: Any, layer: int) -> Turning | None:
    return turning(config, config.head_dim, kind=config.layer_types[layer], whole=True, stretched=True)


def configure(config: Any) -> LensConfig:
    """What a Gemma 3 is made of; refuses what the family was not built for."""
    cap = config.attn_logit_softcapping
    require(cap is None, "Gemma3ForCausalLM", "attn_logit_softcapping", cap, "null, since transformers does not use it")
    rotary = [_turning(config, layer) is not None for layer in range(config.num_hidden_layers)]
    return made_of(config, GEMMA3, all(rotary), qk_norm=True)


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, base, config = model.model.layers[layer], model.model, model.config
    heads = attention(
        hf.self_attn,
        cfg.attention(layer),
        cfg.d_model,
        _turning(config, layer),
        base.rotary_emb,
        config.layer_types[layer],
        scale=config.query_pre_attn_scalar**-0.5,
        q_norm=NORMS.of(hf.self_attn, "q_norm"),
        k_norm=NORMS.of(hf.self_attn, "k_norm"),
    )
    return pre_normed(hf, cfg, layer, {"attn": heads}, gated_mlp(hf.mlp), NORMS, NAMES, AFTER)


GEMMA3 = Family(
    name="gemma3",
    architecture="Gemma3ForCausalLM",
    other_fields={
        "rope_theta": (), "rope_scaling": (), "partial_rotary_factor": (), "rope_local_base_freq": (),
        "sliding_window_pattern": (), "_sliding_window_pattern": (), "cache_implementation": (),
    },
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "norm"),
    embed_inside=root,
    soft_cap=attrgetter("final_logit_softcapping"),
)  # fmt: skip
