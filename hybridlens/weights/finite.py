"""Weights that are infinite or not a number, found when a model is opened.

Tensors of one axis (norms, biases, gates) and small ones are looked at whole, of the others runs of neighbouring
values at places drawn from a fixed seed: enough for what a bad conversion or an overflow in half precision leaves,
and a fraction of a second on models of any size. A single bad entry of a large matrix can be missed.

How it fails: `CheckpointError` names the first tensor, and how many there are.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hybridlens.errors import CheckpointError

WHOLE = 1 << 18
"""Values of the largest tensor of more than one axis that is looked at whole."""
RUNS, RUN = 64, 64
"""Runs, and values of each, of a larger one."""


def check_finite(model: nn.Module, source: str) -> None:
    """Look at every parameter and buffer that is in memory.

    Raises:
        CheckpointError: some are infinite or not a number.
    """
    with torch.no_grad():
        bad = [name for name, tensor in _floating(model) if not is_finite(tensor)]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise CheckpointError(
            f"'{source}': {bad[0]}{more} holds weights that are infinite or not a number; fetch or convert it again"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether what is looked at of a tensor is finite throughout."""
    flat = tensor.detach().reshape(-1)
    if tensor.ndim > 1 and flat.numel() > WHOLE:
        draw = torch.Generator().manual_seed(flat.numel())
        starts = torch.randint(flat.numel() - RUN, (RUNS,), generator=draw)
        flat = torch.cat([flat[start : start + RUN] for start in [0, *starts.tolist(), flat.numel() - RUN]])
    return bool(flat.isfinite().all())


def _floating(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """What holds numbers that can be looked at: neither whole numbers, nor away, nor packed, nor in eight bits."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if type(tensor) not in (nn.Parameter, Tensor):
            continue
        if tensor.is_floating_point() and tensor.element_size() > 1 and tensor.device.type != "meta":
            yield name, tensor
