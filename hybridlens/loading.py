"""`load`: an embedded checkpoint, a folder, or a hub id, as a `HybridLens`.

Safetensors only, and never code from a checkpoint. What is wrong with a checkpoint is said before any weight is read:
its JSON and its index first (`checkpoint_files`), then its configuration's values (`families.fields`), then whether
the files hold what the configuration asks for (`weights.fit`). Nothing is ever filled with random numbers.

How it fails: an unknown name raises `UnknownNameError` with the close ones; everything that goes wrong while a
checkpoint is opened is one `CheckpointError`, which names the file and the field or tensor, with what the library
raised behind it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PreTrainedTokenizerFast
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from hybridlens import adapters, gguf_files, machine, tiny
from hybridlens.boundary import public
from hybridlens.boundary_words import shown
from hybridlens.checkpoint_files import GGUF, TOKENIZER, VOCABULARIES, CheckpointFiles, is_here, opening
from hybridlens.devices import usable
from hybridlens.errors import CheckpointError, LeftOutWarning, UnknownNameError, closest
from hybridlens.families import FAMILIES, family_for, is_known, of_no_family, text_config
from hybridlens.families.fields import check_values
from hybridlens.families.spec import Family
from hybridlens.hub import CONFIG, is_hub_id
from hybridlens.model import HybridLens
from hybridlens.network import HookedNetwork
from hybridlens.peers import architecture_of, official_name
from hybridlens.placing import check_placing, placing, warn_of_offloading
from hybridlens.weights import FileTensors, Tensors, Weights
from hybridlens.weights.finite import check_finite
from hybridlens.weights.fit import check_fit, check_found, meta_model, warn_of_spares
from hybridlens.weights.merged import MergedTensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_AS_IT_IS = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes of tokenizers that are what tokenizer.json says."""


@public
def load(
    name: str | Path | CheckpointFiles,
    *,
    revision: str | None = None,
    adapter: str | Path | bool | None = None,
    merge: bool = False,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    device_map: Any = None,
    max_memory: Any = None,
    offload_folder: str | Path | None = None,
) -> HybridLens:
    """Open a checkpoint.

    An adapter of PEFT is opened with the model that it names, at the revision that it names, or with `name` where
    `adapter` says so, and followed: its layers run, and hook points show what they give. Quantised weights stay as they
    are; those of a GGUF file are dequantised.

    Args:
        name: an embedded checkpoint (`hybridlens models` lists them), a folder, a GGUF file, or a hub id; or what
            `checkpoint` gave.
        revision: of a hub id: a branch, a tag or a commit.
        adapter: the folder or hub id of an adapter to put on the model; None for the one that lies in the folder, if
            there is one; False for none.
        merge: merge the adapter into the weights, as PEFT does it, instead of following it.
        dtype: "float32", "bfloat16" or "float16"; "auto" for the one that the checkpoint has.
        device: where to put the whole model; "auto" for the GPU that has room for it, all of them where none has, or
            the CPU (`hybridlens.machine.choose`).
        device_map: accelerate's map, such as "auto", instead of `device`.
        max_memory: of that map, the most that each device may hold, as accelerate has it: {0: "20GB", "cpu": "60GB"}.
        offload_folder: of that map, where weights that fit nowhere are put, if the checkpoint's own files do not hold
            them as they are. What is not kept at hand is said (`OffloadedWarning`).

    Raises:
        UnknownNameError: for a name that is neither embedded, a folder, nor of the form of a hub id.
        CheckpointError: for a checkpoint that cannot be opened.
    """
    kind = "auto" if dtype == "auto" else resolve_dtype(dtype)
    options = check_placing(device_map, max_memory, offload_folder)
    if device is not None and device_map is not None:
        raise CheckpointError(f"device {device} and device_map {shown(device_map)} given; give one of them")
    place = None if device in (None, machine.SPREAD) else usable(device)
    held, lora = adapters.found(checkpoint(name, revision), adapter, merge, checkpoint)
    source = held.source
    config = read_config(held)
    family = family_for(config, f"'{source}'")
    family.configure(config)
    if device == machine.SPREAD:
        chosen = machine.choose(_bytes(family, config, source, kind))
        place, device_map = None if chosen.device is None else usable(chosen.device), chosen.device_map
    quantised = _is_quantised(config, source)
    if quantised and place is not None:
        device_map, place = {"": place}, None  # some kinds cannot be moved later
    held.fetch_beside()
    held.check_beside()
    own = None
    if lora is not None and lora is not held:  # it may come with its own tokenizer
        lora.fetch_beside()
        lora.check_beside()
        own = read_tokenizer(lora)
    tokenizer = read_tokenizer(held) if own is None else own
    held.fetch_weights()
    if held.gguf is not None:
        gguf_files.check_tensors(meta_model(family, config, source), held)
        options |= gguf_files.loading(held)
    else:
        files = FileTensors(held)
        if not quantised:
            check_fit(family, config, files)
        warn_of_spares(family, files)
    with opening(f"'{source}' cannot be loaded"), placing(source, offload_folder):
        model, found = getattr(transformers, family.architecture).from_pretrained(
            held.folder, config=config, dtype=kind, device_map=device_map, use_safetensors=True,
            trust_remote_code=False, output_loading_info=True, adapter_kwargs=dict(adapters.NOWHERE), **options,
        )  # fmt: skip
        model.config.name_or_path = source
        model = model.eval()
        model = model if place is None else model.to(place)
    check_found(family, found, source)
    if held.gguf is not None:
        gguf_files.plain(model)
    if lora is not None:
        model = adapters.put_on(model, lora, merge)
    check_finite(model, source)
    if model.dtype not in DTYPES.values():
        raise CheckpointError(f"'{source}' has weights in {model.dtype}; give dtype=, one of {', '.join(DTYPES)}")
    lens = HybridLens(model, tokenizer)
    warn_of_offloading(model, source)
    return lens


