"""The forward pass of training: the lens's own, with the experts' balance read from its hook points.

Training runs through `hybridlens.HybridLens`, whose recurrences have hand-written backward passes, so that
what is trained is what is analysed, and one implementation serves both.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlens.hooks import HookPoint
from hybridlens.model import HybridLens


def forward(
    lens: HybridLens, tokens: Int[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "batch pos vocab"], Float[Tensor, ""]]:
    """Logits, and the balance loss of the experts (0 where there are none)."""
    routers: list[Tensor] = []

    def keep(logits: Tensor, hook: HookPoint) -> None:
        routers.append(torch.softmax(logits, dim=-1))

    names = [name for name in lens.hook_points if name.endswith("hook_router_logits")]
    with lens.hooks([(name, keep) for name in names]):
        logits = lens(tokens)
    used = lens.cfg.n_experts_per_token
    return logits, torch.zeros(()) if used is None else balance_loss(routers, used)


def balance_loss(probabilities: list[Tensor], n_used: int) -> Float[Tensor, ""]:
    """Load-balancing loss of the experts, 1 when they are used evenly (Fedus et al. 2021, equation 4).

    Args:
        probabilities: router probabilities [batch, pos, expert] of each expert layer, at least one.
        n_used: experts per token.
    """
    losses: list[Tensor] = []
    for layer in probabilities:
        n_experts = layer.shape[-1]
        flat = layer.reshape(-1, n_experts)
        chosen = torch.zeros_like(flat).scatter(-1, flat.topk(n_used, -1).indices, 1.0 / n_used)
        losses.append(n_experts * (chosen.mean(0) * flat.mean(0)).sum())
    return torch.stack(losses).mean()
