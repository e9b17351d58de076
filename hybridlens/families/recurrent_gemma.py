"""RecurrentGemma (Griffin): RG-LRU layers and sliding-window attention.

Norms multiply by 1 + w, embeddings by √d held in bfloat16; logits are soft-capped. The configuration's
`intermediate_size` is twice the MLP's width.
"""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from typing import Any

import torch
from transformers import RecurrentGemmaConfig

from hybridlens.blocks import Block
from hybridlens.config import LayerConfig, LensConfig, MlpConfig, RecurrentConfig
from hybridlens.families.parts import Norms, attention, attention_sizes, gated_mlp, last_norm, model_sizes, pre_normed
from hybridlens.families.spec import Family, check_fields, turning
from hybridlens.mixers.rg_lru import RgLru
from hybridlens.norms import NormStyle

NORMS = Norms(NormStyle(offset=1.0, rounding="after"), eps="eps")


def configure(config: RecurrentGemmaConfig) -> LensConfig:
    """What a RecurrentGemma is made of; refuses what the family was not built for."""
    check_fields(RECURRENT_GEMMA, config)
    rotary = turning(config, config.head_dim) is not None
    sizes = attention_sizes(config, window=config.attention_window_size, rotary=rotary)
    width = config.lru_width or config.hidden_size
    recurrent = RecurrentConfig(
        kind="rg_lru", state_shape=(width,), d_channels=width, d_conv_channels=width, d_conv=config.conv1d_width
    )
    mlp = MlpConfig(config.intermediate_size // 2)
    return model_sizes(
        "recurrentgemma",
        config,
        [
            LayerConfig(attn=sizes, mlp=mlp) if kind == "sliding_attention" else LayerConfig(ssm=recurrent, mlp=mlp)
            for kind in config.layers_block_type
        ],
        act_fn=config.hidden_activation,
        endless=True,
    )


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, has = model.model.layers[layer], cfg.layers[layer]
    mixer = hf.temporal_block
    if has.attn is not None:
        rotary = turning(model.config, has.attn.d_head)
        mixers = {"attn": attention(mixer, has.attn, cfg.d_model, rotary, mixer.rotary_emb)}
    else:
        mixers = {"ssm": RgLru(cfg.recurrence(layer), mixer)}
    names = "temporal_pre_norm", "channel_pre_norm"
    return pre_normed(hf, cfg, layer, mixers, gated_mlp(hf.mlp_block), NORMS, names)


def _embed_scale(config: RecurrentGemmaConfig) -> float:
    """√d, which the model holds in bfloat16."""
    return float(torch.tensor(config.hidden_size**0.5, dtype=torch.bfloat16, device="cpu"))


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
    final_norm=partial(last_norm, NORMS, "final_norm"),
    embed_scale=_embed_scale,
    soft_cap=attrgetter("logits_soft_cap"),
)
