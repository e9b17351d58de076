"""Gemma 2: attention alone, as a control; there is no recurrence, and so no recurrent state.

Norms stand before and after each branch and multiply by 1 + w. Layers see a window and the whole text in turn. Scores
and logits are softly capped; scores are scaled by `query_pre_attn_scalar`^-½. The embedding's module multiplies by √d
itself, held in its weights' dtype.

transformers runs it by its eager formula unless told otherwise: PyTorch's fused attention knows no cap, and is refused
when it is asked for. Right padding in its own cache moves later tokens out of their windows; here rows of any lengths
equal single ones.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

from hybridlens.blocks import Block
from hybridlens.config import LayerConfig, LensConfig, MlpConfig
from hybridlens.families.parts import (
    Norms,
    attention,
    attention_sizes,
    gated_mlp,
    last_norm,
    model_sizes,
    pre_normed,
    windows,
)
from hybridlens.families.spec import Family, check_fields, require, turning
from hybridlens.mixers.rotary import Turning
from hybridlens.norms import NormStyle

NORMS = Norms(NormStyle(offset=1.0, rounding="after"), eps="eps")
NAMES = ("input_layernorm", "pre_feedforward_layernorm")
AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")


def made_of(config: Any, family: Family, rotary: bool, **sizes: Any) -> LensConfig:
    """What a Gemma with norms around its branches is made of; refuses what neither kind was built for."""
    check_fields(family, config)
    whose = family.architecture
    require(
        not config.use_bidirectional_attention, whose, "use_bidirectional_attention", True, "False: causal attention"
    )
    require(not config.attention_bias, whose, "attention_bias", True, "False: a bias behind a norm belongs to no head")
    attn = attention_sizes(config, rotary=rotary, normed_after=True, **sizes)
    mlp = MlpConfig(config.intermediate_size)
    return model_sizes(
        family.name,
        config,
        [LayerConfig(attn=replace(attn, window=window), mlp=mlp) for window in windows(config)],
        act_fn=config.hidden_activation,
    )


def root(config: Any) -> float:
    """√d, by which the embedding's module multiplies."""
    return config.hidden_size**0.5


def _turning(config: Any) -> Turning | None:
    return turning(config, config.head_dim, whole=True, stretched=True)


def configure(config: Any) -> LensConfig:
    """What a Gemma 2 is made of; refuses what the family was not built for."""
    return made_of(config, GEMMA2, _turning(config) is not None)


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, base, config = model.model.layers[layer], model.model, model.config
    heads = attention(
        hf.self_attn,
        cfg.attention(layer),
        cfg.d_model,
        _turning(config),
        base.rotary_emb,
        scale=config.query_pre_attn_scalar**-0.5,
        soft_cap=config.attn_logit_softcapping,
    )
    return pre_normed(hf, cfg, layer, {"attn": heads}, gated_mlp(hf.mlp), NORMS, NAMES, AFTER)


GEMMA2 = Family(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    other_fields={
        "rope_theta": (), "rope_scaling": (), "partial_rotary_factor": (), "hidden_act": (), "cache_implementation": (),
    },
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "norm"),
    embed_inside=root,
    soft_cap=attrgetter("final_logit_softcapping"),
)  # fmt: skip
