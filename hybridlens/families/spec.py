"""What a family tells hybridlens about itself, and how a checkpoint finds its family.

How it fails: a model of no known family, a configuration field that the family does not know, or a
value that it was not built for raises `CheckpointError` when the model is loaded, never later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hybridlens.components import Block, HookedNorm
from hybridlens.errors import CheckpointError
from hybridlens.families.fields import Rule, check_values
from hybridlens.families.layout import Layout

LayerType: TypeAlias = Literal["attention", "ssm"]


@dataclass(frozen=True)
class LensConfig:
    """Sizes and structure of a model, under TransformerLens' names where it has them."""

    family: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    window: int | None
    """Keys that a query of an attention layer sees, itself included; None: all."""
    n_ctx: int | None
    """Longest sequence that the configuration allows; None: no limit."""
    layer_types: tuple[LayerType, ...]
    d_channels: int
    """Recurrent channels."""
    d_state: int | None
    """State size per channel; None where a channel's state is one number."""
    d_conv: int
    """Taps of the recurrent layers' convolution."""
    n_experts: int | None
    """Experts of a mixture-of-experts layer; None where there is none."""
    n_experts_per_token: int | None
    moe_layers: tuple[int, ...]
    act_fn: str
    eos_token_ids: tuple[int, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the model's embedding is."""
    dtype: torch.dtype = torch.float32
    """Of the weights."""
    normalization_type: str = "RMS"
    attn_only: bool = False

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Indices of the attention layers."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "attention")

    @property
    def ssm_layers(self) -> tuple[int, ...]:
        """Indices of the recurrent layers."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "ssm")

    def dimensions(self, axes: Sequence[str]) -> tuple[int | None, ...]:
        """The size of each axis letter; None for batch, positions and keys."""
        sizes: Mapping[str, int | None] = {
            "d": self.d_model, "h": self.n_heads, "g": self.n_kv_heads, "e": self.d_head, "f": self.d_mlp,
            "c": self.d_channels, "n": self.d_state, "x": self.n_experts, "r": self.n_experts_per_token,
            "v": self.d_vocab, "1": 1,
        }  # fmt: skip
        return tuple(sizes.get(axis) for axis in axes)


@dataclass(frozen=True)
class Family:
    """One family of hybrid models."""

    name: str
    architecture: str
    """Class name of its causal language model in transformers."""
    other_fields: Mapping[str, tuple[Any, ...]]
    """Configuration fields of published checkpoints that transformers itself does not declare, and
    the values that mean what is built here; an empty tuple allows any."""
    configure: Callable[[Any], LensConfig]
    embed: Callable[[Any, Tensor], Tensor]
    """(model, tokens [b p]) → what enters block 0 [b p d]."""
    block: Callable[[Any, LensConfig, int], Block]
    """(model, configuration, layer) → the layer with its hook points."""
    final_norm: Callable[[Any], HookedNorm]
    unembed: Callable[[Any, Tensor], Tensor]
    """(model, normalised residual [b p d]) → logits [b p v], after any soft cap."""
    inactive_expert_parameters: Callable[[Any], int]
    """Parameters of the experts that a token does not use."""
    layout: Layout
    """Where its weights are."""
    limits: Mapping[str, Rule] = field(default_factory=dict[str, Rule])
    """Rules for fields that stand beside or before those that hold for all families (`fields.FIELDS`)."""
    spare_tensors: tuple[str, ...] = ()
    """Patterns (`re.search`) of tensors that published files hold beside the weights, and that mean nothing here."""


def family_of(architecture: str, families: Sequence[Family]) -> Family:
    """The family of a transformers class name.

    Raises:
        CheckpointError: when no family has it.
    """
    for family in families:
        if family.architecture == architecture:
            return family
    known = ", ".join(family.architecture for family in families)
    raise CheckpointError(f"{architecture} is of no family that hybridlens knows; it opens {known}")


def check_fields(family: Family, config: PreTrainedConfig) -> None:
    """Refuse configuration fields that nothing here or in transformers declares, and values that no model can have.

    Raises:
        CheckpointError: naming the field and its value.
    """
    declared = set(type(config)().to_dict()) | set(config.attribute_map)
    values: Mapping[str, Any] = config.to_dict()
    check_values(values, family.architecture, family.limits)
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
