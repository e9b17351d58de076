"""A recurrent mixer's linear maps, as circuits see them.

The layer computes ``(readout(recurrence(activation(convolution(x W_in + b_in)))) * gate(x W_gate + b_gate)) W_out +
b_out``; what its recurrence passes on from a token's input to the same token's readout is its gain. Where a norm stands
between readout and output projection its weight is in `W_out`, and what remains of it is one positive number a token
and group of channels, its scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from hybridlens.display import Displayed


class _Parts(NamedTuple):
    W_in: Float[Tensor, "d_model channel"]
    b_in: Float[Tensor, "channel"] | None
    W_gate: Float[Tensor, "d_model channel"]
    b_gate: Float[Tensor, "channel"] | None
    taps: Float[Tensor, "channel lag"]
    """The convolution's weight for each token back; lag 0 is the token itself."""
    b_conv: Float[Tensor, "channel"] | None
    W_out: Float[Tensor, "channel d_model"]
    b_out: Float[Tensor, "d_model"] | None
    activation: Callable[[Tensor], Tensor]
    """After the convolution; the identity where there is none."""
    slope: float
    """Of the activation, at 0."""
    gain_at_rest: Float[Tensor, "channel"]
    """What the readout holds of the same token's input to the recurrence, with every gate at its value for input 0."""
    gain_points: tuple[str, ...]
    """Hook points of the layer that `gain` reads."""
    gain: Callable[[Mapping[str, Tensor]], Float[Tensor, "batch pos channel"]]
    """The same on real activations, token by token."""
    written: slice = slice(None)
    """Of the channels of `hook_in` and `hook_conv`, those that are written into the state; the others are addresses."""
    norm_points: tuple[str, ...] = ()
    """Hook points of the layer that `norm` reads."""
    norm: Callable[[Mapping[str, Tensor]], Float[Tensor, "batch pos channel"]] | None = None
    """What the norm before the output projection multiplies channels by, its weight aside; None for no norm."""
    source: str = "hook_in"
    """Hook point of the layer that holds x W_in + b_in. `hook_in`, what enters the convolution, is another where a gate
    stands between the two; that gate is then the gain. Without a convolution it holds what the activation makes of it
    (`convolved`)."""
    convolved: bool = True
    """Whether there is a convolution, between `hook_in` and `hook_conv`; if not, `taps` is 1 for the token itself."""


class RecurrentParts(Displayed, _Parts):
    """A recurrent layer's linear maps as stored, and its gain.

    Row vectors times matrices, as in TransformerLens.
    """

    __slots__ = ()


def taps_of(weight: Float[Tensor, "channel 1 lag"]) -> Float[Tensor, "channel lag"]:
    """A causal convolution's stored weight, whose last entry is the token itself, by tokens back."""
    return weight[:, 0].flip(-1)


def identity(x: Tensor) -> Tensor:
    """No activation."""
    return x
