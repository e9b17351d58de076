"""How a router's logits become the experts of each token and their weights.

One function a rule, logits in; a family chooses one and fixes its numbers (`functools.partial`). Each gives the chosen
experts' weights, as used, and their indices, the strongest first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Routed(NamedTuple):
    """Where tokens go."""

    weights: Float[Tensor, "*batch chosen"]
    indices: Int[Tensor, "*batch chosen"]


Route: TypeAlias = Callable[[Float[Tensor, "*batch expert"], int], Routed]
"""(logits, experts a token) → the chosen."""


def softmax_first(logits: Float[Tensor, "*batch expert"], chosen: int, renormalise: bool = False) -> Routed:
    """The most probable of all experts, by their probability (Shazeer et al. 2017).

    Args:
        logits: of the router.
        chosen: experts of a token.
        renormalise: the weights of the chosen are made to sum to 1.
    """
    weights, indices = torch.softmax(logits, dim=-1, dtype=torch.float32).topk(chosen, dim=-1)
    if renormalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return Routed(weights.to(logits.dtype), indices)


def softmax_last(logits: Float[Tensor, "*batch expert"], chosen: int) -> Routed:
    """The experts with the highest logits, weighed by the softmax of these alone (Granite)."""
    best, indices = logits.float().topk(chosen, dim=-1)
    return Routed(torch.softmax(best, dim=-1).to(logits.dtype), indices)


def sigmoids(
    logits: Float[Tensor, "*batch expert"],
    chosen: int,
    *,
    bias: Callable[[], Tensor | None],
    floor: float,
    renormalise: bool = True,
    scale: float = 1.0,
    groups: int = 1,
    kept: int = 1,
) -> Routed:
    """Each expert by its own sigmoid; a bias that balances the load enters the choice and not the weights.

    With groups of experts, only those of the `kept` groups can be chosen whose two best sum highest
    (DeepSeek-V3, arXiv 2412.19437).

    Args:
        logits: of the router; the weights have their dtype.
        chosen: experts of a token.
        bias: gives what is added to the sigmoids for the choice; None for nothing.
        floor: added to the sum that weights are divided by.
        renormalise: the weights of the chosen are divided by their sum.
        scale: of the weights in the end.
        groups: of consecutive experts, equally many each.
        kept: groups that are chosen from.
    """
    scores, added = torch.sigmoid(logits), bias()
    choice = scores if added is None else scores + added
    if kept < groups:
        grouped = choice.unflatten(-1, (groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(kept, dim=-1).indices
        out = torch.ones(grouped.shape[:-1], dtype=torch.bool, device=choice.device).scatter(-1, best, False)
        choice = grouped.masked_fill(out[..., None], float("-inf")).flatten(-2)
    indices = choice.topk(chosen, dim=-1).indices
    weights = scores.gather(-1, indices)
    if renormalise:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + floor)
    return Routed(weights * scale, indices)
