"""What a family tells hybridlens about itself.

How it fails: a model of no known family, a configuration field that the family does not know, or a
value that it was not built for raises `CheckpointError` when the model is loaded, never later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

from hybridlens.blocks import Block
from hybridlens.config import LensConfig
from hybridlens.errors import CheckpointError
from hybridlens.families.fields import check_values
from hybridlens.mixers.rotary import Turning
from hybridlens.norms import HookedNorm


def _unscaled(config: Any) -> float:
    return 1.0


def _uncapped(config: Any) -> None:
    return None


@dataclass(frozen=True)
class Family:
    """One family of hybrid models: a row of data."""

    name: str
    architecture: str
    """Class name of its causal language model in transformers."""
    other_fields: Mapping[str, tuple[Any, ...]]
    """Configuration fields of published checkpoints that transformers itself does not declare, and
    the values that mean what is built here; an empty tuple allows any."""
    configure: Callable[[Any], LensConfig]
    block: Callable[[Any, LensConfig, int], Block]
    """(model, configuration, layer) → the layer with its hook points."""
    final_norm: Callable[[Any, LensConfig], HookedNorm]
    embed_scale: Callable[[Any], float] = _unscaled
    """(configuration) → what embeddings are multiplied by."""
    embed_inside: Callable[[Any], float] = _unscaled
    """(configuration) → what the embedding's module multiplies by itself, in its weights' dtype."""
    unembed_scale: Callable[[Any], float] = _unscaled
    """(configuration) → what logits are multiplied by, before any cap."""
    soft_cap: Callable[[Any], float | None] = _uncapped
    """(configuration) → c where logits are c · tanh(logits / c); None for no cap."""
    logits_in_float32: bool = False
    """Whether logits are float32 whatever the model's dtype."""
    spare_tensors: tuple[str, ...] = ()
    """Patterns (`re.search`) of tensors that published files hold and the text model has no place for: they are left
    out, and said to be."""
    multimodal: str | None = None
    """Class name of the model that this one is the text model of; its configuration nests this one's, `text_config`."""


def check_fields(family: Family, config: PreTrainedConfig) -> None:
    """Refuse configuration fields that nothing here or in transformers declares, and values that no model can have.

    Raises:
        CheckpointError: naming the field and its value.
    """
    declared = set(type(config)().to_dict()) | set(config.attribute_map)
    values: Mapping[str, Any] = config.to_dict()
    check_values(values, family.architecture)
    for name, value in values.items():
        if name in declared or name in _BOOKKEEPING:
            continue
        allowed = family.other_fields.get(name)
        if allowed is None or (allowed and value not in allowed):
            expected = "no such field" if allowed is None else f"one of {', '.join(map(repr, allowed))}"
            raise CheckpointError(
                f"{family.architecture}: configuration field {name} = {value!r}, expected {expected}; "
                "hybridlens does not know what it changes"
            )


def require(condition: bool, family: str, what: str, given: object, expected: object) -> None:
    """Refuse a configuration value that the family was not built for.

    Raises:
        CheckpointError: when `condition` is false.
    """
    if not condition:
        raise CheckpointError(f"{family}: {what} is {given!r}, expected {expected}")


def turning(
    config: PreTrainedConfig, d_head: int, *, kind: str | None = None, whole: bool = False, stretched: bool = False
) -> Turning | None:
    """The rotary embedding of a configuration; None for none.

    Args:
        config: with transformers' `rope_parameters`.
        d_head: width of a head.
        kind: of the layer, where `rope_parameters` holds those of each kind under its name.
        whole: the family turns whole heads, whatever part is asked for.
        stretched: the family's embedding may stretch positions: "linear" divides all frequencies by a factor (Chen et
            al. 2023, "Extending Context Window of Large Language Models via Positional Interpolation"); "llama3"
            divides those of long waves (Grattafiori et al. 2024, "The Llama 3 Herd of Models").

    Raises:
        CheckpointError: for another form, or a part of a head where whole ones turn.
    """
    rope: Mapping[str, Any] = dict(getattr(config, "rope_parameters", None) or {})
    rope = rope if kind is None else dict(rope.get(kind) or {})
    name, form, part = type(config).__name__, rope.get("rope_type"), rope.get("partial_rotary_factor")
    forms = (None, "default", *(("linear", "llama3") if stretched else ()))
    require(form in forms, name, "rope_type", form, " or ".join(map(repr, forms[1:])))
    base = rope.get("rope_theta", 10000.0)
    require(base is not None, name, "rope_theta", base, "a number")
    dims = int(d_head * (1.0 if part is None else part))
    require(dims == d_head or not whole, name, "partial_rotary_factor", part, "1.0: whole heads turn")
    require(dims % 2 == 0, name, "partial_rotary_factor", part, f"one that turns an even part of {d_head}")
    if not dims:
        return None
    plain = Turning(dims, float(base))
    if form == "linear":
        return replace(plain, stretched=tuple((plain.frequencies / rope["factor"]).tolist()))
    return replace(plain, stretched=_llama3(plain, rope, name)) if form == "llama3" else plain


def _llama3(plain: Turning, rope: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """Frequencies divided by `factor` where a turn takes longer than the first length ÷ `low_freq_factor`.

    They stay as they are where one takes less than the length ÷ `high_freq_factor`; in between they are mixed evenly by
    the number of turns in that length.
    """
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    require(high > low, name, "high_freq_factor", high, f"above low_freq_factor = {low}")
    fast = plain.frequencies
    turns = rope["original_max_position_embeddings"] * fast / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return tuple((fast * kept + fast / factor * (1 - kept)).tolist())


def eos_ids(config: PreTrainedConfig) -> tuple[int, ...]:
    """The end-of-text tokens of a configuration; none, one or several."""
    eos = config.eos_token_id
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (eos,)


def ends_of(model: Any, config_ids: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens that end what a model writes: those of its generation_config.json, where that has any.

    Models of chats list their end of turn there alone, and transformers' `generate` stops by it.

    Args:
        model: the Hugging Face model.
        config_ids: those of its configuration, which count otherwise.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return config_ids if named is None else tuple(named) if isinstance(named, list) else (named,)


_BOOKKEEPING = frozenset(
    {"_name_or_path", "_attn_implementation", "_attn_implementation_autoset", "_experts_implementation",
     "architectures", "auto_map", "dtype", "torch_dtype", "head_dim", "id2label", "label2id", "model_type",
     "transformers_version", "quantization_config", "rope_parameters", "layer_types", "layers_block_type"}
)  # fmt: skip
