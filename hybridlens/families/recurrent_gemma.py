"""RecurrentGemma (Griffin): RG-LRU layers and sliding-window attention.

Norms multiply by 1 + w, embeddings by √d held in bfloat16; logits are soft-capped. The configuration's
`intermediate_size` is twice the MLP's width.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import RecurrentGemmaConfig

from hybridlens.blocks import Block
from hybridlens.config import AttentionConfig, LayerConfig, LensConfig, MlpConfig, RecurrentConfig
from hybridlens.families.layers import gated_mlp, pre_normed
from hybridlens.families.spec import Family, check_fields, eos_ids, turning
from hybridlens.mixers.attention import AttentionParts, HookedAttention
from hybridlens.mixers.rg_lru import RgLru
from hybridlens.mixers.rotary import Rotary
from hybridlens.norms import HookedNorm, Norm, NormStyle
from hybridlens.projections import Projection

STYLE = NormStyle(offset=1.0, rounding="after")


def configure(config: RecurrentGemmaConfig) -> LensConfig:
    """What a RecurrentGemma is made of; refuses what the family was not built for."""
    check_fields(RECURRENT_GEMMA, config)
    attention = AttentionConfig(
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads or config.num_attention_heads,
        d_head=config.head_dim,
        window=config.attention_window_size,
        rotary=turning(config, config.head_dim) is not None,
    )
    width = config.lru_width or config.hidden_size
    recurrent = RecurrentConfig(
        kind="rg_lru", state_shape=(width,), d_channels=width, d_conv_channels=width, d_conv=config.conv1d_width
    )
    mlp = MlpConfig(config.intermediate_size // 2)
    return LensConfig(
        family="recurrentgemma",
        layers=tuple(
            LayerConfig(attn=attention, mlp=mlp) if kind == "sliding_attention" else LayerConfig(ssm=recurrent, mlp=mlp)
            for kind in config.layers_block_type
        ),
        d_model=config.hidden_size,
        d_vocab=config.vocab_size,
        n_ctx=None,
        act_fn=config.hidden_activation,
        eos_token_ids=eos_ids(config),
    )


def _norm(owner: Any, name: str) -> Norm:
    return Norm(owner, name, getattr(owner, name).eps, STYLE)


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, has = model.model.layers[layer], cfg.layers[layer]
    mixer = hf.temporal_block
    if has.attn is not None:
        rotary = turning(model.config, has.attn.d_head)
        parts = AttentionParts(
            q=Projection(mixer, "q_proj"),
            k=Projection(mixer, "k_proj"),
            v=Projection(mixer, "v_proj"),
            o=Projection(mixer, "o_proj"),
            scale=has.attn.d_head**-0.5,
            rotary=None if rotary is None else Rotary(mixer.rotary_emb, rotary),
        )
        mixers = {"attn": HookedAttention(has.attn, parts, cfg.d_model)}
    else:
        assert has.ssm is not None
        mixers = {"ssm": RgLru(has.ssm, mixer)}
    norms = _norm(hf, "temporal_pre_norm"), _norm(hf, "channel_pre_norm")
    return pre_normed(hf, cfg, layer, mixers, gated_mlp(hf.mlp_block), norms)


def _final_norm(model: Any, cfg: LensConfig) -> HookedNorm:
    return HookedNorm(_norm(model.model, "final_norm"), cfg.d_model)


def _embed_scale(config: RecurrentGemmaConfig) -> float:
    """√d, which the model holds in bfloat16."""
    return float(torch.tensor(config.hidden_size**0.5, dtype=torch.bfloat16, device="cpu"))


def _soft_cap(config: RecurrentGemmaConfig) -> float:
    return config.logits_soft_cap


RECURRENT_GEMMA = Family(
    name="recurrentgemma",
    architecture="RecurrentGemmaForCausalLM",
    other_fields={
        "embeddings_scale_by_sqrt_dim": (True,),
        "final_w_init_variance_scale": (),
        "_block_types": (),
        "rope_theta": (10000, 10000.0),
        "partial_rotary_factor": (0.5,),
        "block_type": (),
    },
    configure=configure,
    block=_block,
    final_norm=_final_norm,
    embed_scale=_embed_scale,
    soft_cap=_soft_cap,
)
