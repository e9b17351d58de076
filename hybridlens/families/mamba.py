"""Mamba: recurrent layers alone, without attention and without MLPs.

The residual stream is float32 whatever the weights' dtype, where the configuration says so (its default). The width
of the recurrence is the configuration's `intermediate_size`: some files state it beside an `expand` that gives another.

transformers is inexact here, without a word: several tokens on top of a cache go on from the convolution's memory but
from an empty state, and a mask at a step of one token, even one that hides nothing, gives other numbers. A lens
carries on from what it holds however a text is cut, and equals the library's run over the whole text.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from hybridlens.blocks import Block, Branch
from hybridlens.config import LayerConfig, LensConfig, RecurrentConfig
from hybridlens.families.parts import Norms, last_norm, model_sizes
from hybridlens.families.spec import Family, check_fields, require
from hybridlens.mixers.mamba import UNNORMED, Mamba, MambaNorms
from hybridlens.norms import HookedNorm

NORMS = Norms()
TWICE = {"d_model": "hidden_size", "d_inner": "intermediate_size", "n_layer": "num_hidden_layers"}
"""Sizes that files state a second time, under the names of the code that the model was trained with."""


def sizes(config: Any, family: str, whose: str) -> LensConfig:
    """What a model of Mamba layers alone is made of; refuses what such families were not built for.

    Args:
        config: the model's configuration.
        family: as `LensConfig.family` has it.
        whose: the first words of an error.
    """
    for other, name in TWICE.items():
        given, built = config.to_dict().get(other), getattr(config, name)
        require(given in (None, built), whose, other, given, f"{name} = {built}")
    width = config.intermediate_size
    recurrent = RecurrentConfig(
        kind="mamba",
        state_shape=(width, config.state_size),
        d_channels=width,
        d_conv_channels=width,
        d_conv=config.conv_kernel,
    )
    return model_sizes(family, config, (LayerConfig(ssm=recurrent),) * config.num_hidden_layers, endless=True)


def mamba_block(model: Any, cfg: LensConfig, layer: int, norms: MambaNorms) -> Block:
    """A layer x += mixer(norm x), nothing else.

    Args:
        model: the family's.
        cfg: of it.
        layer: which.
        norms: of its Δ, B and C.
    """
    hf = model.backbone.layers[layer]
    norm = HookedNorm(NORMS.of(hf, "norm"), cfg.d_model, as_weight=True)
    branch = Branch({"ssm": Mamba(cfg.recurrence(layer), hf.mixer, norms)}, norm)
    return Block([branch], home=hf, d_model=cfg.d_model, wide=model.config.residual_in_fp32)


def configure(config: Any) -> LensConfig:
    """What a Mamba is made of; refuses what the family was not built for."""
    check_fields(MAMBA, config)
    return sizes(config, "mamba", "Mamba")


MAMBA = Family(
    name="mamba",
    architecture="MambaForCausalLM",
    other_fields={
        **dict.fromkeys(TWICE, ()),
        "rms_norm": (True,),
        "ssm_cfg": ({},),
        "fused_add_norm": (),
        "pad_vocab_size_multiple": (),
    },
    configure=configure,
    block=partial(mamba_block, norms=UNNORMED),
    final_norm=partial(last_norm, NORMS, "norm_f"),
    logits_in_float32=True,
)
