"""Qwen3: attention alone, as a control; there is no recurrence, and so no recurrent state.

Queries and keys are normalised per head, before rotary embedding. Layers from `max_window_layers` on may see a window.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from transformers import Qwen3Config

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
from hybridlens.families.spec import Family, check_fields, turning
from hybridlens.mixers.rotary import Turning

NORMS = Norms()


def _turning(config: Qwen3Config) -> Turning | None:
    return turning(config, config.head_dim, whole=True, stretched=True)


def configure(config: Qwen3Config) -> LensConfig:
    """What a Qwen3 is made of; refuses what the family was not built for."""
    check_fields(QWEN3, config)
    sizes, mlp = (
        attention_sizes(config, rotary=_turning(config) is not None, qk_norm=True),
        MlpConfig(config.intermediate_size),
    )
    return model_sizes(
        "qwen3", config, [LayerConfig(attn=replace(sizes, window=window), mlp=mlp) for window in windows(config)]
    )


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, base = model.model.layers[layer], model.model
    heads = attention(
        hf.self_attn,
        cfg.attention(layer),
        cfg.d_model,
        _turning(model.config),
        base.rotary_emb,
        q_norm=NORMS.of(hf.self_attn, "q_norm"),
        k_norm=NORMS.of(hf.self_attn, "k_norm"),
    )
    return pre_normed(hf, cfg, layer, {"attn": heads}, gated_mlp(hf.mlp), NORMS)


QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    other_fields={"rope_theta": (), "rope_scaling": (), "partial_rotary_factor": ()},
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "norm"),
)
