"""Rotary position embedding (Su et al. 2021), in the half-split order: on real activations, and as numbers.

Dimension i turns with dimension i + dims/2, by ``base ** (-2i / dims)`` radians a position, or, where a family
stretches its positions (`hybridlens.families.spec.turning`), by frequencies made of these; what follows the first
`dims` dimensions of a head is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridlens.passes import Pass
from hybridlens.shapes import Keys, Queries


@dataclass(frozen=True)
class Turning:
    """By how much positions turn queries and keys.

    Attributes:
        dims: dimensions of a head that turn.
        base: of the frequencies.
        stretched: radians a position of each pair of dimensions; None for those of `base` as they are.
    """

    dims: int
    base: float
    stretched: tuple[float, ...] | None = None

    @property
    def frequencies(self) -> Float[Tensor, "pair"]:
        """Radians a position, of each pair of dimensions; float64, on the CPU whatever the model is on."""
        if self.stretched is not None:
            return torch.tensor(self.stretched, dtype=torch.float64, device="cpu")
        return self.base ** (-torch.arange(0, self.dims, 2, dtype=torch.float64, device="cpu") / self.dims)

    def turned(
        self, x: Float[Tensor, "*batch d_head"], distance: float | int | Tensor
    ) -> Float[Tensor, "*batch d_head"]:
        """`x` as it stands at position `distance`, whatever follows the first `dims` dimensions left alone.

        A tensor of distances is broadcast over `x` but its last axis.
        The score of a query q that stands `distance` positions after a key k is ``turned(q, distance) · k``.
        """
        angle = self.frequencies.to(x.device) * distance
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        first, second, rest = x.split([self.dims // 2, self.dims // 2, x.shape[-1] - self.dims], dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


@dataclass(frozen=True, eq=False)
class Rotary:
    """A model's rotary embedding at work.

    Attributes:
        embedding: the model's module, which makes cosines and sines of positions.
        turning: the same as numbers.
        kind: of the layer, where the module turns those of each kind its own way; None where it turns all alike.
    """

    embedding: nn.Module
    turning: Turning
    kind: str | None = None

    def __call__(self, q: Queries, k: Keys, run: Pass) -> tuple[Queries, Keys]:
        """Queries and keys, turned by their positions."""
        cos, sin = run.once((id(self.embedding), self.kind, q.dtype), lambda: self._made(q, run))
        return _turn(q, cos, sin), _turn(k, cos, sin)

    def _made(self, q: Queries, run: Pass) -> tuple[Tensor, Tensor]:
        """Cosines, and sines with the signs under which they meet a head's halves exchanged; where the queries are."""
        made = self.embedding(q, run.positions, *(() if self.kind is None else (self.kind,)))
        cos, sin = (part.to(q.device) for part in made)  # a model spread over devices has the module on one of them
        first, second = sin.chunk(2, dim=-1)
        return cos[:, :, None], torch.cat([-first, second], dim=-1)[:, :, None]


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    dims = cos.shape[-1]
    turning = x if x.shape[-1] == dims else x[..., :dims]
    first, second = turning.chunk(2, dim=-1)
    turned = turning * cos + torch.cat([second, first], dim=-1) * sin
    if turned.dtype != x.dtype:  # cosines may be float32
        turned = turned.to(x.dtype)
    return turned if x.shape[-1] == dims else torch.cat([turned, x[..., dims:]], dim=-1)
