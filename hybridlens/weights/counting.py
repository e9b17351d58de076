"""How many numbers a weight stands for, which of packed weights is not how many it stores.

How it fails: `CheckpointError` for whole numbers whose packing says nothing of what they stand for.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hybridlens.devices import weights_once
from hybridlens.errors import CheckpointError

_PACKED = (torch.uint8, torch.int32)  # several weights in each: bitsandbytes' four bits, GPTQ's and AWQ's words


def entries(name: str, weight: Tensor) -> int:
    """Numbers that a weight stands for: of bitsandbytes' four-bit weights, the shape before packing.

    Raises:
        CheckpointError: it is packed, and does not say how.
    """
    state: Any = getattr(weight, "quant_state", None)
    shape: Any = getattr(state, "shape", None)
    if shape is not None:
        return math.prod(shape)
    if weight.dtype in _PACKED:
        kind = str(weight.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{name} is packed as {kind} and does not say how many weights it holds, so parameters cannot be counted; "
            "count those of the model before it was quantised"
        )
    return weight.numel()


def count(model: Any) -> int:
    """Weights of a model, shared ones once.

    Raises:
        CheckpointError: some are packed, and do not say how.
    """
    packed = [(name, buffer) for name, buffer in model.named_buffers() if name.rsplit(".", 1)[-1] == "qweight"]
    return sum(entries(name, weight) for name, weight in (*weights_once(model), *packed))