@public
def load_weights(
    name: str | Path | CheckpointFiles,
    *,
    revision: str | None = None,
    adapter: str | Path | bool | None = None,
    merge: bool = False,
    device: str | torch.device = "cpu",
) -> Weights:
    """The linear maps of a checkpoint, read straight from its safetensors files; no model is made.

    They are those of the model that `load` opens in float32, whatever dtype the files have.

    Args:
        name: an embedded checkpoint, a folder, or a hub id, of which only the shards needed are fetched; or what
            `checkpoint` gave.
        revision: of a hub id: a branch, a tag or a commit.
        adapter: as in `load`; what it adds can be read as weights only where it is merged.
        merge: add a LoRA adapter's matrices to the weights that it is for.
        device: where what is read is put.

    Raises:
        UnknownNameError: for a name that is neither embedded, a folder, nor of the form of a hub id.
        CheckpointError: for a checkpoint that cannot be opened, a missing shard or tensor, or quantised weights.
    """
    place = usable(device)
    held, lora = adapters.found(checkpoint(name, revision), adapter, merge, checkpoint)
    source = held.source
    if lora is not None and not merge:
        raise CheckpointError(
            f"'{lora.source}' holds an adapter (adapter_config.json), which the weights in the files do not have; give "
            "merge=True to read them with it, or adapter=False for the model without it; a command reads the merged "
            "model: hl.load(…, merge=True).hf_model.save_pretrained(…)"
        )
    config = read_config(held)
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(f"'{source}' is quantised, so its stored numbers are not its weights; give the original")
    family = family_for(config, f"'{source}'")
    cfg = family.configure(config)
    held.check_beside()
    files = FileTensors(held)
    if files.complete():
        check_fit(family, config, files)
    warn_of_spares(family, files)
    model = meta_model(family, config, source)  # what is where, at no cost of memory
    tensors: Tensors = FileTensors(held, model)
    if lora is not None:
        tensors = MergedTensors(tensors, lora, model)
    return Weights(HookedNetwork(model.eval(), family, cfg), tensors, place)


def checkpoint(name: str | Path | CheckpointFiles, revision: str | None = None) -> CheckpointFiles:
    """The files of an embedded checkpoint, a folder, or a hub id, whose revision is then a commit for good.

    Raises:
        UnknownNameError: the name is none of them.
        CheckpointError: the hub does not have it, or cannot be asked; or a revision of what is no hub id.
    """
    if isinstance(name, CheckpointFiles):
        if revision is not None:
            raise CheckpointError(f"revision {shown(revision)} given for '{name.source}', which is open already")
        return name
    return CheckpointFiles(locate(name), revision)


def model_files(files: CheckpointFiles) -> CheckpointFiles:
    """The files of the model that `load` opens: where there is an adapter alone, those of the model that it names.

    Raises:
        CheckpointError: it names none, or the files cannot be used.
    """
    return adapters.found(files, None, False, checkpoint).model


def locate(name: str | Path) -> str:
    """The folder or hub id that a name stands for.

    Raises:
        UnknownNameError: when it is neither.
    """
    text = str(name)
    if text in tiny.names():
        return str(tiny.path(text))
    if text.strip() and is_here(text):
        return text
    if not is_hub_id(text):
        near = _meant(text) or closest(text, tiny.names())
        raise UnknownNameError(
            f"model {shown(text)} is neither an embedded checkpoint ({', '.join(tiny.names())}) nor a folder, and a "
            f"hub id is written owner/name{near}; checkpoints of {len(FAMILIES)} families can "
            "be opened, which `hybridlens families` lists"
        )
    return text


