"""The parts that all families share: norms, the gated MLP, and the residual block that joins them.

A `Block` is a norm, a mixer (attention or recurrent), a norm and an MLP, each added to the residual
stream; what goes into the slots comes from the family. Every part wraps modules of the Hugging Face
model without owning or changing them, so that the two always have the same weights.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridlens.attention import HookedAttention
from hybridlens.hooks import HookPoint
from hybridlens.layer_state import AttentionState, LayerState, RecurrentState
from hybridlens.shapes import Positions, Resid, Valid
from hybridlens.slots import KeySlots


@dataclass(frozen=True)
class Pass:
    """What every layer of one forward pass needs to know besides the residual stream."""

    slots: KeySlots
    positions: Positions
    valid: Valid | None
    """False on the padding of shorter rows; None when all rows are equally long."""

    def to(self, device: torch.device) -> Pass:
        """The same, with its tensors on `device`."""
        if self.positions.device == device:
            return self
        valid = None if self.valid is None else self.valid.to(device)
        return Pass(self.slots.to(device), self.positions.to(device), valid)


class RecurrentMixer(Protocol):
    """What a family's recurrent layer offers to its block."""

    def __call__(self, x: Resid, run: Pass, held: RecurrentState | None) -> tuple[Resid, RecurrentState]:
        """The layer's write to the residual stream, and its memory afterwards."""
        ...


class ExpertWrite(NamedTuple):
    """What one expert of a mixture adds, weighed by the router."""

    expert: int
    tokens: Int[Tensor, "chosen_token"]
    """Which tokens were sent to it."""
    out: Float[Tensor, "chosen_token d_model"]


class Mixture(Protocol):
    """What a family's mixture of experts offers besides running."""

    def expert_writes(
        self,
        x: Float[Tensor, "token d_model"],
        indices: Int[Tensor, "token chosen"],
        weights: Float[Tensor, "token chosen"],
    ) -> Iterator[ExpertWrite]:
        """What each expert that has tokens adds, one expert after the other; the mixture's write is their sum.

        Args:
            x: the normalised residual stream.
            indices: the experts that each token is sent to, as `hook_expert_indices` holds them.
            weights: the weight of each of these, as `hook_expert_weights` holds them.
        """
        ...


def resident(*modules: nn.Module) -> AbstractContextManager[None]:
    """Have the weights of offloaded modules at hand while they are used directly.

    accelerate brings the weights of an offloaded module in when the module is called; where we use
    a weight without calling its module, this does the same. Without offloading it does nothing.
    """
    hooked = [module for module in modules if "_hf_hook" in module.__dict__]
    return _fetched(hooked) if hooked else NOTHING


NOTHING = nullcontext()


@contextmanager
def _fetched(hooked: list[nn.Module]) -> Generator[None]:
    for module in hooked:
        module.__dict__["_hf_hook"].pre_forward(module)
    try:
        yield
    finally:
        for module in hooked:
            module.__dict__["_hf_hook"].post_forward(module, torch.empty(0))


class HookedNorm(nn.Module):
    """Root-mean-square norm: x / √(mean x² + ε), times the weight (plus `offset`).

    Both points hold float32, as both families compute them.
    """

    def __init__(self, norm: nn.Module, eps: float, offset: float) -> None:
        super().__init__()
        self.wrapped = (norm,)
        self.eps = eps
        self.offset = offset
        self.hook_scale = HookPoint("b p 1")
        self.hook_normalized = HookPoint("b p d")

    def forward(self, x: Resid) -> Resid:
        """The normalised and weighted activation, in the dtype of `x`."""
        wide = x.float()
        scale = self.hook_scale((wide.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        normalized = self.hook_normalized(wide / scale)
        with resident(*self.wrapped):
            weight = cast(Tensor, self.wrapped[0].weight)
            if self.offset:  # RecurrentGemma: (x · (1 + w)) then cast
                return (normalized * (self.offset + weight.float())).to(x.dtype)
            return weight * normalized.to(x.dtype)  # Jamba: w · (x cast)


class HookedMlp(nn.Module):
    """Gated MLP: down(act(gate(x)) · up(x))."""

    def __init__(self, gate: nn.Module, up: nn.Module, down: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.wrapped = (gate, up, down, act)
        self.hook_pre = HookPoint("b p f")
        self.hook_pre_linear = HookPoint("b p f")
        self.hook_post = HookPoint("b p f")

    def forward(self, x: Resid) -> Resid:
        """The MLP's write to the residual stream."""
        gate, up, down, act = self.wrapped
        pre = self.hook_pre(gate(x))
        linear = self.hook_pre_linear(up(x))
        return down(self.hook_post(act(pre) * linear))


class Block(nn.Module):
    """One layer: resid → norm → mixer → + → norm → MLP → +."""

    def __init__(self, ln1: HookedNorm, mixer: nn.Module, ln2: HookedNorm, mlp: nn.Module, home: nn.Module) -> None:
        super().__init__()
        self.kind = "attn" if isinstance(mixer, HookedAttention) else "ssm"
        self.home = (home,)
        self.hook_resid_pre = HookPoint("b p d")
        self.ln1 = ln1
        self.add_module(self.kind, mixer)
        self.add_module(f"hook_{self.kind}_out", HookPoint("b p d"))
        self.hook_mixer_out = HookPoint("b p d")
        self.hook_resid_mid = HookPoint("b p d")
        self.ln2 = ln2
        self.mlp = mlp
        self.hook_mlp_out = HookPoint("b p d")
        self.hook_resid_post = HookPoint("b p d")

    def forward(self, resid: Resid, run: Pass, held: LayerState | None) -> tuple[Resid, LayerState]:
        """The residual stream after this layer, and what the layer remembers."""
        device = execution_device(self.home[0], resid.device)
        run, resid = run.to(device), self.hook_resid_pre(resid.to(device))
        out, remembered = self._mixed(self.ln1(resid), run, held)
        out = self.hook_mixer_out(getattr(self, f"hook_{self.kind}_out")(out))
        resid = self.hook_resid_mid(resid + out)
        resid = self.hook_resid_post(resid + self.hook_mlp_out(self.mlp(self.ln2(resid))))
        return resid, remembered

    def _mixed(self, x: Resid, run: Pass, held: LayerState | None) -> tuple[Resid, LayerState]:
        if self.kind == "attn":
            return cast(HookedAttention, self.attn)(x, run.slots, cast(AttentionState | None, held))
        return cast(RecurrentMixer, self.ssm)(x, run, cast(RecurrentState | None, held))


def execution_device(module: nn.Module, default: torch.device) -> torch.device:
    """Where a module computes: where its weights are, or where accelerate brings them when they are away."""
    weight = first_weight(module)
    if weight is None:
        return default
    if weight.device.type != "meta":
        return weight.device
    hooks = (part.__dict__.get("_hf_hook") for part in module.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return next((torch.device(device) for device in devices if device is not None), weight.device)


def first_weight(module: nn.Module) -> nn.Parameter | None:
    """What ``next(module.parameters(), None)`` gives, in a fraction of its time."""
    for weight in module.__dict__["_parameters"].values():
        if weight is not None:
            return weight
    for part in module.__dict__["_modules"].values():
        weight = None if part is None else first_weight(part)
        if weight is not None:
            return weight
    return None
