"""How a mixer writes to the residual stream: by heads where somebody asks for them, at no change of a bit.

Where a norm stands behind the output projection, a head's write is what the norm makes of its part with the norm's
scale as it is in the run: these parts, and the bias's, add up to what reaches the stream. An edit of a head's write
replaces what it adds, and leaves the scale as it was.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.hooks import HookPoint, unchanged
from hybridlens.norms import HookedNorm
from hybridlens.projections import Projection
from hybridlens.shapes import Resid


def written(
    project: Projection,
    z: Float[Tensor, "batch pos head width"],
    point: HookPoint,
    after: HookedNorm | None = None,
) -> Resid:
    """What an output projection writes, its heads' parts shown to `point` if it is asked for.

    Args:
        project: from all heads to the residual stream.
        z: what each head gives it to read.
        point: ``hook_result``.
        after: the norm that stands between projection and stream; None for none.
    """
    out, made = project(z.flatten(-2)), list[Tensor]()
    normed = None if after is None else after.told(out)
    out = out if normed is None else normed.out

    def results() -> Tensor:
        heads = project.by_head(z)
        made.append(heads if after is None or normed is None else after.at(heads, normed.scale[:, :, None]))
        return made[0]

    hooked = point.lazily(results)
    if hooked is None:
        return out
    same, total, bias = unchanged(made[0], hooked), hooked.sum(dim=2), project.bias()
    if after is None or normed is None:
        total = total if bias is None else total + bias
        if not same:
            return total
        return value_of(total, out) if total.requires_grad else out
    if same:
        total = out
    else:
        total = total if bias is None else total + after.at(bias, normed.scale)
        if not unchanged(normed.made, normed.given):  # what hooks on the norm add
            total = total + after.norm.weighted(normed.given - normed.made, out.dtype)
    moved = out + (hooked - made[0]).sum(dim=2)  # the same number, through the norm's own points and through the heads'
    return value_of(moved, total) if moved.requires_grad else total


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
