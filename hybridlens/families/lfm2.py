"""LFM2: gated short convolutions, which hold no state, and attention with a norm per head of queries and keys.

The last norm is called `embedding_norm`; `out_proj` is attention's output, and w1, w3, w2 an MLP's gate, up and down.
Transformers refuses a cache for a model without attention, and from padding on the right it decodes wrongly; with
biases (`conv_bias`) padding on the left enters its convolutions. Here padding is never remembered.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn

from hybridlens.blocks import Block
from hybridlens.config import LayerConfig, LensConfig, MlpConfig, RecurrentConfig
from hybridlens.families.parts import Norms, attention, attention_sizes, last_norm, model_sizes, pre_normed
from hybridlens.families.spec import Family, check_fields, require, turning
from hybridlens.mixers.short_conv import ShortConv
from hybridlens.mlps import MlpParts
from hybridlens.projections import Projection

NORMS = Norms()
NAMES = ("operator_norm", "ffn_norm")

SAME = {
    "block_dim": "hidden_size",
    "conv_dim": "hidden_size",
    "conv_dim_out": "hidden_size",
    "num_heads": "num_attention_heads",
    "block_norm_eps": "norm_eps",
}
"""Fields of published files that transformers does not read, and those whose values they repeat."""

PUBLISHED: dict[str, tuple[Any, ...]] = dict.fromkeys((*SAME, "theta", "rope_theta"), ()) | {
    "block_use_swiglu": (True,),
    "block__name_mlp": ("parallel_mlp_merged",),
    "block_mlp_init_scale": (),
    "block_out_init_scale": (),
    "block_use_xavier_init": (),
    "conv_use_xavier_init": (),
    "use_pos_enc": (True,),
    "block_ffn_te_autocast": (),
    "ffn_te_autocast": (),
    "block_ffn_use_quantized_params": (False,),
    "ffn_use_quantized_params": (False,),
    "block_sequence_parallel_norm_across_tp": (),
    "sequence_parallel_norm_across_tp": (),
}
"""Fields that published files hold beside transformers' own."""


def configure(config: Any) -> LensConfig:
    """What an LFM2 is made of; refuses what the family was not built for."""
    check_fields(LFM2, config)
    listed, given = config.full_attn_idxs, config.layer_types or []
    where = [layer for layer, kind in enumerate(given) if kind == "full_attention"]
    require(listed is None or sorted(listed) == where, "LFM2", "full_attn_idxs", listed, f"{where}, as in layer_types")
    return configured("lfm2", "LFM2", config, (MlpConfig(_width(config)),) * config.num_hidden_layers)


def configured(family: str, words: str, config: Any, mlps: tuple[MlpConfig, ...]) -> LensConfig:
    """What the families with LFM2's mixers are made of.

    Args:
        family: its name.
        words: the same in messages.
        config: the model's configuration.
        mlps: of each layer.
    """
    kinds: list[str] = config.layer_types or []
    fits = len(kinds) == len(mlps) and set(kinds) <= {"conv", "full_attention"}
    known = f"a list of {len(mlps)}, of 'conv' and 'full_attention'"
    require(fits, words, "layer_types", config.layer_types, known)
    for name, other in SAME.items():
        value = getattr(config, other)
        require(getattr(config, name, value) == value, words, name, getattr(config, name, None), f"{other} = {value}")
    sizes = attention_sizes(config, rotary=True, qk_norm=True)
    rotary = turning(config, sizes.d_head)
    rope = config.rope_parameters
    require(rotary is not None and rotary.dims == sizes.d_head, words, "rope_parameters", rope, "one for whole heads")
    assert rotary is not None
    theta = getattr(config, "theta", rotary.base)
    require(theta == rotary.base, words, "theta", theta, f"rope_theta = {rotary.base}")
    d = config.hidden_size
    conv = RecurrentConfig("convolution", (), d_channels=d, d_conv_channels=d, d_conv=config.conv_L_cache)
    return model_sizes(
        family,
        config,
        [
            LayerConfig(ssm=conv, mlp=mlp) if kind == "conv" else LayerConfig(attn=sizes, mlp=mlp)
            for kind, mlp in zip(kinds, mlps, strict=True)
        ],
        act_fn="silu",
    )


def _width(config: Any) -> int:
    """Of an MLP: as given, or two thirds of that, times a factor, up to the next multiple."""
    if not config.block_auto_adjust_ff_dim:
        return config.intermediate_size
    width, step = int(2 * config.intermediate_size / 3), config.block_multiple_of
    return -(-int(config.block_ffn_dim_multiplier * width) // step) * step


def mixers(model: Any, cfg: LensConfig, layer: int, embedding: nn.Module) -> dict[str, nn.Module]:
    """A layer's mixer: attention, whose cosines and sines `embedding` makes, or a convolution."""
    hf, has = model.model.layers[layer], cfg.layers[layer].attn
    if has is None:
        return {"ssm": ShortConv(cfg.recurrence(layer), hf.conv)}
    attn = hf.self_attn
    own: dict[str, Any] = {f"{role}_norm": NORMS.of(attn, f"{role}_layernorm") for role in "qk"} | {
        "o": Projection(attn, "out_proj")
    }
    return {"attn": attention(attn, has, cfg.d_model, turning(model.config, has.d_head), embedding, **own)}


def dense(mlp: Any) -> MlpParts:
    """An MLP, taken apart."""
    return MlpParts(Projection(mlp, "w3"), Projection(mlp, "w2"), F.silu, Projection(mlp, "w1"))


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf = model.model.layers[layer]
    parts = mixers(model, cfg, layer, model.model.rotary_emb)
    return pre_normed(hf, cfg, layer, parts, dense(hf.feed_forward), NORMS, NAMES)


LFM2 = Family(
    name="lfm2",
    architecture="Lfm2ForCausalLM",
    other_fields=PUBLISHED,
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "embedding_norm"),
)