def _meant(text: str) -> str:
    """Which model a name without owner stands for in TransformerLens and on the hub, as a clause; empty where none."""
    if not re.fullmatch(r"[\w.-]+", text, re.ASCII):
        return ""
    meant = official_name(text)
    stem = text.lower().removeprefix("distil").split("-")[0]
    kind = (architecture_of(meant) if meant else None) or (stem if stem in CONFIG_MAPPING else None)
    if kind is not None and not is_known(kind):
        return f"; {text} is a {kind}, of no family that hybridlens knows"
    return f"; type hl.load({meant!r})" if kind is not None and meant is not None and is_hub_id(meant) else ""


def read_config(source: str | CheckpointFiles) -> Any:
    """The configuration of a checkpoint's text model, without its weights.

    Raises:
        CheckpointError: when there is none, it cannot be read, it is of a model that transformers does not know, or a
            field holds what no model can have.
    """
    held = CheckpointFiles.of(source)
    source = held.source
    if held.gguf is not None:
        config = gguf_files.read_config(held)
        check_values(config.to_dict(), f"'{source}': its metadata")
        config.name_or_path = source
        return config
    raw = held.json(CONFIG)
    if raw is None and any(name.endswith(GGUF) for name in held.names()):
        raise CheckpointError(f"'{source}' {held.instead()}")
    if raw is None and adapters.ADAPTER in held.names():
        raise CheckpointError(
            f"'{source}' holds an adapter (adapter_config.json) and no model; save the merged model, and its "
            "tokenizer, and give that: hl.load(…, merge=True).hf_model.save_pretrained(…)"
        )
    if raw is not None:
        kind = raw.get("model_type")
        if isinstance(kind, str) and not (kind in CONFIG_MAPPING and is_known(kind)):
            raise of_no_family(f"'{source}'", _called(raw, kind))  # before its values, which matter no more
        check_values(raw, f"'{source}': {CONFIG}")
    with opening(f"'{source}' has no configuration that can be read"):
        config = AutoConfig.from_pretrained(held.folder, trust_remote_code=False)
    config = text_config(config, f"'{source}'")
    config.name_or_path = source
    return config


def _called(raw: Mapping[str, Any], kind: str) -> str:
    """What to call a model of no family: its class, where it names one that transformers may have, else its kind."""
    named = raw.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return first if kind in CONFIG_MAPPING and isinstance(first, str) and not is_known(first) else kind


def read_tokenizer(source: str | CheckpointFiles) -> Any:
    """The tokenizer of a checkpoint; None where it holds none.

    Of some kinds of model (Qwen3.5) transformers makes the tokenizer that the kind is published with, whatever
    tokenizer_config.json says; one of another sort (words, unigrams) would lose its tokens by it, and is read as it is.

    Raises:
        CheckpointError: for one that cannot be read.
    """
    files = CheckpointFiles.of(source)
    if files.gguf is not None:
        with opening(f"the tokenizer in '{files.source}' cannot be read"):
            return AutoTokenizer.from_pretrained(files.folder, gguf_file=files.gguf, trust_remote_code=False)
    if not any((files.folder / file).exists() for file in VOCABULARIES):
        if (files.folder / TOKENIZER).exists():
            said = f"'{files.source}' has a {TOKENIZER} and no vocabulary ({VOCABULARIES[0]})"
            warnings.warn(f"{said}; opened without a tokenizer", LeftOutWarning, stacklevel=4)
        return None
    with opening(f"the tokenizer of '{files.source}' cannot be read"):
        tokenizer: Any = AutoTokenizer.from_pretrained(files.folder, trust_remote_code=False)
        said = (files.json(TOKENIZER) or {}).get("tokenizer_class")
        if said in _AS_IT_IS and type(tokenizer).__name__ not in _AS_IT_IS:
            model: Any = (files.json("tokenizer.json") or {}).get("model") or {}
            if model.get("type") != type(tokenizer.backend_tokenizer.model).__name__:
                tokenizer = PreTrainedTokenizerFast.from_pretrained(files.folder)
        tokenizer.name_or_path = files.source
        return tokenizer


def _is_quantised(config: Any, source: str) -> bool:
    """Whether a checkpoint says that its numbers stand for weights.

    Raises:
        CheckpointError: in a way that transformers does not know: it would take the numbers for the weights.
    """
    held: Any = getattr(config, "quantization_config", None)
    if held is None:
        return False
    method = held.get("quant_method") if isinstance(held, dict) else held.quant_method
    known = (*AUTO_QUANTIZER_MAPPING, "bitsandbytes", None)  # None: of bitsandbytes, in old files
    if getattr(method, "value", method) not in known:
        raise CheckpointError(
            f"'{source}' is quantised by {shown(method)}, which transformers does not know; it knows "
            f"{', '.join(AUTO_QUANTIZER_MAPPING)}"
        )
    return True


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


def _bytes(family: Family, config: Any, source: str, kind: torch.dtype | str) -> int:
    """Of a model's weights in a dtype; "auto" for the configuration's."""
    held = getattr(config, "dtype", None) or torch.float32 if isinstance(kind, str) else kind
    return sum(weight.numel() for weight in meta_model(family, config, source).parameters()) * held.itemsize
