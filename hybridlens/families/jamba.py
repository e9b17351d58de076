"""Jamba: Mamba layers whose Δ, B and C have norms of their own, attention without rotary, and mixtures of experts."""

from __future__ import annotations

from typing import Any

from transformers import JambaConfig

from hybridlens.blocks import Block
from hybridlens.config import AttentionConfig, LayerConfig, LensConfig, MlpConfig, RecurrentConfig
from hybridlens.families.layers import gated_mlp, pre_normed
from hybridlens.families.spec import Family, check_fields, eos_ids, require
from hybridlens.mixers.attention import AttentionParts, HookedAttention
from hybridlens.mixers.mamba import Mamba, MambaNorms
from hybridlens.mlps import MoeParts
from hybridlens.norms import HookedNorm, Norm, NormStyle
from hybridlens.projections import Projection

STYLE = NormStyle()


def configure(config: JambaConfig) -> LensConfig:
    """What a Jamba is made of; refuses what the family was not built for."""
    check_fields(JAMBA, config)
    experts, used = config.num_experts, config.num_experts_per_tok
    require(used <= experts, "Jamba", "num_experts_per_tok", used, f"at most num_experts = {experts}")
    attention = AttentionConfig(
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        d_head=getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
    )
    width = config.mamba_expand * config.hidden_size
    recurrent = RecurrentConfig(
        kind="mamba",
        state_shape=(width, config.mamba_d_state),
        d_channels=width,
        d_conv_channels=width,
        d_conv=config.mamba_d_conv,
    )
    dense = MlpConfig(config.intermediate_size)
    mixture = MlpConfig(config.intermediate_size, n_experts=experts, n_experts_per_token=used)
    return LensConfig(
        family="jamba",
        layers=tuple(
            LayerConfig(
                attn=attention if kind == "attention" else None,
                ssm=None if kind == "attention" else recurrent,
                mlp=mixture if n > 1 else dense,
            )
            for kind, n in zip(config.layers_block_type, config.layers_num_experts, strict=True)
        ),
        d_model=config.hidden_size,
        d_vocab=config.vocab_size,
        n_ctx=config.max_position_embeddings,
        act_fn=config.hidden_act,
        eos_token_ids=eos_ids(config),
    )


def _norm(owner: Any, name: str) -> Norm:
    return Norm(owner, name, getattr(owner, name).variance_epsilon, STYLE)


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, has = model.model.layers[layer], cfg.layers[layer]
    mlp = hf.feed_forward
    assert has.mlp is not None
    if has.attn is not None:
        mixer = hf.self_attn
        attention = AttentionParts(
            q=Projection(mixer, "q_proj"),
            k=Projection(mixer, "k_proj"),
            v=Projection(mixer, "v_proj"),
            o=Projection(mixer, "o_proj"),
            scale=has.attn.d_head**-0.5,
        )
        mixers = {"attn": HookedAttention(has.attn, attention, cfg.d_model)}
    else:
        assert has.ssm is not None
        mixer = hf.mamba
        inner = MambaNorms(*(_norm(mixer, f"{name}_layernorm") for name in ("dt", "b", "c")))
        mixers = {"ssm": Mamba(has.ssm, mixer, inner)}
    parts = gated_mlp(mlp) if has.mlp.n_experts is None else MoeParts(mlp.router, mlp.experts)
    norms = _norm(hf, "input_layernorm"), _norm(hf, "pre_ff_layernorm")
    return pre_normed(hf, cfg, layer, mixers, parts, norms)


def _final_norm(model: Any, cfg: LensConfig) -> HookedNorm:
    return HookedNorm(_norm(model.model, "final_layernorm"), cfg.d_model)


JAMBA = Family(
    name="jamba",
    architecture="JambaForCausalLM",
    other_fields={
        "mamba_inner_layernorms": (True,),
        "sliding_window": (None,),
        "n_ctx": (),
        "calc_logits_for_entire_prompt": (),
        "num_logits_to_keep": (),
        "attn_implementation": (),
    },
    configure=configure,
    block=_block,
    final_norm=_final_norm,
)
