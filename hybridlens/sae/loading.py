"""Sparse autoencoders read from SAELens' files: cfg.json and sae_weights.safetensors, in a folder or on the hub.

SAELens itself is not needed. Nothing is unpickled, and no code of a checkpoint is run.

How it fails: a name that is neither a folder nor a hub id raises `UnknownNameError`; a missing or damaged file, a field
that is not known, and weights that do not fit raise `CheckpointError`, which names the file. An autoencoder that was
trained on activations scaled to an expected length (`normalize_activations: expected_average_only_in`) is refused
without the factor, which its files do not hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor

from hybridlens.boundary import public
from hybridlens.boundary_words import shown
from hybridlens.checkpoint_files import CheckpointFiles, one_line, opening
from hybridlens.devices import usable
from hybridlens.errors import CheckpointError, UnknownNameError
from hybridlens.hub import is_hub_id
from hybridlens.sae.autoencoder import SparseAutoencoder
from hybridlens.sae.config import parsed

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"

_INSIDE = re.compile(r"[\w.=-]+(/[\w.=-]+)*", re.ASCII)


@public
def load_sae(
    name: str | Path,
    folder: str = "",
    *,
    revision: str | None = None,
    norm_scaling_factor: Annotated[float, Gt(0)] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> SparseAutoencoder:
    """Open a sparse autoencoder that SAELens saved.

    Args:
        name: a folder, or a hub id (owner/name).
        folder: inside it; SAELens calls it the autoencoder's id: "blocks.8.hook_resid_pre".
        revision: of a hub id: a branch, a tag or a commit.
        norm_scaling_factor: what activations are multiplied by, where the autoencoder was trained on such that have an
            expected length of √d_in; it is folded into the weights.
        dtype: of the weights.
        device: where to put them.

    Raises:
        UnknownNameError: `name` is neither.
        CheckpointError: see the module.
    """
    text, place = str(name), usable(device)
    if not Path(text).is_dir() and not is_hub_id(text):
        raise UnknownNameError(f"autoencoder {shown(text)} is neither a folder nor a hub id (owner/name)")
    if folder and (not _INSIDE.fullmatch(folder) or ".." in folder):
        raise CheckpointError(f"folder {shown(folder)} given, expected the path of one inside {shown(text)}")
    files, prefix = CheckpointFiles(text, revision), f"{folder}/" if folder else ""
    where = f"'{text}': {prefix}{CONFIG}"
    raw = files.json(prefix + CONFIG)
    if raw is None:
        raise CheckpointError(f"'{text}' has no {prefix}{CONFIG}, which says what a sparse autoencoder of SAELens is")
    cfg, weights = parsed(raw, where), _weights(files, prefix + WEIGHTS)
    if (cfg.normalize_activations == "expected_average_only_in") != (norm_scaling_factor is not None):
        if norm_scaling_factor is not None:
            raise CheckpointError(
                f"norm_scaling_factor {norm_scaling_factor:g} given, but {where} says normalize_activations: "
                f"{cfg.normalize_activations}, which needs none"
            )
        raise CheckpointError(
            f"{where} says normalize_activations: expected_average_only_in, so activations are to be multiplied by a "
            "factor that the files do not hold; give norm_scaling_factor=, √d_in ÷ the mean length of activations"
        )
    if norm_scaling_factor is not None:
        weights = _folded(weights, norm_scaling_factor)
        cfg = replace(cfg, normalize_activations="none")
    with opening(f"'{text}': {prefix}{WEIGHTS}"):
        try:
            made = SparseAutoencoder(cfg, {name: weight.to(dtype) for name, weight in weights.items()})
        except CheckpointError as error:
            raise CheckpointError(f"'{text}': {prefix}{WEIGHTS}: {error}") from error
    return made.to(place).requires_grad_(False)


def _weights(files: CheckpointFiles, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, but a scaling factor of ones, which SAELens wrote for a while."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = files.path(name)
    if path is None:
        raise CheckpointError(f"'{files.source}' has no {name}; safetensors are all that is read")
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"'{files.source}': {name} is damaged ({one_line(error)}); fetch it again") from error
    factor = weights.get("scaling_factor")
    if factor is not None and bool((factor == 1).all()):
        del weights["scaling_factor"]
    return weights


def _folded(weights: Mapping[str, Any], factor: float) -> dict[str, Tensor]:
    """Weights that do to activations what the given ones do to `factor` times these, and scale back."""
    scale = {"W_enc": factor, "W_dec": 1 / factor, "b_dec": 1 / factor}
    return {name: weight * scale.get(name, 1.0) for name, weight in weights.items()}
