"""GGUF files of small models, written as llama.cpp's converter writes them: its names, its order, its numbers.

What is done to weights on the way (rotary halves of Llama interleaved, 1 added to Gemma's norms, -exp of Mamba's A_log)
is taken from ``convert_hf_to_gguf.py`` of llama.cpp, and undone by whoever reads.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

ARCHITECTURES = {"llama": "llama", "qwen3": "qwen3", "gemma3": "gemma3", "mamba": "mamba", "lfm2": "lfm2"}
"""Of each family of `models`, llama.cpp's name."""


def write(
    file: Path, model: Any, family: str, quantised: str = "F32", tokens: list[str] | None = None, **more: Any
) -> Path:
    """Write a model, matrices in a type of ggml's; `more` are entries of its metadata, a dot written as `__`."""
    config, kind = model.config, ARCHITECTURES[family]
    writer = gguf.GGUFWriter(str(file), kind)
    entries: dict[str, Any] = {
        "context_length": config.max_position_embeddings if hasattr(config, "max_position_embeddings") else 4096,
        "embedding_length": config.hidden_size, "block_count": config.num_hidden_layers,
        "feed_forward_length": _width(model, family),
        "attention.layer_norm_rms_epsilon": _epsilon(config),
    }  # fmt: skip
    entries |= _mamba(config) if family == "mamba" else _attention(config, family)
    for name, value in (entries | {name.replace("__", "."): value for name, value in more.items()}).items():
        _put(writer, f"{kind}.{name}", value)
    tokens = tokens or [f"t{i}" for i in range(config.vocab_size)]
    writer.add_name("A model")
    writer.add_tokenizer_model("llama" if family in ("llama", "gemma3") else "gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_merges([])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    places = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        place = places.get_name(name, try_suffixes=(".weight", ".bias"))
        assert place, name
        values = _changed(tensor.float(), name, family, config).numpy()
        wide = values.ndim == 2 and values.shape[1] % 32 == 0 and "conv" not in name and "A_log" not in name
        form = gguf.GGMLQuantizationType[quantised if wide else "F32"]
        writer.add_tensor(place, gguf.quantize(np.ascontiguousarray(values), form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def dequantised(values: torch.Tensor, quantised: str) -> torch.Tensor:
    """What is left of values after they went through a type of ggml's, by the package's own means."""
    form = gguf.GGMLQuantizationType[quantised]
    return torch.from_numpy(gguf.dequantize(gguf.quantize(values.numpy(), form), form).copy())


def _width(model: Any, family: str) -> int:
    if family == "lfm2":  # its configuration's is made smaller on the way
        return model.model.layers[0].feed_forward.w1.out_features
    return 0 if family == "mamba" else model.config.intermediate_size


def _epsilon(config: Any) -> float:
    names = ("rms_norm_eps", "layer_norm_epsilon", "norm_eps")
    return next(getattr(config, name) for name in names if hasattr(config, name))


def _attention(config: Any, family: str) -> dict[str, Any]:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotary = config.rope_parameters
    kinds = getattr(config, "layer_types", None) or []
    found: dict[str, Any] = {
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "rope.freq_base": (rotary.get("full_attention") or rotary)["rope_theta"],
    }  # fmt: skip
    if family == "lfm2":
        heads = [config.num_key_value_heads if kind == "full_attention" else 0 for kind in kinds]
        return found | {"attention.head_count_kv": heads, "shortconv.l_cache": config.conv_L_cache}
    if family == "gemma3":
        found["attention.sliding_window"] = config.sliding_window
    if family == "llama":
        found["rope.dimension_count"] = width
    return found | {"attention.key_length": width, "attention.value_length": width}


def _mamba(config: Any) -> dict[str, Any]:
    return {
        "ssm.conv_kernel": config.conv_kernel, "ssm.inner_size": config.intermediate_size,
        "ssm.state_size": config.state_size, "ssm.time_step_rank": config.time_step_rank, "ssm.dt_b_c_rms": False,
        "attention.head_count": 0,
    }  # fmt: skip


def _changed(values: torch.Tensor, name: str, family: str, config: Any) -> torch.Tensor:
    if family == "llama" and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        return values.unflatten(0, (heads, 2, -1)).swapaxes(1, 2).flatten(0, 2)
    if family == "gemma3" and name.endswith("norm.weight"):
        return values + 1
    if name.endswith("A_log"):
        return -torch.exp(values)
    return values.squeeze(1) if "conv" in name and values.ndim == 3 else values


def _put(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)
