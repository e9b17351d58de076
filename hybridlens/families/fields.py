"""What the fields of configurations may hold, by their names: one table for all families, as data.

Names mean the same in every configuration of transformers, so a rule stands here once; what is a family's own, its row
checks. A field without a rule is not looked at. The bounds are far above every published model and far below what
makes building one hang, even without memory for its weights.

How it fails: `CheckpointError` names the field, its value and what was expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from transformers.activations import ACT2FN

from hybridlens.errors import CheckpointError

_DEEP = 4  # configurations inside configurations, at most


@runtime_checkable
class Rule(Protocol):
    """What a field may hold."""

    def allows(self, value: object) -> bool:
        """Whether it may hold `value`."""
        ...

    def __str__(self) -> str:
        """What is expected, in words."""
        ...


@dataclass(frozen=True)
class Whole:
    """A whole number from `least` to `most`."""

    least: int
    most: int
    optional: bool = False

    def allows(self, value: object) -> bool:
        """See `Rule`."""
        if value is None:
            return self.optional
        return isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most}{' or null' if self.optional else ''}"


@dataclass(frozen=True)
class Real:
    """A finite number from `least` (or above it, where `above`) to `most`."""

    least: float
    most: float
    above: bool = False
    optional: bool = False

    def allows(self, value: object) -> bool:
        """See `Rule`."""
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        low = f"above {self.least:g}" if self.above else f"from {self.least:g}"
        return f"a number {low} to {self.most:g}{' or null' if self.optional else ''}"


@dataclass(frozen=True)
class OneOf:
    """One of some values, of the same type."""

    values: tuple[object, ...]

    def allows(self, value: object) -> bool:
        """See `Rule`."""
        return any(type(value) is type(known) and value == known for known in self.values)

    def __str__(self) -> str:
        words = ", ".join("null" if value is None else str(value) for value in self.values)
        return words if len(self.values) == 1 else f"one of {words}"


@dataclass(frozen=True)
class Either:
    """What any of several rules allows."""

    rules: tuple[Rule, ...]

    def allows(self, value: object) -> bool:
        """See `Rule`."""
        return any(rule.allows(value) for rule in self.rules)

    def __str__(self) -> str:
        return " or ".join(map(str, self.rules))


@dataclass(frozen=True)
class Texts:
    """A list of texts, of these values where there are any."""

    values: tuple[str, ...] = ()
    optional: bool = False

    def allows(self, value: object) -> bool:
        """See `Rule`."""
        if value is None:
            return self.optional
        if not isinstance(value, list | tuple) or not value:
            return False
        texts = cast(Sequence[object], value)
        return all(isinstance(text, str) and (not self.values or text in self.values) for text in texts)

    def __str__(self) -> str:
        return f"a list of texts{' among ' + ', '.join(self.values) if self.values else ''}"


@dataclass(frozen=True)
class Table:
    """An object with names, or null."""

    def allows(self, value: object) -> bool:
        """See `Rule`."""
        return value is None or isinstance(value, Mapping)

    def __str__(self) -> str:
        return "an object with names, or null"


@dataclass(frozen=True)
class Ids:
    """A token, several, or none."""

    def allows(self, value: object) -> bool:
        """See `Rule`."""
        one = Whole(-1, 2**31 - 1)
        if isinstance(value, list | tuple):
            return all(one.allows(token) for token in cast(Sequence[object], value))
        return value is None or one.allows(value)

    def __str__(self) -> str:
        return "a token id, a list of them, or null"


FLAG = OneOf((True, False))
DTYPE = OneOf((None, "auto", "float32", "bfloat16", "float16", "float64"))
SIZE = Whole(1, 2**22)
HEADS = Whole(1, 2**14)
COUNT = Whole(1, 2**14)
WIDTH = Whole(2, 2**10)
"""Taps of a convolution: with one tap there would be nothing to remember."""
LAYERS = Whole(1, 2**10)
SCALE = Real(0.0, 1e6)
FACTOR = Real(0.0, 1e6, above=True)
OPTIONAL_SIZE = Whole(1, 2**22, optional=True)
WINDOW = Whole(2, 2**31 - 1, optional=True)
"""Keys that a query sees: with itself alone no layer would look back."""
ACTIVATION = OneOf(tuple(str(name) for name in ACT2FN))
TEXT_LIST = Texts(optional=True)

FIELDS: Mapping[str, Rule] = {
    "architectures": TEXT_LIST, "layer_types": TEXT_LIST, "layers_block_type": TEXT_LIST,
    "transformers_weights": OneOf((None,)),
    "dtype": DTYPE, "torch_dtype": DTYPE,
    "rope_parameters": Table(), "rope_scaling": Table(), "quantization_config": Table(),
    "id2label": Table(), "label2id": Table(),
    "vocab_size": Whole(1, 2**26),
    "hidden_size": SIZE, "intermediate_size": SIZE, "lru_width": OPTIONAL_SIZE, "head_dim": OPTIONAL_SIZE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": Whole(1, 2**14, optional=True),
    "attention_window_size": WINDOW, "sliding_window": WINDOW, "max_position_embeddings": Whole(1, 2**31 - 1),
    "conv1d_width": WIDTH, "mamba_d_conv": WIDTH,
    "mamba_d_state": COUNT, "mamba_expand": Whole(1, 64),
    "n_mamba_heads": HEADS, "attention_head_dim": OPTIONAL_SIZE, "attention_hidden_size": OPTIONAL_SIZE,
    "hidden_mamba_act": ACTIVATION,
    "mamba_n_heads": HEADS, "mamba_num_heads": HEADS, "mamba_head_dim": SIZE, "mamba_n_groups": HEADS,
    "n_groups": HEADS, "ssm_state_size": COUNT, "conv_kernel": WIDTH, "mamba_d_head": Either((SIZE, OneOf(("auto",)))),
    "time_step_min": Real(0.0, 1e6), "n_routed_experts": COUNT, "n_group": COUNT, "topk_group": COUNT,
    "moe_intermediate_size": SIZE, "moe_shared_expert_intermediate_size": SIZE, "moe_latent_size": OPTIONAL_SIZE,
    "routed_scaling_factor": SCALE, "norm_topk_prob": FLAG, "mlp_bias": FLAG, "use_bias": FLAG, "use_conv_bias": FLAG,
    "mlp_hidden_act": ACTIVATION, "mamba_hidden_act": ACTIVATION, "layer_norm_epsilon": Real(0.0, 1.0, above=True),
    "linear_num_key_heads": Whole(1, 2**14, optional=True), "linear_num_value_heads": Whole(1, 2**14, optional=True),
    "linear_key_head_dim": OPTIONAL_SIZE, "linear_value_head_dim": OPTIONAL_SIZE, "linear_conv_kernel_dim": WIDTH,
    "linear_allow_neg_eigval": FLAG,
    "linear_num_heads": HEADS, "linear_head_dim": SIZE, "kv_lora_rank": SIZE, "qk_rope_head_dim": SIZE,
    "qk_nope_head_dim": SIZE, "v_head_dim": SIZE, "n_shared_experts": COUNT, "num_shared_experts": COUNT,
    "num_expert_group": COUNT, "num_experts_per_token": COUNT, "moe_renormalize": FLAG,
    "linear_attn_config": Table(), "mlp_layer_types": Texts(("dense", "sparse"), optional=True),
    "mamba_dt_rank": Either((SIZE, OneOf(("auto",)))),
    "state_size": COUNT, "time_step_rank": Either((SIZE, OneOf(("auto",)))),
    "num_experts": Whole(0, 2**14), "num_local_experts": Whole(0, 2**14), "num_experts_per_tok": Whole(0, 2**14),
    "shared_intermediate_size": Whole(0, 2**22),
    "embedding_multiplier": FACTOR, "residual_multiplier": FACTOR, "attention_multiplier": FACTOR,
    "logits_scaling": FACTOR,
    "attn_layer_period": LAYERS, "attn_layer_offset": Whole(0, 2**10),
    "expert_layer_period": LAYERS, "expert_layer_offset": Whole(0, 2**10),
    "block_types": Texts(("recurrent", "attention")), "_block_types": Texts(("recurrent", "attention")),
    "hidden_act": ACTIVATION, "hidden_activation": ACTIVATION,
    "rms_norm_eps": Real(0.0, 1.0, above=True), "logits_soft_cap": Real(0.0, 1e9, above=True),
    "final_logit_softcapping": Real(0.0, 1e9, above=True, optional=True),
    "attn_logit_softcapping": Real(0.0, 1e9, above=True, optional=True),
    "query_pre_attn_scalar": Real(0.0, 1e9, above=True), "max_window_layers": Whole(0, 2**10),
    "factor": Real(0.0, 1e6, above=True), "low_freq_factor": Real(0.0, 1e6, above=True),
    "high_freq_factor": Real(0.0, 1e6, above=True), "original_max_position_embeddings": Whole(1, 2**31 - 1),
    "rope_local_base_freq": Real(0.0, 1e15, above=True), "use_sliding_window": FLAG,
    "mixer_rms_eps": Real(0.0, 1.0, above=True),
    "rope_theta": Real(0.0, 1e15, above=True, optional=True), "partial_rotary_factor": Real(0.0, 1.0),
    "attention_dropout": Real(0.0, 1.0), "initializer_range": SCALE, "w_init_variance_scale": SCALE,
    "final_w_init_variance_scale": SCALE, "router_aux_loss_coef": SCALE,
    "pad_token_id": Ids(), "bos_token_id": Ids(), "eos_token_id": Ids(),
    "conv_L_cache": WIDTH, "conv_bias": FLAG, "norm_eps": Real(0.0, 1.0, above=True), "block_multiple_of": SIZE,
    "block_ffn_dim_multiplier": Real(0.0, 1e3, above=True), "block_auto_adjust_ff_dim": FLAG,
    "num_dense_layers": Whole(0, 2**10),
    "use_expert_bias": FLAG,
    "tie_word_embeddings": FLAG, "attention_bias": FLAG, "use_cache": FLAG, "mamba_conv_bias": FLAG,
    "mamba_proj_bias": FLAG, "output_router_logits": FLAG,
    "residual_in_fp32": FLAG, "block_size": COUNT, "router_jitter_noise": SCALE,
    "full_attn_alpha_factor": SCALE, "full_attn_beta_factor": SCALE, "linear_attn_alpha_factor": SCALE,
    "linear_attn_beta_factor": SCALE, "mlp_alpha_factor": SCALE, "mlp_beta_factor": SCALE,
}  # fmt: skip
"""What each field may hold, wherever it stands in a configuration."""

_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
_DIVIDED = (("num_attention_heads", "num_key_value_heads"), ("lru_width", "num_attention_heads"))

_EXPERTS = ("num_experts", "num_local_experts")


def check_values(values: Mapping[str, Any], where: str, path: str = "", depth: int = 0) -> None:
    """Hold every field of a configuration, and of those inside it, against its rule.

    Args:
        values: the configuration, as its file has it.
        where: whose it is, for the message.
        path: what stands before the names, for the message.
        depth: how deep inside the configuration `values` stands.

    Raises:
        CheckpointError: naming the first field that does not hold what it should.
    """
    for name, value in values.items():
        rule = FIELDS.get(name)
        if rule is not None and not rule.allows(value):
            raise CheckpointError(f"{where}: {path}{name} is {_shown(value)}, expected {rule}")
        if isinstance(value, Mapping) and depth < _DEEP and name not in ("id2label", "label2id"):
            check_values(cast(Mapping[str, Any], value), where, f"{path}{name}.", depth + 1)
    _check_together(values, where, path)


def _check_together(values: Mapping[str, Any], where: str, path: str) -> None:
    """What no field says alone: tokens of the vocabulary, heads that share evenly, experts that are used."""
    used = values.get("num_experts_per_tok")
    for name in _EXPERTS if used == 0 else ():
        if experts := values.get(name):
            raise CheckpointError(f"{where}: {path}num_experts_per_tok is 0, expected at least 1 of {name} = {experts}")
    size = values.get("vocab_size")
    for name in _TOKENS if size is not None else ():
        given: Any = values.get(name)
        tokens: Sequence[int | None] = given if isinstance(given, list | tuple) else (given,)
        if any(token is not None and token >= size for token in tokens):
            raise CheckpointError(f"{where}: {path}{name} is {_shown(given)}, expected below vocab_size = {size}")
    for whole, part in _DIVIDED:
        total, parts = values.get(whole), values.get(part)
        if total is not None and parts is not None and total % parts:
            raise CheckpointError(f"{where}: {path}{whole} is {total}, expected a multiple of {part} = {parts}")


def _shown(value: object) -> str:
    """A value in a message, cut short; numbers of thousands of digits too."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
