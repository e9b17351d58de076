"""What SAELens' cfg.json says of a sparse autoencoder, checked field by field.

Two forms are read: that of SAELens 6 and later, where what is not needed to compute stands under "metadata", and the
flat one before it, whose names changed over the years. A field that is none of SAELens' own is refused, since it may
change what is computed; those that only say how the autoencoder was trained, or on what, are passed over.

How it fails: `CheckpointError` with the file, the field, what stands there and what may.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

from hybridlens.boundary_words import shown
from hybridlens.errors import CheckpointError, closest

Architecture: TypeAlias = Literal["standard", "gated", "jumprelu", "topk"]
Normalization: TypeAlias = Literal["none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"]
Reshaping: TypeAlias = Literal["none", "hook_z"]

RENAMED = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
"""Older names of fields."""

COMPUTED = {
    "architecture", "d_in", "d_sae", "dtype", "apply_b_dec_to_input", "normalize_activations", "reshape_activations",
    "k", "rescale_acts_by_decoder_norm", "activation_fn", "activation_fn_kwargs", "finetuning_scaling_factor",
    "hook_head_index", "hook_name", "metadata",
}  # fmt: skip
"""Fields that are read."""

PASSED_OVER = {
    "act_store_device", "activations_mixing_fraction", "adam_beta1", "adam_beta2", "autocast", "autocast_lm",
    "aux_loss_coefficient", "b_dec_init_method", "cached_activations_path", "checkpoint_path", "compile_llm",
    "compile_sae", "context_size", "d_head", "dataset_path", "dataset_trust_remote_code", "dead_feature_threshold",
    "dead_feature_window", "decoder_heuristic_init", "decoder_init_norm", "decoder_orthogonal_init", "device",
    "disable_concat_sequences", "eval_batch_size_prompts", "eval_every_n_wandb_logs", "exclude_special_tokens",
    "expansion_factor", "feature_reinit_scale", "feature_sampling_method", "feature_sampling_window",
    "finetuning_method", "finetuning_tokens", "from_pretrained_path", "hook_eval", "hook_layer",
    "init_encoder_as_decoder_transpose", "is_dataset_tokenized", "jumprelu_bandwidth", "jumprelu_init_threshold",
    "jumprelu_sparsity_loss_mode", "jumprelu_ste_to_input", "jumprelu_tanh_scale", "l0_coefficient", "l0_lambda",
    "l0_warm_up_steps", "l1_coefficient", "l1_warm_up_steps", "llm_compilation_mode", "log_activations_store_to_wandb",
    "log_optimizer_state_to_wandb", "log_to_wandb", "log_weights_to_wandb", "lp_norm", "lr", "lr_decay_steps", "lr_end",
    "lr_scheduler_name", "lr_warm_up_steps", "matryoshka_widths", "model_class_name", "model_from_pretrained_kwargs",
    "model_kwargs", "model_name", "mse_loss_normalization", "n_batches_in_buffer", "n_batches_in_store_buffer",
    "n_checkpoints", "n_eval_batches", "n_restart_cycles", "neuronpedia_id", "noise_scale", "normalize_sae_decoder",
    "pre_act_loss_coefficient", "prefetch_llm_batches", "prepend_bos", "resume", "run_name", "sae_compilation_mode",
    "sae_lens_training_version", "sae_lens_version", "scale_sparsity_penalty_by_decoder_norm", "seed", "seqpos_slice",
    "sequence_separator_token", "sparsity", "store_batch_size", "store_batch_size_prompts", "streaming", "target_l0",
    "tokens_per_buffer", "topk_threshold_lr", "total_training_steps", "total_training_tokens", "train_batch_size",
    "train_batch_size_tokens", "training_tokens", "use_cached_activations", "use_chat_formatting", "use_ghost_grads",
    "use_matryoshka_aux_loss", "use_sparse_activations", "verbose", "wandb_entity", "wandb_id", "wandb_log_frequency",
    "wandb_project",
}  # fmt: skip
"""Fields that say how it was trained, on what, or where it is to be put."""


@dataclass(frozen=True)
class SaeConfig:
    """What a sparse autoencoder computes.

    Attributes:
        architecture: what is made of the encoder's output: "standard" (ReLU), "gated", "jumprelu" or "topk".
        d_in: numbers that it reads.
        d_sae: features.
        apply_b_dec_to_input: whether the decoder's bias is taken from what it reads first.
        normalize_activations: how what it reads is scaled first, and what it gives back; see `SparseAutoencoder`.
        reshape_activations: "hook_z" where it reads all heads of a point side by side.
        k: features that are active at once, of "topk"; else None.
        rescale_acts_by_decoder_norm: whether, of "topk", features count by the length of what they add.
        hook_name: the point that it was trained at, as its file says; None where it does not.
        model_name: on which model, likewise.
    """

    architecture: Architecture
    d_in: int
    d_sae: int
    apply_b_dec_to_input: bool = True
    normalize_activations: Normalization = "none"
    reshape_activations: Reshaping = "none"
    k: int | None = None
    rescale_acts_by_decoder_norm: bool = False
    hook_name: str | None = None
    model_name: str | None = None

    @property
    def scales_by_input(self) -> bool:
        """Whether what it gives back is scaled as what it read was, so that decoding needs that too."""
        return self.normalize_activations in ("constant_norm_rescale", "layer_norm")


def parsed(raw: Mapping[str, Any], where: str) -> SaeConfig:
    """The configuration that a cfg.json holds.

    Args:
        raw: its fields.
        where: which file, for errors.

    Raises:
        CheckpointError: see the module.
    """
    held = {RENAMED.get(key, key): value for key, value in raw.items()}
    k, architecture = _active(held, where)
    for key in held:
        if key not in COMPUTED and key not in PASSED_OVER:
            raise CheckpointError(
                f"{where}: the field {shown(key)} is unknown, and may change what is computed"
                f"{closest(key, COMPUTED | PASSED_OVER)}; take it out if it does not"
            )
    metadata = held.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise CheckpointError(f"{where}: metadata is {shown(metadata)}, expected an object")
    beside = cast(Mapping[str, Any], metadata)
    hook_name, head = (held.get(key, beside.get(key)) for key in ("hook_name", "hook_head_index"))
    model_name = held.get("model_name", beside.get("model_name"))
    if head is not None:
        raise CheckpointError(
            f"{where}: it reads one head alone (hook_head_index {shown(head)}), expected one that reads its whole point"
        )
    if held.get("finetuning_scaling_factor"):
        raise CheckpointError(f"{where}: finetuning_scaling_factor is set, which is not supported; merge it into W_dec")
    scaled = held.get("normalize_activations")
    if scaled is None or isinstance(scaled, bool):
        scaled = "expected_average_only_in" if scaled else "none"
    in_heads = "hook_z" if isinstance(hook_name, str) and "hook_z" in hook_name and "metadata" not in held else "none"
    return SaeConfig(
        cast(Architecture, architecture),
        _count(held, "d_in", where),
        _count(held, "d_sae", where),
        _flag(held, "apply_b_dec_to_input", True, where),
        cast(Normalization, _one_of(scaled, "normalize_activations", Normalization, where)),
        cast(Reshaping, _one_of(held.get("reshape_activations", in_heads), "reshape_activations", Reshaping, where)),
        k,
        _flag(held, "rescale_acts_by_decoder_norm", False, where),
        hook_name if isinstance(hook_name, str) else None,
        model_name if isinstance(model_name, str) else None,
    )


def _active(held: Mapping[str, Any], where: str) -> tuple[int | None, str]:
    """k, and the architecture, which older files say by their activation function."""
    activation, options = held.get("activation_fn", "relu"), held.get("activation_fn_kwargs") or {}
    architecture = held.get("architecture", "standard")
    if activation == "topk":
        architecture = "topk" if architecture == "standard" else architecture
        held = {"k": options.get("k"), **held} if isinstance(options, Mapping) else held
    elif activation != "relu":
        raise CheckpointError(f"{where}: activation_fn is {shown(activation)}, expected relu or topk")
    architecture = _one_of(architecture, "architecture", Architecture, where)
    if architecture != "topk":
        return None, architecture
    k, d_sae = _count(held, "k", where), _count(held, "d_sae", where)
    if k > d_sae:
        raise CheckpointError(f"{where}: k is {k}, expected at most d_sae, which is {d_sae}")
    return k, architecture


def _count(held: Mapping[str, Any], key: str, where: str) -> int:
    value = held.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{where}: {key} is {shown(value)}, expected a whole number from 1 up")
    return value


def _flag(held: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    value = held.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: {key} is {shown(value)}, expected true or false")
    return value


def _one_of(value: object, key: str, kinds: Any, where: str) -> str:
    names: tuple[str, ...] = get_args(kinds)
    if value not in names:
        raise CheckpointError(f"{where}: {key} is {shown(value)}, expected one of {', '.join(names)}")
    return cast(str, value)
