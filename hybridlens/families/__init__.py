"""The families of hybrid models that hybridlens opens, one module each.

A family is a row of data (`spec.Family`) and the code where it really differs from the others. To
add one, write its module and name its row here; nothing else asks which family a model is of.

How it fails: a model of no family raises `CheckpointError`, which names what is near and all that can be opened.

Modules:
    fields: what the fields of configurations may hold, by their names
    spec: what a row says, and what every configuration is asked
    parts: what most families build alike
    recurrent_gemma: RecurrentGemma
    jamba: Jamba
    mamba: Mamba
    falcon_mamba: Falcon-Mamba
    mamba2: Mamba-2
    falcon_h1: Falcon-H1
    qwen: what Qwen3-Next and Qwen3.5 share
    qwen3_next: Qwen3-Next
    qwen3_5: Qwen3.5, dense
    qwen3_5_moe: Qwen3.5 with experts
    nemotron_h: Nemotron-H
    bamba: Bamba
    granitemoehybrid: Granite 4
    lfm2: LFM2, dense
    lfm2_moe: LFM2 with experts
    olmo_hybrid: OLMo-Hybrid
    kimi_linear: Kimi-Linear
    zamba: Zamba
    zamba2: Zamba2
    minimax: MiniMax, whose stream goes on behind its norms
    llama: Llama, attention alone
    qwen3: Qwen3, attention alone
    gemma2: Gemma 2, attention alone
    gemma3: Gemma 3, attention alone
"""

import copy
import difflib
import re
from collections.abc import Sequence
from typing import Any

import transformers

from hybridlens.errors import CheckpointError
from hybridlens.families.bamba import BAMBA
from hybridlens.families.falcon_h1 import FALCON_H1
from hybridlens.families.falcon_mamba import FALCON_MAMBA
from hybridlens.families.gemma2 import GEMMA2
from hybridlens.families.gemma3 import GEMMA3
from hybridlens.families.granitemoehybrid import GRANITEMOEHYBRID
from hybridlens.families.jamba import JAMBA
from hybridlens.families.kimi_linear import KIMI_LINEAR
from hybridlens.families.lfm2 import LFM2
from hybridlens.families.lfm2_moe import LFM2_MOE
from hybridlens.families.llama import LLAMA
from hybridlens.families.mamba import MAMBA
from hybridlens.families.mamba2 import MAMBA2
from hybridlens.families.minimax import MINIMAX
from hybridlens.families.nemotron_h import NEMOTRON_H
from hybridlens.families.olmo_hybrid import OLMO_HYBRID
from hybridlens.families.qwen3 import QWEN3
from hybridlens.families.qwen3_5 import QWEN3_5
from hybridlens.families.qwen3_5_moe import QWEN3_5_MOE
from hybridlens.families.qwen3_next import QWEN3_NEXT
from hybridlens.families.recurrent_gemma import RECURRENT_GEMMA
from hybridlens.families.spec import Family
from hybridlens.families.zamba import ZAMBA
from hybridlens.families.zamba2 import ZAMBA2

FAMILIES: tuple[Family, ...] = (
    RECURRENT_GEMMA,
    JAMBA,
    MAMBA2,
    FALCON_H1,
    QWEN3_NEXT,
    QWEN3_5,
    QWEN3_5_MOE,
    NEMOTRON_H,
    GRANITEMOEHYBRID,
    LFM2,
    LFM2_MOE,
    OLMO_HYBRID,
    MAMBA,
    FALCON_MAMBA,
    BAMBA,
    LLAMA,
    QWEN3,
    GEMMA2,
    GEMMA3,
    KIMI_LINEAR,
    ZAMBA,
    ZAMBA2,
    MINIMAX,
)

__all__ = ["FAMILIES", "Family", "family_for", "is_known", "of_no_family", "text_config"]


def family_for(config: Any, whose: str, named: Sequence[str] | None = None) -> Family:
    """The family that a model is of: the one place where that is decided.

    Args:
        config: the model's configuration.
        whose: the first words of an error, as in "the model".
        named: classes of models that it is said to be; None for what the configuration says, if it does.

    Raises:
        CheckpointError: when it is of none, or `named` is another model than its configuration is made for.
    """
    named = list(getattr(config, "architectures", None) or []) if named is None else named
    for family in FAMILIES:
        if _is_of(config, family.architecture):
            _check_named(config, whose, named, (family.architecture,))
            return family
        if _is_of(config, family.multimodal):
            raise CheckpointError(
                f"{whose} is a {family.multimodal}, whose text model alone can be opened: give hybridlens.load its "
                f"folder, or HybridLens a {family.architecture}"
            )
    raise of_no_family(whose, named[0] if named else type(config).__name__)


def text_config(config: Any, whose: str) -> Any:
    """The configuration of the text model: itself, or what that of a multimodal model nests.

    Embedding and unembedding are tied where either of the two says so; the files are held against that.

    Args:
        config: of a checkpoint.
        whose: the first words of an error.

    Raises:
        CheckpointError: the checkpoint is said to be of another model than its configuration is made for.
    """
    for family in FAMILIES:
        if not _is_of(config, family.multimodal):
            continue
        named = list(config.architectures or [])
        _check_named(config, whose, named, (str(family.multimodal), family.architecture))
        text = copy.deepcopy(config.text_config)
        text.tie_word_embeddings = text.tie_word_embeddings or config.tie_word_embeddings
        if getattr(config, "quantization_config", None) is not None:
            text.quantization_config = config.quantization_config
        return text
    return config


def is_known(given: str) -> bool:
    """Whether there is a family of a model's class, or of its `model_type`."""
    return _stem(given) in {_stem(family.architecture) for family in FAMILIES}


def of_no_family(whose: str, given: str) -> CheckpointError:
    """The refusal of a model that cannot be opened.

    Args:
        whose: the first words.
        given: the model's class, or its `model_type`.
    """
    known = {_stem(family.architecture): family.architecture for family in FAMILIES}
    near = [known[stem] for stem in difflib.get_close_matches(_stem(given), known, cutoff=0.5)]
    return CheckpointError(
        f"{whose} is a {given}, of no family that hybridlens knows; it opens {', '.join(known.values())}"
        + (f"; close names: {', '.join(near)}" if near else "")
    )


def _is_of(config: Any, model: str | None) -> bool:
    return model is not None and type(config) is getattr(transformers, model).config_class


def _check_named(config: Any, whose: str, named: Sequence[str], expected: tuple[str, ...]) -> None:
    if named and not set(named) & set(expected):
        raise CheckpointError(
            f"{whose}: its configuration says model_type {config.model_type!r}, but architectures "
            f"{', '.join(named)}, expected {' or '.join(expected)}"
        )


def _stem(name: str) -> str:
    """What a model's class name and its `model_type` have in common, so that no ending makes two look alike."""
    return re.sub(r"For[A-Z]\w*$|Config$|LMHeadModel$|[_.-]|(?<=.)[Tt]ext$", "", name).lower()
