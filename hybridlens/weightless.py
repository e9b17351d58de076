"""A copy of a network without weights: shapes without values, for scans.

Every tensor that the network and its model hold becomes one on the meta device; experts give back what they read, since
which tokens go to which of them is no matter of shapes.

How it fails: a module that cannot be copied raises what `copy.deepcopy` raises.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hybridlens.mlps import HookedMoe
from hybridlens.network import HookedNetwork


def _as_it_comes(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def weightless(network: HookedNetwork) -> HookedNetwork:
    """A copy of a network and its model whose tensors have shapes and no values; it takes no memory worth naming."""
    memo: dict[int, Any] = {}
    for weight in network.wrapped[0].parameters():
        memo[id(weight)] = nn.Parameter(weight.detach().to("meta"), weight.requires_grad)
    with _Bare():
        twin = copy.deepcopy(network, memo)
    for part in twin.modules():
        if isinstance(part, HookedMoe):  # which tokens go where is no matter of shapes
            part.parts.experts.forward = _as_it_comes
    return twin


class _Bare(TorchFunctionMode):
    """Copies of tensors that are made meanwhile are on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().to("meta")
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))
