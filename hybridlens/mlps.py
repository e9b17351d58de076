"""What treats each position by itself: the MLP, gated or not, and the mixture of experts.

What families differ in is data: the names of the projections, multipliers, how the router's logits become weights,
whether experts have a gate, and whether a shared expert stands beside the routed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.integrations.moe import batched_mm_experts_forward

from hybridlens.adapters import effective
from hybridlens.config import MlpConfig
from hybridlens.devices import resident
from hybridlens.errors import AbsentError, InputError
from hybridlens.habit_parts import MLP
from hybridlens.hooks import HookPoint
from hybridlens.memory import Memory
from hybridlens.named_weights import NamedWeight, NamedWeights
from hybridlens.passes import Pass
from hybridlens.projections import Projection, Read, in_memory
from hybridlens.routing import Route
from hybridlens.shapes import Resid

ONE_BY_ONE = "eager"
"""transformers' plain loop over experts."""


def grouped(module: nn.Module) -> bool:
    """Whether a module holds experts that transformers runs together, which it cannot do in float64."""
    way = getattr(getattr(module, "config", None), "_experts_implementation", None)
    return hasattr(module, "_is_expert_parallel") and way != ONE_BY_ONE


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


def waits(experts: Any) -> bool:
    """Whether the library's experts, as they are configured, ask the device which of them have tokens.

    Its loop does ("eager"), and so do PyTorch's grouped products where they have no kernel: on a GPU, in other dtypes
    than bfloat16. Then "batched_mm" does not: it copies the weights of each token's experts, which a decode step bears.
    """
    how, weight = experts.config._experts_implementation, experts.down_proj
    return how == "eager" or (how == "grouped_mm" and weight.is_cuda and weight.dtype != torch.bfloat16)


@dataclass(frozen=True, eq=False)
class MlpParts:
    """A family's MLP, taken apart: down(act(gate(x)) · up(x)), or down(act(up(x))) where there is no gate."""

    up: Projection
    down: Projection
    act: Callable[[Tensor], Tensor]
    gate: Projection | None = None

    def stored(self, name: str, read: Read) -> Tensor | None:
        """One of its matrices, for row vectors (``x @ W_in``), or of their biases; None where it has none.

        Args:
            name: as TransformerLens has it: `W_gate` and `b_gate` before the activation, `W_in` and `b_in` beside it,
                or alone, `W_out` and `b_out` behind.
            read: where weights are read from.

        Raises:
            CheckpointError: it cannot be read.
        """
        project = {"in": self.up, "gate": self.gate, "out": self.down}[name[2:]]
        if project is None:
            return None
        matrix, bias = project.stored(read)
        return matrix.T if name[0] == "W" else bias

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What it writes, no intermediate shown."""
        up = self.up(x)
        return self.down(self.act(up) if self.gate is None else _gated(self.act, self.gate(x), up))


class MlpByName(NamedWeights):
    """The weights of an MLP under TransformerLens' names."""

    habits = MLP

    W_in = NamedWeight("W_in", "Into the hidden layer, beside the gate where there is one [d_model d_mlp].")
    W_gate = NamedWeight("W_gate", "What the activation reads, where there is a gate [d_model d_mlp].")
    W_out = NamedWeight("W_out", "What neurons add to the stream [d_mlp d_model].")
    b_in = NamedWeight("b_in", "Of the hidden layer [d_mlp].")
    b_gate = NamedWeight("b_gate", "Of what the activation reads [d_mlp].")
    b_out = NamedWeight("b_out", "Of what is written [d_model].")


class HookedMlp(MlpByName):
    """An MLP; without a gate `hook_pre` is what its activation reads, and there is no `hook_pre_linear`."""

    def __init__(self, cfg: MlpConfig, parts: MlpParts) -> None:
        super().__init__()
        self.cfg = cfg
        self.parts = parts
        self.hook_pre = HookPoint("b p f", f=cfg.d_mlp)
        if parts.gate is not None:
            self.hook_pre_linear = HookPoint("b p f", f=cfg.d_mlp)
        self.hook_post = HookPoint("b p f", f=cfg.d_mlp)

    def named_weight(self, name: str) -> Tensor:
        """See `NamedWeights`."""
        if name[2:] == "gate" and self.parts.gate is None:
            raise AbsentError(f"there is no {name}: this MLP has no gate")
        found = self.parts.stored(name, in_memory)
        if found is not None:
            return found
        matrix = self.parts.stored(f"W{name[1:]}", in_memory)
        assert matrix is not None
        return matrix.new_zeros(matrix.shape[1])

    def forward(self, x: Resid, run: Pass, held: Memory | None) -> tuple[Resid, None]:
        """The write to the residual stream; an MLP remembers nothing."""
        parts = self.parts
        pre = self.hook_pre((parts.gate or parts.up)(x))
        gated = parts.gate is not None
        post = _gated(parts.act, pre, self.hook_pre_linear(parts.up(x))) if gated else parts.act(pre)
        return parts.down(self.hook_post(post)), None

    def out_bias(self) -> Float[Tensor, "d_model"] | None:
        """What it writes whatever it reads; None for nothing."""
        return self.parts.down.bias()


