"""A digest of the weights that circuits are made of, and of no others: most of a large checkpoint is never read."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from hybridlens.progress import counted
from hybridlens.weights.sources import Tensors
from hybridlens.weights.vocabulary import BLOCK
from hybridlens.weights.weights import Weights


class _Hashing:
    """Tensors whose names and bytes go into a digest as they are read."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.digest = hashlib.sha256()

    def has(self, name: str) -> bool:
        """See `Tensors`."""
        return self.tensors.has(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Tensors`."""
        return self.tensors.shape(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """See `Tensors`."""
        tensor = self.tensors.read(name, start, stop)
        self.digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        held: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        self.digest.update(memoryview(held))
        return tensor


def digest(weights: Weights) -> str:
    """SHA-256 (64 hex digits) of embedding, unembedding, and every layer's norm and mixer, shared blocks left out.

    Raises:
        CheckpointError: a tensor is missing or cannot be read.
    """
    hashing = _Hashing(weights.tensors)
    read = Weights(weights.network, hashing)
    cfg = read.cfg
    attention = [layer for layer in cfg.attention_layers if not cfg.layers[layer].shared]
    blocks = -(-cfg.d_vocab // BLOCK)
    with counted(blocks + len(attention) + len(cfg.ssm_layers), "hashing weights") as done:
        for _ in read.vocabulary():
            done(1)
        for layer in attention:
            read.attention(layer)
            done(1)
        for layer in cfg.ssm_layers:
            read.recurrent(layer)
            done(1)
    return hashing.digest.hexdigest()
