"""Zamba: Mamba in heads in every layer, and one block of attention and MLP that several layers share.

A hybrid layer hands the stream and the embedding to the shared block, maps what comes back by its own `linear`, and
adds it to the input of its Mamba mixer; to the stream nothing is added but what the mixer writes. All uses have the
same weights and no adapters; positions have no embedding. Scores are scaled by (d_head / 2)^-½.

transformers is inexact here, without a word: several tokens on top of a cache go on from the convolution's memory but
from an empty state; beside padding, where projections have a bias (`mamba_proj_bias`), the convolution reads that bias
in place of nothing. A lens carries on from what it holds, and each row gives what it gives alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from hybridlens.blocks import Block, Branch
from hybridlens.config import AttentionConfig, LayerConfig, LensConfig, MlpConfig, RecurrentConfig
from hybridlens.families.parts import Norms, attention, attention_sizes, gated_mlp, last_norm, model_sizes
from hybridlens.families.spec import Family, check_fields, require
from hybridlens.mixers.mamba_heads import MambaHeads
from hybridlens.mlps import HookedMlp
from hybridlens.norms import HookedNorm
from hybridlens.projections import Projection
from hybridlens.shared_block import SharedBlock

NORMS = Norms()


def configure(config: Any) -> LensConfig:
    """What a Zamba is made of; refuses what the family was not built for."""
    check_fields(ZAMBA, config)
    kinds = tuple(config.layer_types)
    known = set(kinds) <= {"linear_attention", "hybrid"}
    require(known, "Zamba", "layers_block_type", kinds, "linear_attention and hybrid")
    require(len(kinds) == config.num_hidden_layers, "Zamba", "layers", len(kinds), config.num_hidden_layers)
    width, heads = config.mamba_expand * config.hidden_size, config.n_mamba_heads
    require(width % heads == 0, "Zamba", "n_mamba_heads", heads, f"a divisor of {width} channels")
    recurrent = RecurrentConfig("mamba_heads", (width, config.mamba_d_state), width, width, config.mamba_d_conv)
    hybrid = "hybrid" in kinds
    attn, mlp = (_attention_sizes(config), MlpConfig(config.intermediate_size)) if hybrid else (None, None)
    both = LayerConfig(attn=attn, ssm=recurrent, mlp=mlp, shared=True)
    return model_sizes("zamba", config, [both if kind == "hybrid" else LayerConfig(ssm=recurrent) for kind in kinds])


def _attention_sizes(config: Any) -> AttentionConfig:
    given, both = config.attention_hidden_size, 2 * config.hidden_size
    require(given == both, "Zamba", "attention_hidden_size", given, f"{both}, stream and embedding")
    return attention_sizes(config)


def _shared(hf: Any, cfg: LensConfig, layer: int) -> SharedBlock:
    """The shared block, as a hybrid layer uses it."""
    block, sizes, mlp = hf.shared_transf, cfg.attention(layer), cfg.layers[layer].mlp
    assert mlp is not None
    return SharedBlock(
        attn=attention(block.self_attn, sizes, cfg.d_model, scale=(sizes.d_head / 2) ** -0.5),
        mlp=HookedMlp(mlp, gated_mlp(block.feed_forward)),
        ln_attn=HookedNorm(NORMS.of(block, "input_layernorm"), 2 * cfg.d_model, axis="i"),
        ln_mlp=NORMS.hooked(block, "pre_ff_layernorm", cfg),
        out=Projection(hf, "linear"),
        d_model=cfg.d_model,
    )


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf = model.model.layers[layer]
    shared = _shared(hf, cfg, layer) if cfg.layers[layer].shared else None
    home = hf if shared is None else hf.mamba_decoder
    mamba = MambaHeads(cfg.recurrence(layer), home.mamba)
    branch = Branch({"ssm": mamba}, NORMS.hooked(home, "input_layernorm", cfg))
    return Block([branch], home=hf, d_model=cfg.d_model, shared=shared)


ZAMBA = Family(
    name="zamba",
    architecture="ZambaForCausalLM",
    other_fields={"sliding_window": (None,), "rope_theta": (), "unk_token_id": ()},
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "final_layernorm"),
)
