"""Qwen3-Next: the first of the Qwen hybrids, whose delta rule's inputs are projected by key head.

One projection gives each key head's query, key, values and gates one behind the other, and another its strengths and
decays. Layers are mixtures of experts, but for those that the configuration names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridlens.blocks import Block
from hybridlens.config import LensConfig, MlpConfig
from hybridlens.families.qwen import FINAL_NORM, OTHER_FIELDS, SPARE, Rule, block, lens_config, mixture
from hybridlens.families.spec import Family, check_fields
from hybridlens.mixers.gated_delta import DeltaInputs, DeltaWeights
from hybridlens.projections import Read


def configure(config: Any) -> LensConfig:
    """What a Qwen3-Next is made of; refuses what the family was not built for."""
    check_fields(QWEN3_NEXT, config)

    def mlp(layer: int) -> MlpConfig:
        among = layer not in config.mlp_only_layers and config.num_experts > 0
        sparse = among and (layer + 1) % config.decoder_sparse_step == 0
        return mixture(config) if sparse else MlpConfig(config.intermediate_size)

    return lens_config("qwen3_next", config, mlp)


def _inputs(mixer: Any, x: Tensor) -> DeltaInputs:
    """Queries, keys and values behind one another; the file has them by key head, as it has gates and strengths."""
    q, k, v, z, b, a = mixer.fix_query_key_value_ordering(mixer.in_proj_qkvz(x), mixer.in_proj_ba(x))
    return DeltaInputs(torch.cat([part.flatten(2) for part in (q, k, v)], dim=-1), z.flatten(2), b, a)


def _weights(mixer: Any, read: Read) -> DeltaWeights:
    rows = read(mixer, "in_proj_qkvz.weight").unflatten(0, (mixer.num_k_heads, -1))
    keys, values = 2 * mixer.head_k_dim, mixer.head_v_dim * mixer.num_v_heads // mixer.num_k_heads
    _, v, z = rows.split([keys, values, values], dim=1)
    return DeltaWeights(v.flatten(0, 1), z.flatten(0, 1))


BY_KEY_HEAD = Rule(_inputs, _weights)


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    return block(model, cfg, layer, BY_KEY_HEAD, renormalise=model.config.norm_topk_prob)


QWEN3_NEXT = Family(
    name="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    other_fields=OTHER_FIELDS,
    configure=configure,
    block=_block,
    final_norm=FINAL_NORM,
    spare_tensors=SPARE,
)