def _gated(act: Callable[[Tensor], Tensor], pre: Tensor, linear: Tensor) -> Tensor:
    """act(pre) · linear, written over the activation where no gradient needs it and no hook of its module saw it."""
    post = act(pre)
    kept = post is pre or torch.is_grad_enabled() or bool(getattr(act, "_forward_hooks", None))
    return post * linear if kept else post.mul_(linear)


@dataclass(frozen=True, eq=False)
class MoeParts:
    """A family's mixture of experts, taken apart.

    Attributes:
        router: the module whose weight scores the experts.
        experts: the module that runs them: (x, indices, weights) → their weighed sum.
        route: how the router's logits become experts and weights.
        wide: the router's logits, and so the weights, are float32 whatever the model's dtype.
        shared: an expert that every token goes to; None for none.
        shared_gate: its weight is the sigmoid of this; None for 1.
        narrow: what the experts read is first mapped by this; None for the normalised stream itself.
        widen: maps what they add together to the stream's width; None where they have it.
        scale: of what the routed experts add.
    """

    router: nn.Module
    experts: Any
    route: Route
    wide: bool = False
    shared: MlpParts | None = None
    shared_gate: Projection | None = None
    narrow: Projection | None = None
    widen: Projection | None = None
    scale: float = 1.0


class HookedMoe(MlpByName):
    """Mixture of experts: each token goes to the experts that its router chooses."""

    def __init__(self, cfg: MlpConfig, parts: MoeParts, d_model: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.parts = parts
        assert cfg.n_experts is not None
        assert cfg.n_experts_per_token is not None
        self.chosen = cfg.n_experts_per_token
        self.hook_router_logits = HookPoint("b p x", x=cfg.n_experts)
        self.hook_expert_weights = HookPoint("b p r", r=cfg.n_experts_per_token)
        self.hook_expert_indices = HookPoint("b p r", r=cfg.n_experts_per_token)
        if parts.shared is not None:
            self.hook_shared_out = HookPoint("b p d", d=d_model)

    def named_weight(self, name: str) -> Tensor:
        """See `NamedWeights`."""
        raise AbsentError(
            f"there is no {name}: this is a mixture of {self.cfg.n_experts} experts, each with matrices of its own "
            "(`parts.experts`); what each adds in a run, `expert_writes` gives"
        )

    def forward(self, x: Resid, run: Pass, held: Memory | None) -> tuple[Resid, None]:
        """The write to the residual stream; a mixture remembers nothing."""
        parts, router = self.parts, self.parts.router
        with resident(router):
            weight = effective(router)
            logits = F.linear(x.float(), weight.float()) if parts.wide else F.linear(x, weight)
        routed = parts.route(self.hook_router_logits(logits), self.chosen)
        weights = self.hook_expert_weights(routed.weights).flatten(0, 1)
        indices = self.hook_expert_indices(routed.indices).flatten(0, 1)
        experts = parts.experts
        if x.dtype == torch.float64 and grouped(experts):
            raise InputError(
                "the model is in float64, in which transformers cannot run its experts together, as its configuration "
                f"says; call lens.hf_model.set_experts_implementation({ONE_BY_ONE!r}) first, as lens.double() does"
            )
        run_experts = partial(batched_mm_experts_forward, experts) if run.fixed and waits(experts) else experts
        out = run_experts(self._read(x).flatten(0, 1), indices, weights).unflatten(0, x.shape[:2])
        out = out if parts.widen is None else parts.widen(out)
        out = out if parts.scale == 1.0 else out * parts.scale
        if parts.shared is None:
            return out, None
        return out + self.hook_shared_out(self.shared_write(x)), None

    def shared_write(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What the shared expert adds, its gate included."""
        shared, gate = self.parts.shared, self.parts.shared_gate
        assert shared is not None
        return shared(x) if gate is None else torch.sigmoid(gate(x)) * shared(x)

    def expert_writes(
        self,
        x: Float[Tensor, "token d_model"],
        indices: Int[Tensor, "token chosen"],
        weights: Float[Tensor, "token chosen"],
    ) -> Iterator[ExpertWrite]:
        """What each expert that has tokens adds; see `Mixture`."""
        parts, experts, x = self.parts, self.parts.experts, self._read(x)
        with resident(experts):
            for expert in indices.unique().tolist():
                tokens, place = torch.where(indices == expert)
                out = F.linear(self._inside(x[tokens], expert), experts.down_proj[expert])
                out = (out * weights[tokens, place, None]).to(x.dtype)
                if parts.widen is not None:
                    out = parts.widen.linear(out)
                yield ExpertWrite(expert, tokens, out if parts.scale == 1.0 else out * parts.scale)

    def out_bias(self) -> Float[Tensor, "d_model"] | None:
        """What it writes whatever it reads; None for nothing."""
        widen = self.parts.widen
        bias = None if widen is None else widen.bias()
        return bias if bias is None or self.parts.scale == 1.0 else bias * self.parts.scale

    def _read(self, x: Float[Tensor, "*batch d_model"]) -> Tensor:
        return x if self.parts.narrow is None else self.parts.narrow(x)

    def _inside(self, x: Tensor, expert: int) -> Tensor:
        """What one expert's last map reads."""
        experts = self.parts.experts
        if not self.cfg.gated:
            return experts.act_fn(F.linear(x, experts.up_proj[expert]))
        gate, up = F.linear(x, experts.gate_up_proj[expert]).chunk(2, dim=-1)
        return experts.act_fn(gate) * up
