"""`load`: an embedded checkpoint, a folder, or a hub id, as a `HybridLens`.

Safetensors only, and never code from a checkpoint. What is wrong with a checkpoint is said before
any weight is read.

How it fails: an unknown name raises `UnknownNameError` with the close ones; a family that is not
known, pickled weights, a broken configuration or an unreachable hub raise `CheckpointError`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from hybridlens import tiny
from hybridlens.errors import CheckpointError, UnknownNameError, closest
from hybridlens.families import FAMILIES, Family, family_of
from hybridlens.model import HybridLens
from hybridlens.network import HookedNetwork
from hybridlens.weights import FileTensors, Weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    device_map: Any = None,
) -> HybridLens:
    """Open a checkpoint.

    Args:
        name: an embedded checkpoint (`hybridlens models` lists them), a folder, or a hub id.
        dtype: "float32", "bfloat16" or "float16".
        device: where to put the whole model.
        device_map: accelerate's map, such as "auto", instead of `device`.

    Raises:
        UnknownNameError: for a name that is neither embedded, a folder, nor of the form of a hub id.
        CheckpointError: for a checkpoint that cannot be opened.
    """
    kind = resolve_dtype(dtype)
    if device is not None and device_map is not None:
        raise CheckpointError(f"device {device} and device_map {device_map!r} given; give one of them")
    place = _resolve_device(device)
    source = locate(name)
    config = read_config(source)
    family = family_of(_architecture(config, source), FAMILIES)
    family.configure(config)
    _refuse_pickles(source)
    model_class = getattr(transformers, family.architecture)
    try:
        model = model_class.from_pretrained(
            source, dtype=kind, device_map=device_map, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"'{name}' cannot be loaded: {_first_line(error)}") from error
    model = model.eval()
    return HybridLens(model if place is None else model.to(place), read_tokenizer(source))


def load_weights(name: str | Path, *, device: str | torch.device = "cpu") -> Weights:
    """The linear maps of a checkpoint, read straight from its safetensors files; no model is made.

    Args:
        name: an embedded checkpoint, a folder, or a hub id, of which only the shards needed are fetched.
        device: where what is read is put.

    Raises:
        UnknownNameError: for a name that is neither embedded, a folder, nor of the form of a hub id.
        CheckpointError: for a checkpoint that cannot be opened, a missing shard or tensor, or quantised weights.
    """
    place = _resolve_device(device) or torch.device("cpu")
    source = locate(name)
    config = read_config(source)
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(f"'{name}' is quantised, so its stored numbers are not its weights; give the original")
    _refuse_pickles(source)
    family = family_of(_architecture(config, source), FAMILIES)
    return Weights(unloaded(family, config), FileTensors(source), place)


def unloaded(family: Family, config: Any) -> HookedNetwork:
    """A model's parts without its weights, on the meta device: what is where, at no cost of memory."""
    cfg = family.configure(config)
    with torch.device("meta"):
        model = getattr(transformers, family.architecture)(config)
    return HookedNetwork(model.eval(), family, cfg)


def locate(name: str | Path) -> str:
    """The folder or hub id that a name stands for.

    Raises:
        UnknownNameError: when it is neither.
    """
    text = str(name)
    if text in tiny.names():
        return str(tiny.path(text))
    if Path(text).is_dir():
        return text
    if Path(text).is_absolute() or text.count("/") != 1 or text.startswith("."):
        raise UnknownNameError(
            f"model '{text}' is neither an embedded checkpoint ({', '.join(tiny.names())}), a folder, nor a hub id"
            f"{closest(text, tiny.names())}"
        )
    return text


def read_config(source: str) -> Any:
    """The configuration of a checkpoint, without its weights.

    Raises:
        CheckpointError: when there is none, or it is of no known family.
    """
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"'{source}' has no configuration that can be read: {_first_line(error)}") from error


def read_tokenizer(source: str) -> Any:
    """The tokenizer of a checkpoint; None for a folder that holds none.

    Raises:
        CheckpointError: for one that cannot be read.
    """
    files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    if Path(source).is_dir() and not any((Path(source) / file).exists() for file in files):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the tokenizer of '{source}' cannot be read: {_first_line(error)}") from error


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The dtype of a name.

    Raises:
        UnknownNameError: for any but float32, bfloat16 and float16.
    """
    if dtype in DTYPES.values():
        return dtype  # pyright: ignore[reportReturnType]
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UnknownNameError(f"dtype {name!r} given, expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _resolve_device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"device {str(device)!r} cannot be used here: {_first_line(error)}") from error
    return place


def _architecture(config: Any, source: str) -> str:
    for family in FAMILIES:
        model_class = getattr(transformers, family.architecture)
        if type(config) is model_class.config_class:
            return family.architecture
    named = getattr(config, "architectures", None) or [type(config).__name__]
    known = ", ".join(family.architecture for family in FAMILIES)
    raise CheckpointError(f"'{source}' is a {named[0]}, of no family that hybridlens knows; it opens {known}")


def _refuse_pickles(source: str) -> None:
    folder = Path(source)
    if not folder.is_dir():
        return
    if list(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"'{source}' holds pickled weights ({pickles[0]}), which can run code when they are read; "
            "convert them to safetensors first"
        )
    raise CheckpointError(f"'{source}' holds no weights, expected model.safetensors or its shards")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
