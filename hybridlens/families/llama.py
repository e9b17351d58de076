"""Llama: attention alone, as a control; there is no recurrence, and so no recurrent state.

Projections may have biases, and rotary embedding may stretch positions ("linear", "llama3").
"""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import LlamaConfig

from hybridlens.blocks import Block
from hybridlens.config import LayerConfig, LensConfig, MlpConfig
from hybridlens.families.parts import Norms, attention, attention_sizes, gated_mlp, last_norm, model_sizes, pre_normed
from hybridlens.families.spec import Family, check_fields, turning
from hybridlens.mixers.rotary import Turning

NORMS = Norms()


def _turning(config: LlamaConfig) -> Turning | None:
    return turning(config, attention_sizes(config).d_head, whole=True, stretched=True)


def configure(config: LlamaConfig) -> LensConfig:
    """What a Llama is made of; refuses what the family was not built for."""
    check_fields(LLAMA, config)
    sizes = attention_sizes(config, rotary=_turning(config) is not None)
    return model_sizes(
        "llama", config, (LayerConfig(attn=sizes, mlp=MlpConfig(config.intermediate_size)),) * config.num_hidden_layers
    )


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf = model.model.layers[layer]
    heads = attention(hf.self_attn, cfg.attention(layer), cfg.d_model, _turning(model.config), model.model.rotary_emb)
    return pre_normed(hf, cfg, layer, {"attn": heads}, gated_mlp(hf.mlp), NORMS)


LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    other_fields={"rope_theta": (), "rope_scaling": (), "partial_rotary_factor": (), "pretraining_tp": ()},
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "norm"),
)
