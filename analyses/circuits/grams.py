"""Writers and readers of the residual stream as Gram matrices, in packed form.

How much of what a map W_w writes reaches a map W_r depends on W_w through its output Gram G = W_wᵀ W_w alone, and on
W_r through its input Gram N = W_r W_rᵀ alone: ‖W_w W_r‖² = tr(G N) = ⟨G, N⟩. Both are d × d, symmetric, and cheap to
make of a head's factors. Scaled to trace 1, ⟨G, N⟩ is the squared composition score.

Of a symmetric matrix half is enough: `Packing` cuts it into bands of rows, each from the diagonal on. Entries off the
diagonal bands count twice, which is multiplied into the writers' Grams.

How it fails: a map that is zero has no Gram of trace 1; its Gram stays 0, and so do its scores. In float32 ⟨G, N⟩ is
off by about 1e-7 ‖G‖ ‖N‖, so that a score which is exactly 0 comes out at up to 3e-4 for two maps of rank 1 and 1e-5
for ranks of 100. Narrow models, up to `DOUBLE`, are therefore computed in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.paths import LinearPath
from hybridlens.weights import AttentionWeights, RecurrentWeights

DOUBLE = 512
"""Up to this d_model float64 is used."""

BAND = 256
"""Rows of a band, where memory allows; large enough for full speed, small enough that little is computed twice."""


class Grams(NamedTuple):
    """Symmetric matrices left_i rightᵀ of trace 1, or 0; `map` counts group by group."""

    left: Float[Tensor, "map d_model inner"]
    right: Float[Tensor, "group d_model inner"]


def dtype_for(d_model: int) -> torch.dtype:
    """What Grams of this width are computed in."""
    return torch.float64 if d_model <= DOUBLE else torch.float32


def head_writers(attention: AttentionWeights, dtype: torch.dtype) -> Grams:
    """Of each head's W_V W_O: G = W_Oᵀ (W_Vᵀ W_V) W_O."""
    W_V, W_O = _unit(attention.W_V.to(dtype)), _unit(attention.W_O_at_rest.to(dtype))
    return _traced(_times(W_O.mT, W_V.mT @ W_V), W_O.mT)


def path_writer(recurrent: RecurrentWeights, path: LinearPath, lag: int, dtype: torch.dtype) -> Grams:
    """Of a recurrent layer's linear path at one lag, W_in diag(channels) W_out."""
    parts = recurrent.parts
    W_in, channels = _unit(parts.W_in.to(dtype)), _unit(path.channels[:, lag : lag + 1].to(parts.W_in.device, dtype))
    turned = _unit((W_in * channels[:, 0]) @ _unit(parts.W_out.to(dtype))).mT[None]
    return Grams(turned, turned)


def readers(attention: AttentionWeights, kind: str, dtype: torch.dtype) -> Grams:
    """Of what each head reads by "q", W_Q W_Kᵀ; "k", W_K W_Qᵀ, with the weights of their norms; "v", W_V W_O."""
    if kind == "v":
        W_V, W_O = _unit(attention.W_V.to(dtype)), _unit(attention.W_O_at_rest.to(dtype))
        return _traced(_times(W_V, W_O @ W_O.mT), W_V)
    attention = attention.compared
    W_Q, W_K = _unit(attention.W_Q.to(dtype)), _unit(attention.W_K.to(dtype))
    if kind == "q":
        return _traced(_times(W_Q, W_K.mT @ W_K), W_Q)
    return _traced(_times(W_K, W_Q.mT @ W_Q), W_K)


class Packing(NamedTuple):
    """The upper half of symmetric d × d matrices, in bands of rows."""

    d_model: int
    rows: int
    """Of each band; the last may have fewer."""

    @property
    def bands(self) -> list[tuple[int, int]]:
        """First row of each band, and the row after its last."""
        return [(start, min(start + self.rows, self.d_model)) for start in range(0, self.d_model, self.rows)]

    def entries(self, start: int, stop: int) -> int:
        """Of a band."""
        return (stop - start) * (self.d_model - start)

    def fill(self, grams: Grams, band: tuple[int, int], out: Float[Tensor, "map entry"]) -> None:
        """Put a band of the matrices into `out`, which is contiguous."""
        start, stop = band
        left = grams.left[:, start:stop].reshape(grams.right.shape[0], -1, grams.right.shape[2])
        wide = out.view(grams.right.shape[0], -1, self.d_model - start)
        torch.bmm(left, grams.right[:, start:].mT, out=wide)

    def squared(self, band: tuple[int, int], packed: Float[Tensor, "map entry"]) -> Float[Tensor, "map"]:
        """What a band adds to the matrices' squared norms."""
        everything = (packed[:, None] @ packed[:, :, None])[:, 0, 0]
        diagonal = packed.unflatten(1, (band[1] - band[0], -1))[..., : band[1] - band[0]]
        return (2 * everything - diagonal.square().sum((1, 2))).double()

    def double(self, band: tuple[int, int], packed: Float[Tensor, "map entry"]) -> None:
        """Multiply what is off the diagonal block by 2, in place."""
        packed.unflatten(1, (band[1] - band[0], -1))[..., band[1] - band[0] :].mul_(2)

    def products(
        self, band: tuple[int, int], doubled: Float[Tensor, "writer entry"], packed: Float[Tensor, "reader entry"]
    ) -> Float[Tensor, "writer reader"]:
        """What a band adds to ⟨G, N⟩ of every pair, row by row in the dtype given and then in float64."""
        rows = (band[1] - band[0], -1)
        each = doubled.unflatten(1, rows).transpose(0, 1) @ packed.unflatten(1, rows).permute(1, 2, 0)
        return each.sum(dim=0, dtype=torch.float64)


def _unit(x: Float[Tensor, "*batch row column"]) -> Float[Tensor, "*batch row column"]:
    """Matrices scaled to norm 1, so that products of very small or large weights stay in range; 0 stays 0."""
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    return x / torch.where(norm > 0, norm, 1.0)


def _times(
    x: Float[Tensor, "some_map d_model inner"], small: Float[Tensor, "other_map inner inner"]
) -> Float[Tensor, "map d_model inner"]:
    """x @ small for every head, where either is given once for each key/value head."""
    groups = min(len(x), len(small))
    return (x.unflatten(0, (groups, -1)) @ small.unflatten(0, (groups, -1))).flatten(0, 1)


def _traced(left: Float[Tensor, "map d_model inner"], right: Float[Tensor, "group d_model inner"]) -> Grams:
    """left rightᵀ scaled to trace 1."""
    grouped = left.unflatten(0, (right.shape[0], -1))
    trace = torch.einsum("gsde,gde->gs", grouped, right).reshape(-1, 1, 1)
    return Grams(left * torch.where(trace > 0, 1 / trace, 0.0), right)
