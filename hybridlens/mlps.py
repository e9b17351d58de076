"""What treats each position by itself: the gated MLP and the mixture of experts.

What families differ in is data: the names of the projections, multipliers, how the router's logits become weights,
and whether a shared expert stands beside the routed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridlens.config import MlpConfig
from hybridlens.devices import resident
from hybridlens.hooks import HookPoint
from hybridlens.memory import Memory
from hybridlens.passes import Pass
from hybridlens.projections import Projection
from hybridlens.shapes import Resid


class ExpertWrite(NamedTuple):
    """What one expert of a mixture adds, weighed by the router."""

    expert: int
    tokens: Int[Tensor, "chosen_token"]
    """Which tokens were sent to it."""
    out: Float[Tensor, "chosen_token d_model"]


@runtime_checkable
class Mixture(Protocol):
    """What a mixture of experts offers besides running."""

    cfg: MlpConfig
    """Its sizes, and whether it has a shared expert."""

    def shared_write(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What the shared expert adds, its gate included, given the normalised residual stream."""
        ...

    def expert_writes(
        self,
        x: Float[Tensor, "token d_model"],
        indices: Int[Tensor, "token chosen"],
        weights: Float[Tensor, "token chosen"],
    ) -> Iterator[ExpertWrite]:
        """What each expert that has tokens adds, one expert after the other; the routed experts' write is their sum.

        Args:
            x: the normalised residual stream.
            indices: the experts that each token is sent to, as `hook_expert_indices` holds them.
            weights: the weight of each of these, as `hook_expert_weights` holds them.
        """
        ...


@dataclass(frozen=True, eq=False)
class MlpParts:
    """A family's gated MLP, taken apart: down(act(gate(x)) · up(x))."""

    gate: Projection
    up: Projection
    down: Projection
    act: Callable[[Tensor], Tensor]


class HookedMlp(nn.Module):
    """Gated MLP: down(act(gate(x)) · up(x))."""

    def __init__(self, cfg: MlpConfig, parts: MlpParts) -> None:
        super().__init__()
        self.cfg = cfg
        self.parts = parts
        self.hook_pre = HookPoint("b p f", f=cfg.d_mlp)
        self.hook_pre_linear = HookPoint("b p f", f=cfg.d_mlp)
        self.hook_post = HookPoint("b p f", f=cfg.d_mlp)

    def forward(self, x: Resid, run: Pass, held: Memory | None) -> tuple[Resid, None]:
        """The write to the residual stream; an MLP remembers nothing."""
        parts = self.parts
        pre = self.hook_pre(parts.gate(x))
        linear = self.hook_pre_linear(parts.up(x))
        return parts.down(self.hook_post(parts.act(pre) * linear)), None

    def out_bias(self) -> Float[Tensor, "d_model"] | None:
        """What it writes whatever it reads; None for nothing."""
        return self.parts.down.bias()


@dataclass(frozen=True, eq=False)
class MoeParts:
    """A family's mixture of experts, taken apart.

    Attributes:
        router: the module whose weight scores the experts.
        experts: the module that runs them: (x, indices, weights) → their weighed sum.
        renormalise: the chosen experts' weights are made to sum to 1.
        shared: an expert that every token goes to; None for none.
        shared_gate: its weight is the sigmoid of this; None for 1.
    """

    router: nn.Module
    experts: Any
    renormalise: bool = False
    shared: MlpParts | None = None
    shared_gate: Projection | None = None


class HookedMoe(nn.Module):
    """Mixture of experts: each token goes to the experts with the highest router probability."""

    def __init__(self, cfg: MlpConfig, parts: MoeParts, d_model: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.parts = parts
        assert cfg.n_experts is not None
        assert cfg.n_experts_per_token is not None
        self.hook_router_logits = HookPoint("b p x", x=cfg.n_experts)
        self.hook_expert_weights = HookPoint("b p r", r=cfg.n_experts_per_token)
        self.hook_expert_indices = HookPoint("b p r", r=cfg.n_experts_per_token)
        if parts.shared is not None:
            self.hook_shared_out = HookPoint("b p d", d=d_model)

    def forward(self, x: Resid, run: Pass, held: Memory | None) -> tuple[Resid, None]:
        """The write to the residual stream; a mixture remembers nothing."""
        parts, router = self.parts, self.parts.router
        with resident(router):
            weight: Any = router.weight
            logits = self.hook_router_logits(F.linear(x, weight))
        probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
        weights, indices = probabilities.topk(self.cfg.n_experts_per_token or 0, dim=-1)
        if parts.renormalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        weights = self.hook_expert_weights(weights.to(x.dtype)).flatten(0, 1)
        indices = self.hook_expert_indices(indices).flatten(0, 1)
        out = parts.experts(x.flatten(0, 1), indices, weights).view(x.shape)
        if parts.shared is None:
            return out, None
        return out + self.hook_shared_out(self.shared_write(x)), None

    def shared_write(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What the shared expert adds, its gate included."""
        shared, gate = self.parts.shared, self.parts.shared_gate
        assert shared is not None
        out = shared.down(shared.act(shared.gate(x)) * shared.up(x))
        return out if gate is None else torch.sigmoid(gate(x)) * out

    def expert_writes(
        self,
        x: Float[Tensor, "token d_model"],
        indices: Int[Tensor, "token chosen"],
        weights: Float[Tensor, "token chosen"],
    ) -> Iterator[ExpertWrite]:
        """What each expert that has tokens adds; see `Mixture`."""
        experts = self.parts.experts
        with resident(experts):
            for expert in indices.unique().tolist():
                tokens, place = torch.where(indices == expert)
                gate, up = F.linear(x[tokens], experts.gate_up_proj[expert]).chunk(2, dim=-1)
                out = F.linear(experts.act_fn(gate) * up, experts.down_proj[expert])
                yield ExpertWrite(expert, tokens, out * weights[tokens, place, None])
