"""Under which names a checkpoint's files hold a model's tensors, where these are not the model's own.

transformers renames tensors when it loads published files, and joins some (a convolution in three); its own rules,
taken backwards, say from what. Nothing is read or made for it: the model has no memory for its weights.

How it fails: a tensor that is made of others in another way than one behind the other (experts, stored one by one) is
said to be under its own name, where no file has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import core_model_loading


class PublishedNames:
    """(name of a tensor of the model) → the names of what files hold of it, joined along the first axis.

    Args:
        model: without memory for its weights.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._held: Mapping[str, Tensor] = model.state_dict()
        self._found: dict[str, tuple[str, ...]] = {}

    def __call__(self, name: str) -> tuple[str, ...]:
        """Its names in files; its own where the rules do not say another."""
        if name not in self._found:
            self._found[name] = self._names(name) if name in self._held else (name,)
        return self._found[name]

    def _names(self, name: str) -> tuple[str, ...]:
        held = self._held[name]
        parts = self._written(name, held)
        if len(parts) == 1:
            (only,) = parts
            return (only,) if parts[only].shape == held.shape else (name,)
        if any(part.shape[1:] != held.shape[1:] for part in parts.values()):
            return (name,)
        counted = torch.arange(held.numel()).view(held.shape)  # so that rows taken in another order are noticed
        written = self._written(name, counted)
        return tuple(written) if torch.equal(torch.cat(list(written.values())), counted) else (name,)

    def _written(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        return core_model_loading.revert_weight_conversion(self.model, {name: tensor})
