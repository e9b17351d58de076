"""What a family tells hybridlens about itself.

How it fails: a model of no known family, a configuration field that the family does not know, or a
value that it was not built for raises `CheckpointError` when the model is loaded, never later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    unembed_scale: Callable[[Any], float] = _unscaled
    """(configuration) → what logits are multiplied by, before any cap."""
    soft_cap: Callable[[Any], float | None] = _uncapped
    """(configuration) → c where logits are c · tanh(logits / c); None for no cap."""
    logits_in_float32: bool = False
    """Whether logits are float32 whatever the model's dtype."""
    spare_tensors: tuple[str, ...] = ()
    """Patterns (`re.search`) of tensors that published files hold beside the weights, and that mean nothing here."""


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


def turning(config: PreTrainedConfig, d_head: int) -> Turning | None:
    """The rotary embedding of a configuration, in its plain form; None for none.

    Args:
        config: with transformers' `rope_parameters`.
        d_head: width of a head.

    Raises:
        CheckpointError: for another form (scaled, stretched, by part).
    """
    rope: Mapping[str, Any] = dict(getattr(config, "rope_parameters", None) or {})
    kind = rope.get("rope_type")
    require(kind in (None, "default"), type(config).__name__, "rope_type", kind, "'default'")
    base = rope.get("rope_theta", 10000.0)
    require(base is not None, type(config).__name__, "rope_theta", base, "a number")
    dims = int(d_head * rope.get("partial_rotary_factor", 1.0))
    part = f"one that turns an even part of {d_head}"
    require(dims % 2 == 0, type(config).__name__, "partial_rotary_factor", rope.get("partial_rotary_factor"), part)
    return Turning(dims, float(base)) if dims else None


def eos_ids(config: PreTrainedConfig) -> tuple[int, ...]:
    """The end-of-text tokens of a configuration; none, one or several."""
    eos = config.eos_token_id
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (eos,)


_BOOKKEEPING = frozenset(
    {"_name_or_path", "_attn_implementation", "_attn_implementation_autoset", "_experts_implementation",
     "architectures", "auto_map", "dtype", "torch_dtype", "head_dim", "id2label", "label2id", "model_type",
     "transformers_version", "quantization_config", "rope_parameters", "layer_types", "layers_block_type"}
)  # fmt: skip
