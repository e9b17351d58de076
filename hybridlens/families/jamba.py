"""Jamba: Mamba layers whose Δ, B and C have norms of their own, attention without rotary, and mixtures of experts."""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import JambaConfig

from hybridlens.blocks import Block
from hybridlens.config import LayerConfig, LensConfig, MlpConfig, RecurrentConfig
from hybridlens.families.parts import Norms, attention, attention_sizes, gated_mlp, last_norm, model_sizes, pre_normed
from hybridlens.families.spec import Family, check_fields, require
from hybridlens.mixers.mamba import Mamba, MambaNorms
from hybridlens.mlps import MoeParts
from hybridlens.routing import softmax_first

NORMS = Norms()


def configure(config: JambaConfig) -> LensConfig:
    """What a Jamba is made of; refuses what the family was not built for."""
    check_fields(JAMBA, config)
    experts, used = config.num_experts, config.num_experts_per_tok
    require(used <= experts, "Jamba", "num_experts_per_tok", used, f"at most num_experts = {experts}")
    sizes = attention_sizes(config)
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
    return model_sizes(
        "jamba",
        config,
        [
            LayerConfig(
                attn=sizes if kind == "attention" else None,
                ssm=None if kind == "attention" else recurrent,
                mlp=mixture if n > 1 else dense,
            )
            for kind, n in zip(config.layers_block_type, config.layers_num_experts, strict=True)
        ],
    )


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf, has = model.model.layers[layer], cfg.layers[layer]
    mlp = hf.feed_forward
    assert has.mlp is not None
    if has.attn is not None:
        mixers = {"attn": attention(hf.self_attn, has.attn, cfg.d_model)}
    else:
        norms = MambaNorms(*(NORMS.of(hf.mamba, f"{name}_layernorm") for name in ("dt", "b", "c")))
        mixers = {"ssm": Mamba(cfg.recurrence(layer), hf.mamba, norms)}
    sparse = has.mlp.n_experts is not None
    parts = MoeParts(mlp.router, mlp.experts, softmax_first) if sparse else gated_mlp(mlp)
    return pre_normed(hf, cfg, layer, mixers, parts, NORMS, ("input_layernorm", "pre_ff_layernorm"))


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
    final_norm=partial(last_norm, NORMS, "final_layernorm"),
)
