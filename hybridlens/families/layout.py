"""Where a family keeps the weights that circuits are made of, and what is folded into them.

`hybridlens.weights` reads tensors by these names, from a model in memory or straight from files, so that a layer's
linear maps can be had without running, or even loading, the model. Everything is in the orientation of
TransformerLens: a row vector times a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Read: TypeAlias = Callable[[str], Tensor]
"""Gives a tensor of one layer by the rest of its name: in the shape it is stored in, as float32."""


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding on the first `dims` dimensions of a head (Su et al. 2021, in the half-split order).

    Dimension i turns with dimension i + dims/2, by ``base ** (-2i / dims)`` radians a position.
    """

    dims: int
    base: float

    @property
    def frequencies(self) -> Float[Tensor, "pair"]:
        """Radians a position, of each pair of dimensions; float64."""
        return self.base ** (-torch.arange(0, self.dims, 2, dtype=torch.float64) / self.dims)

    def turned(self, x: Float[Tensor, "*batch d_head"], distance: float | int) -> Float[Tensor, "*batch d_head"]:
        """`x` as it stands at position `distance`, whatever follows the first `dims` dimensions left alone.

        The score of a query q that stands `distance` positions after a key k is ``turned(q, distance) · k``.
        """
        angle = self.frequencies.to(x.device) * distance
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        first, second, rest = x.split([self.dims // 2, self.dims // 2, x.shape[-1] - self.dims], dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


class RecurrentParts(NamedTuple):
    """A recurrent layer's linear maps as stored, and what its recurrence passes on from input to readout.

    The layer computes ``(readout(recurrence(activation(convolution(x W_in + b_in)))) * gate(x W_gate + b_gate))
    W_out + b_out``.
    """

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


@dataclass(frozen=True)
class Layout:
    """Names of a family's tensors, and what is folded into them.

    Attributes:
        final_norm: the norm before the unembedding.
        ln1: of a layer, the norm before its mixer.
        attention: of an attention layer, what its projections' names begin with.
        norm_offset: what is added to a norm's weight before it multiplies: 1 in RecurrentGemma.
        embed_scale: (configuration) → what embeddings are multiplied by.
        qkv_bias: (configuration) → whether queries, keys and values have biases.
        o_bias: whether the output projection has one.
        rotary: (configuration) → the rotary embedding of every attention layer; None for none.
        recurrent: (configuration, read) → a recurrent layer's maps.
        mlp_bias: of a layer, the bias of what its MLP writes; None where it has none.
        embed: the embedding.
        unembed: the unembedding, where it is not the embedding again.
        layer: what the names of a layer's tensors begin with.
    """

    final_norm: str
    ln1: str
    attention: str
    norm_offset: float
    embed_scale: Callable[[Any], float]
    qkv_bias: Callable[[Any], bool]
    o_bias: bool
    rotary: Callable[[Any], Rotary | None]
    recurrent: Callable[[Any, Read], RecurrentParts]
    mlp_bias: str | None
    embed: str = "model.embed_tokens.weight"
    unembed: str = "lm_head.weight"
    layer: str = "model.layers.{}."


def taps_of(weight: Float[Tensor, "channel 1 lag"]) -> Float[Tensor, "channel lag"]:
    """A causal convolution's stored weight, whose last entry is the token itself, by tokens back."""
    return weight[:, 0].flip(-1)
