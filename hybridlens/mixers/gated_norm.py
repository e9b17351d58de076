"""The norm and the output gate between a matrix state's readout and the output projection.

Families put them together in three ways: gate, then norm over groups of heads; norm, then gate; or the gate alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hybridlens.devices import resident
from hybridlens.projections import Read
from hybridlens.shapes import Channels

Order: TypeAlias = Literal["gate_first", "norm_first", "gate_only"]


@dataclass(frozen=True, eq=False)
class GatedNorm:
    """What is done to a readout y, given the gate's logits z.

    Attributes:
        owner: the module that holds the norm.
        name: under which name.
        eps: of the norm.
        order: "gate_first", "norm_first" or "gate_only".
        groups: equal slices over which the norm is taken; the weight covers all of them, or one, shared.
        rounded: whether values are rounded to the model's dtype where they enter, and between norm and gate.
        rounded_between: the latter, where it differs.
        activation: of the gate's logits.
    """

    owner: nn.Module
    name: str
    eps: float
    order: Order
    groups: int
    rounded: bool = False
    rounded_between: bool | None = None
    activation: Callable[[Tensor], Tensor] = F.silu

    def entering(
        self, y: Float[Tensor, "batch pos rec_head value"], dtype: torch.dtype
    ) -> Float[Tensor, "batch pos rec_head value"]:
        """The readout as it comes here: rounded to `dtype`, the model's, or as it is."""
        return y.to(dtype) if self.rounded else y

    def gate(self, z: Channels) -> Channels:
        """The activation of the gate's logits: in float32 beside a norm, else in the model's dtype."""
        return self.activation(z if self.order == "gate_only" else z.float())

    def __call__(
        self, y: Float[Tensor, "batch pos channel"], gate: Channels, dtype: torch.dtype
    ) -> Float[Tensor, "batch pos channel"]:
        """What the output projection reads, in `dtype`, the model's."""
        if self.order == "gate_only":
            return (y * gate).to(dtype)
        between = dtype if (self.rounded if self.rounded_between is None else self.rounded_between) else torch.float32
        if self.order == "gate_first":
            return self.scaled(self.normalized(y.float() * gate), between).to(dtype)
        normed = self.scaled(self.normalized(y.float()), between)
        return (normed * gate).to(dtype)

    def normalized(self, x: Float[Tensor, "batch pos channel"]) -> Float[Tensor, "batch pos channel"]:
        """Each group divided by √(mean x² + ε)."""
        grouped = x.unflatten(-1, (self.groups, -1))
        return (grouped / (grouped.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()).flatten(-2)

    def folded(self, W_out: Float[Tensor, "channel d_model"], read: Read) -> Float[Tensor, "channel d_model"]:
        """The output projection with the norm's weight, if there is one, multiplied in."""
        if self.order == "gate_only":
            return W_out
        weight = read(self.owner, f"{self.name}.weight")
        return W_out * weight.repeat(W_out.shape[0] // weight.shape[0])[:, None]

    def factor(self, seen: Mapping[str, Tensor]) -> Float[Tensor, "batch pos channel"]:
        """What it multiplies each channel by on real activations (`hook_y`, `hook_gate`), gate and weight aside."""
        y, gate = seen["hook_y"].float().flatten(2), seen["hook_gate"].float()
        if self.order == "gate_only":
            return torch.ones_like(y)
        grouped = (y * gate if self.order == "gate_first" else y).unflatten(-1, (self.groups, -1))
        scale = (grouped.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()
        return scale.expand_as(grouped).flatten(-2)

    def scaled(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """A normalised value, rounded to `dtype`, times the weight."""
        norm = cast(nn.Module, getattr(self.owner, self.name))
        with resident(norm):
            weight = cast(Tensor, norm.weight)
            if weight.shape[0] == x.shape[-1]:
                return weight * x.to(dtype)
            return (weight * x.to(dtype).unflatten(-1, (self.groups, -1))).flatten(-2)
