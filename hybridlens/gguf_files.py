"""A model in one GGUF file, as llama.cpp has it: opened by transformers, its weights dequantised.

transformers makes a configuration of the metadata that it knows, and leaves the rest out without a word: a stretched
rotary, a layer norm inside Mamba, the head width of Qwen3. So every entry is looked at here: transformers reads it, or
the configuration has the same value, or it is put there, or the file is refused.

Nearly all of the time that opening one takes is the package gguf's, whose reader goes through the vocabulary a token at
a time, and which transformers asks three times (configuration, tokenizer, weights): about 100 s for 262,144 tokens,
reckoned from 4,000 and 16,000 tokens on one core, whatever the size of the model.

How it fails: `CheckpointError` in one line: the package gguf is missing, the file is damaged or one of several parts,
its architecture is none that transformers dequantises, or an entry or tensor is left over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, cast

import transformers
from transformers import AutoConfig, modeling_gguf_pytorch_utils
from transformers.integrations import gguf as gguf_reading

from hybridlens.checkpoint_files import CheckpointFiles, opening
from hybridlens.errors import CheckpointError

_legacy: Any = modeling_gguf_pytorch_utils
_fast: Any = gguf_reading

_WITH_CODE = {
    "lfm2": {
        "context_length", "embedding_length", "feed_forward_length", "block_count", "attention.head_count",
        "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "shortconv.l_cache", "rope.freq_base",
    },
    "qwen35": {
        "context_length", "embedding_length", "feed_forward_length", "block_count", "attention.head_count",
        "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.key_length",
        "full_attention_interval", "ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.inner_size",
        "ssm.time_step_rank", "rope.freq_base", "rope.dimension_sections", "rope.dimension_count",
        "nextn_predict_layers",
    },
}  # fmt: skip
"""Entries that transformers reads of architectures for which it has a function instead of a table."""
_WITH_CODE["qwen35moe"] = _WITH_CODE["qwen35"] | {
    "expert_feed_forward_length", "expert_shared_feed_forward_length", "expert_count", "expert_used_count",
}  # fmt: skip

_LARGEST = {"gemma2": 46, "gemma3": 62}
"""Layers of the one size of Gemma whose scores are not scaled by the width of a head."""

_OF_NO_MODEL = {"unk_token_id", "_model_name_or_path"}
"""Fields that transformers puts into configurations which have no such field: of its tokenizer, of its name."""

_WITHOUT_EFFECT = {"rope.scaling.original_context_length", "rope.scaling.finetuned", "pooling_type"}
"""On what the model computes, as long as no scaling is named."""


def _windows(config: Any, said: object) -> object:
    """The configuration's pattern of windows, in the form of what the file says: a period, or layer by layer."""
    windowed = [kind == "sliding_attention" for kind in config.layer_types]
    if isinstance(said, list):
        return windowed
    period = cast(int, said)
    return said if windowed == [bool((layer + 1) % period) for layer in range(len(windowed))] else windowed


def _rotary(config: Any, kind: str | None = None) -> Any:
    held: Any = config.rope_parameters
    return (held.get(kind) or held if kind else held).get("rope_theta")


_SAME: Mapping[str, Callable[[Any, object], object]] = {
    "attention.value_length": lambda config, _: config.head_dim,
    "attention.key_length": lambda config, _: config.head_dim,
    "rope.dimension_count": lambda config, _: config.head_dim,
    "rope.freq_base_swa": lambda config, _: _rotary(config, "sliding_attention"),
    "attn_logit_softcapping": lambda config, _: config.attn_logit_softcapping,
    "final_logit_softcapping": lambda config, _: config.final_logit_softcapping,
    "attention.sliding_window_pattern": _windows,
    "attention.causal": lambda config, _: True,
    "rope.scaling.type": lambda config, _: "none",
    "rope.scaling.factor": lambda config, _: 1.0,
    "expert_count": lambda config, _: 0,
    "expert_used_count": lambda config, _: 0,
    "ssm.dt_b_c_rms": lambda config, _: False,
}
"""What an entry that transformers leaves out has to be, for the model to be the one that it makes."""


