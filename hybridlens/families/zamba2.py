"""Zamba2: Mamba-2 in every layer, and a few blocks of attention and MLP that several layers share.

A hybrid layer hands the stream and the embedding to a shared block, maps what comes back by its own `linear`, and adds
it to the input of its Mamba-2 mixer; to the stream nothing is added but what the mixer writes. The j-th hybrid layer
uses block j mod num_mem_blocks with its own low-rank adapters: of gate and up always, of queries, keys and values where
the configuration says so. Heads are 2 d_model / heads wide and scores are scaled by (d_head / 2)^-½.

transformers clamps the step size Δ at time_step_min when it reads several tokens and does not when it reads one after a
cache; here it is clamped always, as in a run without a cache.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from hybridlens.blocks import Block, Branch
from hybridlens.config import AttentionConfig, LayerConfig, LensConfig, MlpConfig, RecurrentConfig
from hybridlens.families.parts import Norms, attention, attention_sizes, last_norm, mamba2, mamba2_sizes, model_sizes
from hybridlens.families.spec import Family, check_fields, require, turning
from hybridlens.mlps import HookedMlp, MlpParts
from hybridlens.norms import HookedNorm
from hybridlens.projections import Adapted, Projection
from hybridlens.shared_block import SharedBlock

NORMS = Norms()


def configure(config: Any) -> LensConfig:
    """What a Zamba2 is made of; refuses what the family was not built for."""
    check_fields(ZAMBA2, config)
    kinds, ids = tuple(config.layer_types), [i for i, kind in enumerate(config.layer_types) if kind == "hybrid"]
    known = set(kinds) <= {"linear_attention", "hybrid"}
    require(known, "Zamba2", "layers_block_type", kinds, "linear_attention and hybrid")
    require(len(kinds) == config.num_hidden_layers, "Zamba2", "layers", len(kinds), f"{config.num_hidden_layers}")
    require(config.hybrid_layer_ids == ids, "Zamba2", "hybrid_layer_ids", config.hybrid_layer_ids, f"the layers {ids}")
    shared = config.num_mem_blocks
    require(isinstance(shared, int) and shared >= 1, "Zamba2", "num_mem_blocks", shared, "at least 1")
    recurrent = _recurrent_sizes(config)
    attn, mlp = (_attention_sizes(config), MlpConfig(config.intermediate_size)) if ids else (None, None)
    hybrid = LayerConfig(attn=attn, ssm=recurrent, mlp=mlp, shared=True)
    return model_sizes("zamba2", config, [hybrid if kind == "hybrid" else LayerConfig(ssm=recurrent) for kind in kinds])


def _recurrent_sizes(config: Any) -> RecurrentConfig:
    heads, width, groups = config.n_mamba_heads, config.mamba_headdim, config.mamba_ngroups
    inner = int(config.mamba_expand * config.hidden_size)
    require(heads * width == inner, "Zamba2", "n_mamba_heads * mamba_headdim", heads * width, f"{inner}")
    return mamba2_sizes(heads, width, config.mamba_d_state, groups, config.mamba_d_conv, "Zamba2", "mamba_ngroups")


def _attention_sizes(config: Any) -> AttentionConfig:
    sizes, both = attention_sizes(config), 2 * config.hidden_size
    require(config.attention_hidden_size == both, "Zamba2", "attention_hidden_size", config.attention_hidden_size, both)
    require(sizes.n_heads * sizes.d_head == both, "Zamba2", "attention_head_dim", sizes.d_head, f"{both} / heads")
    if config.use_shared_attention_adapter:  # its adapters of keys and values are as wide as those of queries
        require(sizes.n_kv_heads == sizes.n_heads, "Zamba2", "num_key_value_heads", sizes.n_kv_heads, sizes.n_heads)
    if not config.use_mem_rope:
        return sizes
    part = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
    require(part == 1.0, "Zamba2", "partial_rotary_factor", part, "1.0")
    # Its makers stretch rotary embedding for long contexts; transformers says that it does, and does not.
    require(not config.use_long_context, "Zamba2", "use_long_context", config.use_long_context, "False beside rotary")
    return replace(sizes, rotary=turning(config, sizes.d_head) is not None)


def _shared(model: Any, cfg: LensConfig, layer: int) -> SharedBlock:
    """The shared block of a hybrid layer, with the layer's adapters."""
    hf, config, sizes = model.model.layers[layer], model.config, cfg.attention(layer)
    block, use = hf.shared_transformer, cfg.attention_layers.index(layer)
    attn, ff, others = block.self_attn, block.feed_forward, dict[str, Any]()
    if config.use_shared_attention_adapter:
        others |= {role: _adapted(attn, f"{role}_proj", f"linear_{role}_adapter_list", use) for role in "qkv"}
    if config.use_mem_rope:
        others |= {"turning": turning(config, sizes.d_head), "embedding": model.model.rotary_emb}
    heads = attention(attn, sizes, cfg.d_model, scale=(sizes.d_head / 2) ** -0.5, **others)
    gate, up = (_adapted(ff, "gate_up_proj", "gate_up_proj_adapter_list", use, (i, 2)) for i in range(2))
    mlp = HookedMlp(MlpConfig(config.intermediate_size), MlpParts(up, Projection(ff, "down_proj"), ff.act_fn, gate))
    ln_attn = HookedNorm(NORMS.of(block, "input_layernorm"), 2 * cfg.d_model, axis="i")
    ln_mlp = NORMS.hooked(block, "pre_ff_layernorm", cfg)
    return SharedBlock(heads, mlp, ln_attn, ln_mlp, Projection(hf, "linear"), cfg.d_model)


def _adapted(owner: Any, name: str, adapters: str, use: int, part: tuple[int, int] | None = None) -> Adapted:
    """A shared projection with the adapter of one of its uses."""
    own = getattr(owner, adapters)[use]
    return Adapted(owner, name, part=part, narrow=Projection(own, "0"), widen=Projection(own, "1", part=part))


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf = model.model.layers[layer]
    shared = _shared(model, cfg, layer) if cfg.layers[layer].shared else None
    home = hf if shared is None else hf.mamba_decoder
    mamba = mamba2(home.mamba, cfg.recurrence(layer), cfg.d_model)
    branch = Branch({"ssm": mamba}, NORMS.hooked(home, "input_layernorm", cfg))
    return Block([branch], home=hf, d_model=cfg.d_model, shared=shared)


ZAMBA2 = Family(
    name="zamba2",
    architecture="Zamba2ForCausalLM",
    other_fields={
        "rope_theta": (), "rope_scaling": (None,), "activation_function": (), "ffn_hidden_size": (),
        "gated_linear_unit": (True,), "use_shared_mlp_adapter": (True,), "state_size": (), "time_step_limit": (None,),
        "lora_rank": (), "rms_norm": (True,), "sliding_window": (None,), "mamba_chunk_size": (),
    },
    configure=configure,
    block=_block,
    final_norm=partial(last_norm, NORMS, "final_layernorm"),
)  # fmt: skip
