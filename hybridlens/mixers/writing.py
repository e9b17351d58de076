"""How a mixer writes to the residual stream: by heads where somebody asks for them, at no change of a bit."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.hooks import HookPoint, unchanged
from hybridlens.projections import Projection
from hybridlens.shapes import Resid


def written(project: Projection, z: Float[Tensor, "batch pos head width"], point: HookPoint) -> Resid:
    """What an output projection writes, its heads' parts shown to `point` if it is asked for.

    Args:
        project: from all heads to the residual stream.
        z: what each head gives it to read.
        point: ``hook_result``.
    """
    out = project(z.flatten(-2))
    made: list[Tensor] = []

    def results() -> Tensor:
        made.append(project.by_head(z))
        return made[0]

    hooked = point.lazily(results)
    if hooked is None:
        return out
    total = hooked.sum(dim=2)
    bias = project.bias()
    total = total if bias is None else total + bias
    if not unchanged(made[0], hooked):
        return total
    return value_of(total, out) if total.requires_grad else out


def value_of(explicit: Tensor, fused: Tensor) -> Tensor:
    """The value of `fused` with the gradients of `explicit`; both compute the same quantity."""
    return cast(Tensor, _ValueOf.apply(explicit, fused.detach()))


class _ValueOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, explicit: Tensor, fused: Tensor) -> Tensor:
        return fused.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
