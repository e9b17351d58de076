"""Falcon-Mamba: Mamba whose Δ (before it is projected), B and C are normalised, by norms without weights.

All else is Mamba's, what transformers gets wrong included: see `hybridlens.families.mamba`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from hybridlens.blocks import Block
from hybridlens.config import LensConfig
from hybridlens.families.mamba import NORMS, mamba_block, sizes
from hybridlens.families.parts import Norms, last_norm
from hybridlens.families.spec import Family, check_fields
from hybridlens.mixers.mamba import MambaNorms

WEIGHTLESS = Norms(eps="eps")


def configure(config: Any) -> LensConfig:
    """What a Falcon-Mamba is made of; refuses what the family was not built for."""
    check_fields(FALCON_MAMBA, config)
    return sizes(config, "falcon_mamba", "Falcon-Mamba")


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    mixer = model.backbone.layers[layer].mixer
    norms = MambaNorms(*(WEIGHTLESS.of(mixer, f"{name}_layernorm") for name in ("dt", "b", "c")))
    return mamba_block(model, cfg, layer, norms)


FALCON_MAMBA = Family(
    name="falcon_mamba",
    architecture="FalconMambaForCausalLM",
    other_fields={},
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "norm_f"),
    logits_in_float32=True,
)
