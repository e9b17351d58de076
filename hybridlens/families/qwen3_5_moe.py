"""Qwen3.5 to Qwen3.8 with mixtures of experts in every layer; see `qwen3_5` for what the two share.

The weights of a token's experts always sum to 1, and an expert that all tokens share has a gate of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hybridlens.config import LensConfig
from hybridlens.families.qwen import lens_config, mixture
from hybridlens.families.qwen3_5 import QWEN3_5, TEXT_FIELDS
from hybridlens.families.spec import check_fields


def configure(config: Any) -> LensConfig:
    """What a Qwen3.5 with experts is made of; refuses what the family was not built for."""
    check_fields(QWEN3_5_MOE, config)
    experts = mixture(config)
    return lens_config("qwen3_5_moe", config, lambda layer: experts)


QWEN3_5_MOE = replace(
    QWEN3_5,
    name="qwen3_5_moe",
    architecture="Qwen3_5MoeForCausalLM",
    multimodal="Qwen3_5MoeForConditionalGeneration",
    other_fields={**TEXT_FIELDS, "intermediate_size": (), "norm_topk_prob": (True,), "decoder_sparse_step": (1,)},
    configure=configure,
)
