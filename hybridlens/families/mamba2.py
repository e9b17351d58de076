"""Mamba-2: recurrent layers alone, without attention and without MLPs.

The residual stream is float32 whatever the weights' dtype, where the configuration says so (its default).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import Mamba2Config

from hybridlens.blocks import Block, Branch
from hybridlens.config import LayerConfig, LensConfig
from hybridlens.families.parts import Norms, last_norm, mamba2, mamba2_sizes, model_sizes
from hybridlens.families.spec import Family, check_fields, require
from hybridlens.norms import HookedNorm

NORMS = Norms()


def configure(config: Mamba2Config) -> LensConfig:
    """What a Mamba-2 is made of; refuses what the family was not built for."""
    check_fields(MAMBA2, config)
    width = int(config.expand * config.hidden_size)
    heads = config.num_heads * config.head_dim
    require(heads == width, "Mamba-2", "num_heads * head_dim", heads, f"expand * hidden_size = {width}")
    require(config.hidden_act in ("silu", "swish"), "Mamba-2", "hidden_act", config.hidden_act, "'silu'")
    sizes = (config.num_heads, config.head_dim, config.state_size, config.n_groups, config.conv_kernel)
    recurrent = mamba2_sizes(*sizes, family="Mamba-2", field="n_groups")
    return model_sizes("mamba2", config, (LayerConfig(ssm=recurrent),) * config.num_hidden_layers, endless=True)


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf = model.backbone.layers[layer]
    norm = HookedNorm(NORMS.of(hf, "norm"), cfg.d_model, as_weight=True)
    branch = Branch({"ssm": mamba2(hf.mixer, cfg.recurrence(layer), cfg.d_model)}, norm)
    return Block([branch], home=hf, d_model=cfg.d_model, wide=model.config.residual_in_fp32)


MAMBA2 = Family(
    name="mamba2",
    architecture="Mamba2ForCausalLM",
    other_fields={"norm_before_gate": (True, False), "rms_norm": (True,), "fused_add_norm": (), "ssm_cfg": ()},
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "norm_f"),
    logits_in_float32=True,
)
