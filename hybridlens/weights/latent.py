"""What the weights of latent attention are to a circuit: each head's maps, through the latent, from the stream.

The norm inside is one positive number a token, its scale, which the shared part of keys does not go through. For a
number to stand there, it is taken as it is on average over inputs whose directions are all alike and as long as a
normalised stream: √(‖W‖² / width + ε), with W the map to the latents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.config import AttentionConfig
from hybridlens.display import Displayed
from hybridlens.mixers.latent_attention import LatentParts
from hybridlens.projections import Read


class _LatentMaps(NamedTuple):
    W_K: Float[Tensor, "kv_head d_model d_head"]
    W_V: Float[Tensor, "kv_head d_model d_value"]
    b_K: Float[Tensor, "kv_head d_head"] | None
    b_V: Float[Tensor, "kv_head d_value"] | None
    scale: float
    """What stands for the scale of the norm inside."""


class LatentMaps(Displayed, _LatentMaps):
    """Keys and values of every head, from the normalised stream."""

    __slots__ = ()


def latent_maps(
    cfg: AttentionConfig,
    parts: LatentParts,
    read: Read,
    norm: Float[Tensor, "d_model"] | None,
    inside: Callable[[], Float[Tensor, "latent"]],
) -> LatentMaps:
    """The maps of keys and values.

    Args:
        cfg: sizes.
        parts: the family's module, taken apart.
        read: where weights are read from.
        norm: what the norm before the layer multiplies by; None for none.
        inside: gives what the norm of the latents multiplies by.

    Raises:
        CheckpointError: a tensor is missing or cannot be read.
    """
    latent, heads = cfg.latent, cfg.n_kv_heads
    assert latent is not None
    folds, b_folds = parts.k.stored(read)
    unfolds, _ = parts.v.stored(read)
    folds = folds if norm is None else folds * norm
    down, shared = folds.split([latent.d_latent, latent.d_shared])
    scale = float((down.square().sum() / latent.d_latent + parts.norm.eps).sqrt())
    up = (unfolds * inside() / scale).view(heads, -1, latent.d_latent)
    up_k, up_v = up.split([cfg.d_head - latent.d_shared, latent.d_value], dim=1)

    def keys(own: Tensor, same: Tensor) -> Tensor:
        return torch.cat([own, same.expand(heads, *same.shape)], dim=1)

    b_K = b_V = None
    if b_folds is not None:
        b_down, b_shared = b_folds.split([latent.d_latent, latent.d_shared])
        b_K, b_V = keys(up_k @ b_down, b_shared), up_v @ b_down
    return LatentMaps(keys(up_k @ down, shared).mT, (up_v @ down).mT, b_K, b_V, scale)
