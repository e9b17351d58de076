"""What the Qwen hybrids have in common: gated delta rules, and attention with a gate packed beside its query.

Norms multiply by 1 + w; queries and keys are normalised per head; rotary embedding turns a part of each head. A family
says how its delta rule's inputs are projected, and which of its layers have a mixture of experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from hybridlens.blocks import Block
from hybridlens.config import LayerConfig, LensConfig, MlpConfig
from hybridlens.families.parts import (
    Norms,
    attention,
    attention_sizes,
    delta_sizes,
    gated_mlp,
    last_norm,
    model_sizes,
    pre_normed,
)
from hybridlens.families.spec import require, turning
from hybridlens.mixers.gated_delta import DeltaInputs, DeltaParts, DeltaWeights, GatedDelta
from hybridlens.mixers.gated_norm import GatedNorm
from hybridlens.mlps import MoeParts
from hybridlens.norms import NormStyle
from hybridlens.projections import Projection, Read
from hybridlens.routing import softmax_first

NORMS = Norms(NormStyle(offset=1.0, rounding="after"), eps="eps")
SPARE = (r"^mtp\.",)
"""Of published files: the head that predicts several tokens at once, for speculative decoding."""
FINAL_NORM = partial(last_norm, NORMS, "norm")
OTHER_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "rope_theta": (),
    "rope_scaling": (None,),
    "partial_rotary_factor": (),
    "full_attention_interval": (),
}


class Rule(NamedTuple):
    """How a family's module projects what its delta rule takes in; see `DeltaParts`."""

    inputs: Callable[[Any, Tensor], DeltaInputs]
    weights: Callable[[Any, Read], DeltaWeights]


def _inputs(mixer: Any, x: Tensor) -> DeltaInputs:
    return DeltaInputs(mixer.in_proj_qkv(x), mixer.in_proj_z(x), mixer.in_proj_b(x), mixer.in_proj_a(x))


def _weights(mixer: Any, read: Read) -> DeltaWeights:
    return DeltaWeights(read(mixer, "in_proj_qkv.weight")[2 * mixer.key_dim :], read(mixer, "in_proj_z.weight"))


FLAT = Rule(_inputs, _weights)
"""By four projections: queries, keys and values one behind the other, gates, strengths, decays."""


def mixture(config: Any) -> MlpConfig:
    """Of a layer with a mixture of experts, one of which all tokens share."""
    experts, used = config.num_experts, config.num_experts_per_tok
    require(used <= experts, type(config).__name__, "num_experts_per_tok", used, f"at most num_experts = {experts}")
    return MlpConfig(config.moe_intermediate_size, experts, used, True)


def lens_config(family: str, config: Any, mlp: Callable[[int], MlpConfig]) -> LensConfig:
    """What a model is made of.

    Args:
        family: its name.
        config: the model's, its unknown fields refused.
        mlp: of each layer.

    Raises:
        CheckpointError: for what none of these families was built for.
    """
    whose = type(config).__name__
    require(config.hidden_act == "silu", whose, "hidden_act", config.hidden_act, "'silu'")
    attn = attention_sizes(config, rotary=turning(config, config.head_dim) is not None, qk_norm=True, gated=True)
    kinds = {"full_attention": LayerConfig(attn=attn), "linear_attention": LayerConfig(ssm=delta_sizes(config))}
    for layer, kind in enumerate(config.layer_types):
        require(kind in kinds, whose, f"layer_types[{layer}]", kind, f"one of {', '.join(kinds)}")
    return model_sizes(
        family, config, [replace(kinds[kind], mlp=mlp(layer)) for layer, kind in enumerate(config.layer_types)]
    )


def block(model: Any, cfg: LensConfig, layer: int, rule: Rule = FLAT, renormalise: bool = True) -> Block:
    """A layer with its hook points.

    Args:
        model: the family's.
        cfg: of the whole model.
        layer: its number.
        rule: how the family projects what its delta rule takes in.
        renormalise: the weights of a token's experts are made to sum to 1.
    """
    hf, has = model.model.layers[layer], cfg.layers[layer]
    assert has.mlp is not None
    if has.attn is not None:
        normed: dict[str, Any] = {f"{role}_norm": NORMS.of(hf.self_attn, f"{role}_norm") for role in "qk"}
        rotary, embedding = turning(model.config, has.attn.d_head), model.model.rotary_emb
        mixers = {"attn": attention(hf.self_attn, has.attn, cfg.d_model, rotary, embedding, packed_gate=True, **normed)}
    else:
        mixer = hf.linear_attn
        norm = GatedNorm(mixer, "norm", mixer.norm.variance_epsilon, "norm_first", mixer.num_v_heads, rounded=True)
        delta = DeltaParts(mixer, *rule, mixer.num_k_heads, norm, Projection(mixer, "out_proj"))
        mixers = {"ssm": GatedDelta(cfg.recurrence(layer), delta, cfg.d_model)}
    if has.mlp.n_experts is None:
        parts = gated_mlp(hf.mlp)
    else:
        shared, gate = gated_mlp(hf.mlp.shared_expert), Projection(hf.mlp, "shared_expert_gate")
        route = partial(softmax_first, renormalise=renormalise)
        parts = MoeParts(hf.mlp.gate, hf.mlp.experts, route, shared=shared, shared_gate=gate)
    return pre_normed(hf, cfg, layer, mixers, parts, NORMS)
