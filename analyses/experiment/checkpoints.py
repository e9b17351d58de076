"""Opening what ``--model`` names: its sizes without any weight, the model, and a digest of its weights.

How it fails: an unknown name, family, device or dtype raises one of `hybridlens.errors` before any weight
is read.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

import hybridlens as hl
from hybridlens import machine
from hybridlens.adapters import switches
from hybridlens.checkpoint_files import CheckpointFiles
from hybridlens.devices import DEVICES, usable
from hybridlens.display.markup import size
from hybridlens.errors import CheckpointError, InputError
from hybridlens.families import family_for
from hybridlens.loading import checkpoint, model_files, read_config, resolve_dtype
from hybridlens.model import HybridLens
from hybridlens.progress import wanted
from hybridlens.results import hash_json, hash_weights
from hybridlens.weights.fit import meta_model


def meta_lens(name: str | CheckpointFiles, revision: str | None = None) -> HybridLens:
    """A lens over a model of the checkpoint's shapes that holds no weights: names and sizes, in seconds.

    Raises:
        UnknownNameError: for a name that is no checkpoint.
        CheckpointError: for a configuration that cannot be read, or of no known family.
    """
    quieten()
    files = model_files(checkpoint(name, revision))
    config = read_config(files)
    family = family_for(config, f"'{files.source}'")
    family.configure(config)
    return HybridLens(meta_model(family, config, files.source))


def check_device(device: str) -> str:
    """`device`, if this machine has it.

    Raises:
        InputError: otherwise.
    """
    if device != "auto" and usable(device, "--device").type == "meta":
        raise InputError(f"--device 'meta' cannot be used (it holds no numbers); expected {DEVICES} or auto")
    return device


def open_model(name: str | CheckpointFiles, device: str, dtype: str) -> HybridLens:
    """The model that ``--model`` names, on a device; "auto" for where it fits, and for the checkpoint's own dtype.

    Raises:
        HybridLensError: for a checkpoint, device or dtype that cannot be used.
    """
    quieten()
    kind = dtype if dtype == "auto" else resolve_dtype(dtype)
    if wanted():
        transformers.logging.enable_progress_bar()
    try:
        return hl.load(name, dtype=kind, device=check_device(device))
    finally:
        transformers.logging.disable_progress_bar()


def checkpoint_dtype(name: str | CheckpointFiles, revision: str | None = None) -> torch.dtype:
    """What a checkpoint's configuration says of its weights; float32 where it says nothing."""
    return getattr(read_config(model_files(checkpoint(name, revision))), "dtype", None) or torch.float32


def placed(lens: HybridLens, memory: int | None) -> str:
    """Where a model is, in which dtype, and how much may be held beside it, in a line.

    Args:
        lens: the model.
        memory: what was said of that, or is settled; None for a share of what is free, 0 where it does not matter.
    """
    devices = machine.devices_of(lens.hf_model)
    most = machine.budget(devices) if memory is None else memory
    beside = f"; {size(most)} beside the weights" if most else ""
    return f"on {machine.words(devices)}, in {str(lens.dtype).removeprefix('torch.')}{beside}"


def quieten() -> None:
    """Keep transformers from reporting what is no news here: bars that nobody sees, slow paths that are not taken."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def weights_hash(files: CheckpointFiles, lens: HybridLens) -> str:
    """Digest of a checkpoint's weights: of its files where they are at hand, else of the tensors.

    Raises:
        CheckpointError: the weights are neither in files nor in memory.
    """
    if not switches(lens.hf_model) and files.at_hand(names := files.weights()):
        return hash_weights(files.folder, names)
    return lens_hash(lens)


def lens_hash(lens: HybridLens) -> str:
    """Digest of the weights of a model in memory, and of how strongly its adapters act, if it has any.

    Raises:
        CheckpointError: some weights are not in memory.
    """
    tensors: dict[str, Any] = lens.hf_model.state_dict()
    if any(tensor.device.type == "meta" for tensor in tensors.values()):
        raise CheckpointError(
            f"the weights of '{lens.cfg.model_name}' are offloaded and their files were not found; give a folder"
        )
    adapted = switches(lens.hf_model)
    return hash_json([hash_weights(tensors), adapted]) if adapted else hash_weights(tensors)