def read_config(held: CheckpointFiles) -> Any:
    """The configuration of a GGUF file's model.

    Raises:
        CheckpointError: see the module.
    """
    if find_spec("gguf") is None:
        raise CheckpointError(
            f"'{held.source}' is a GGUF file, and the package that reads them is missing; pip install gguf"
        )
    file = str(held.path(str(held.gguf)))
    with opening(f"'{held.source}' is no GGUF file that can be read"):
        entries, _ = _fast.read_gguf_metadata(file)
    kind = str(entries.get("general.architecture"))
    if int(entries.get("split.count") or 1) > 1:
        raise CheckpointError(
            f"'{held.source}' is one of {entries['split.count']} parts of a model; join them first: llama.cpp's "
            "llama-gguf-split --merge does"
        )
    known = [*_fast.GGUF_CONFIG_ARCHS, *_legacy.GGUF_SUPPORTED_ARCHITECTURES]
    if kind not in known:
        raise CheckpointError(
            f"'{held.source}' is a GGUF file of a {kind}, which transformers does not dequantise; give the model that "
            "it was made of"
        )
    with opening(f"'{held.source}': no configuration can be made of its metadata"):
        config: Any = AutoConfig.from_pretrained(held.folder, gguf_file=held.gguf, trust_remote_code=False)
    for field in _OF_NO_MODEL & set(vars(config)):
        delattr(config, field)
    if kind == "mamba":
        del config.max_position_embeddings  # which a recurrence has none of
    _check_entries(entries, kind, config, held.source)
    return config


def loading(held: CheckpointFiles) -> dict[str, Any]:
    """What ``from_pretrained`` is given so that it reads the file into plain weights."""
    config: Any = transformers.GgufConfig
    # shapes that differ are told by the loader, and refused with the rest of what it tells
    return {"gguf_file": held.gguf, "quantization_config": config(dequantize=True), "ignore_mismatched_sizes": True}


def check_tensors(model: Any, held: CheckpointFiles) -> None:
    """Refuse tensors that transformers would leave out.

    Args:
        model: that the configuration describes, its weights away or not.
        held: the file.

    Raises:
        CheckpointError: naming them.
    """
    entries, names = _fast.read_gguf_metadata(str(held.folder / str(held.gguf)))
    kind = entries["general.architecture"]
    if kind in _fast.GGUF_ARCHS:
        return  # that loader tells what is left over
    processor = _legacy.TENSOR_PROCESSORS.get(kind, _legacy.TensorProcessor)(config=model.config.to_dict())
    with opening(f"'{held.source}': its tensors cannot be told apart"):
        places = _legacy.get_gguf_hf_weights_map(model, processor)
    if spare := sorted(set(names) - set(places)):
        why = " (a stretched rotary)" if spare[0].startswith("rope_") else ""
        raise CheckpointError(
            f"'{held.source}' holds {spare[0]}{why}, for which transformers has no place; give the model that the GGUF "
            "file was made of"
        )


def plain(model: Any) -> None:
    """Take the mark of a quantised model off one whose weights were dequantised."""
    model.is_quantized = False
    for mark in ("hf_quantizer", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _check_entries(entries: Mapping[str, Any], kind: str, config: Any, source: str) -> None:
    """Hold every entry about the model against its configuration; the width of a head is put there."""
    table: Mapping[str, Any] = _legacy.GGUF_TO_TRANSFORMERS_MAPPING["config"].get(kind, {})
    read = _WITH_CODE.get(kind) or {name for name, field in table.items() if field not in (None, -1)}
    width = entries.get(f"{kind}.attention.key_length")
    if width and hasattr(config, "head_dim"):
        config.head_dim = width
    if kind in _LARGEST:  # llama.cpp has the same rule in its code; no entry tells
        large = config.num_hidden_layers == _LARGEST[kind]
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if large else config.head_dim
    for name, said in entries.items():
        if not name.startswith(f"{kind}."):
            continue
        entry = name.removeprefix(f"{kind}.")
        if entry in read or entry in _WITHOUT_EFFECT or said in (0, "", None):
            continue
        has = _SAME[entry](config, said) if entry in _SAME and _has(config, entry) else None
        if has is None or not _equal(has, said):
            raise CheckpointError(
                f"'{source}': its metadata has {name} = {said!r:.80}, which transformers does not read"
                + ("" if has is None else f" (the model it makes has {has!r:.80})")
                + "; give the model that the GGUF file was made of"
            )


def _has(config: Any, entry: str) -> bool:
    """Whether the configuration can say anything of an entry."""
    field = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
    return hasattr(config, field.get(entry, "hidden_size"))


def _equal(has: object, said: object) -> bool:
    if isinstance(has, (int, float)) and isinstance(said, (int, float)):
        return abs(has - said) <= 1e-6 * max(1.0, abs(float(has)))
    return has == said
