"""Root-mean-square norms, plain and with their scale and normalised value at hook points.

The families differ in what the weight is added to and in where the result is rounded to the model's dtype, and in
nothing else: `Rounding` says it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridlens.devices import execution_device, resident
from hybridlens.elsewhere import missing
from hybridlens.errors import InputError
from hybridlens.habit_parts import NORM
from hybridlens.hooks import HookPoint
from hybridlens.near_points import Pointed
from hybridlens.read_only import read_only
from hybridlens.shapes import Resid

Rounding: TypeAlias = Literal["before", "after"]
"""Whether the normalised value is rounded to the model's dtype before or after the weight multiplies it."""


@dataclass(frozen=True)
class NormStyle:
    """How a family's norms treat their weight."""

    offset: float = 0.0
    """Added to the weight: 1 where a weight of 0 means no change."""
    rounding: Rounding = "before"


@dataclass(frozen=True, eq=False)
class Norm:
    """Root-mean-square norm: x / √(mean x² + ε), times the weight (plus an offset), in float32.

    Args:
        owner: the module that holds the family's norm.
        name: under which name.
        eps: ε.
        style: what is added to the weight, and when the result is rounded.

    Raises:
        InputError: when it is used, if the norm was exchanged for another kind of module.
    """

    owner: nn.Module
    name: str
    eps: float
    style: NormStyle
    kind: type = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", type(self.module))

    @property
    def module(self) -> nn.Module:
        """The module that is there now."""
        return self.owner.__dict__["_modules"][self.name]

    def scale(self, wide: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch one"]:
        """√(mean x² + ε) of a float32 activation."""
        return (wide.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()

    def weighted(self, normalized: Float[Tensor, "*batch d_model"], dtype: torch.dtype) -> Tensor:
        """What the norm gives for a normalised value; it is linear in it."""
        norm: Any = self.owner.__dict__["_modules"][self.name]
        if type(norm) is not self.kind:
            raise InputError(
                f"the norm {self.name} was a {self.kind.__name__} and is now a {type(norm).__name__}, which this lens "
                "cannot follow; merge the adapter, or open the model with the norm it has now"
            )
        if "_hf_hook" in norm.__dict__:
            with resident(norm):  # which brings what it reads to where it computes, as calling the module does
                return self._times(norm.weight, normalized.to(norm.weight.device), dtype)
        return self._times(norm.weight, normalized, dtype)

    def _times(self, weight: Tensor, normalized: Tensor, dtype: torch.dtype) -> Tensor:
        offset = self.style.offset
        if self.style.rounding == "after":
            out = normalized * (offset + weight.float())
            return out if out.dtype == dtype else out.to(dtype)
        rounded = normalized if normalized.dtype == dtype else normalized.to(dtype)
        return (weight if not offset else offset + weight) * rounded

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What the model's own module gives."""
        return self.module(x)


class Normed(NamedTuple):
    """What a norm with hook points made of its input."""

    out: Resid
    scale: Float[Tensor, "batch pos one"]
    """By which its input was divided."""
    made: Float[Tensor, "batch pos d_model"]
    """The normalised value, before hooks."""
    given: Float[Tensor, "batch pos d_model"]
    """The same after hooks."""


ONE: dict[str, Any] = {"1": 1}
"""The size of the axis that has one entry, whose letter is no name."""


class HookedNorm(Pointed):
    """A norm of the residual stream, with its scale and its normalised value, both float32, at hook points.

    Args:
        norm: the family's.
        d_model: the width.
        as_weight: whether the norm's input is rounded to its weight's dtype first.
        axis: the letter of the width, where it is not the stream's.
    """

    def __init__(self, norm: Norm, d_model: int, as_weight: bool = False, axis: str = "d") -> None:
        super().__init__()
        self.norm = norm
        self.as_weight = as_weight
        self.hook_scale = HookPoint("b p 1", **ONE)
        width: dict[str, Any] = {axis: d_model}
        self.hook_normalized = HookPoint(f"b p {axis}", **width)

    @property
    def w(self) -> Float[Tensor, "d_model"]:
        """What it multiplies a normalised value by, an offset of 1 included; read-only."""
        weight = cast(Tensor, self.norm.module.weight)
        ones = torch.ones(weight.shape[0], device=execution_device(self.norm.module, weight.device))
        return read_only(self.norm.weighted(ones, weight.dtype))

    def __getattr__(self, name: str) -> Any:
        """What PyTorch finds; for a name of others', what to type instead."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in NORM:
                raise
            raise missing(self, "this norm", name, NORM) from None

    def forward(self, x: Resid) -> Resid:
        """The normalised and weighted activation, in the dtype of `x`."""
        return self.told(x).out

    def told(self, x: Resid) -> Normed:
        """The same, with what it is made of."""
        if self.as_weight:
            x = x.to(cast(Tensor, self.norm.module.weight).dtype)
        wide = x.float()
        scale = self.hook_scale(self.norm.scale(wide))
        made = wide / scale
        given = self.hook_normalized(made)
        return Normed(self.norm.weighted(given, x.dtype), scale, made, given)

    def unhooked(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What it gives for `x`, past its hook points."""
        if self.as_weight:
            x = x.to(cast(Tensor, self.norm.module.weight).dtype)
        wide = x.float()
        return self.norm.weighted(wide / self.norm.scale(wide), x.dtype)

    def at(self, term: Float[Tensor, "*batch d_model"], scale: Float[Tensor, "*scales one"]) -> Tensor:
        """What the norm makes of one term of its input, its scale held; terms add up to what it gives.

        The batch axes of both are broadcast.
        """
        return self.norm.weighted(term.float() / scale, term.dtype)
