"""What the chunked forms of matrix-state recurrences share: pieces of time side by side, and products of decays.

A chunk's products of decays are made by joining neighbours, 1 + 1, 2 + 2, 4 + 4 tokens: no logarithm, no quotient and
no power above the ones that the recurrence has itself, so that decays may be 0, negative or above 1, and no more
rounding errors than there are tokens come together.

How it fails: as attention does, a value that is not finite reaches the earlier tokens of its chunk, since 0 times it
is not 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 64
"""Tokens that are worked on at once; a power of two."""

SEGMENT = 4 * CHUNK
"""Tokens, of all rows together, whose chunks stand side by side on a CPU: about what its cache holds."""

GPU_SEGMENT = 64 * CHUNK
"""The same elsewhere, where launches are what costs; it bounds the memory of a long text."""


def chunk_of(length: int) -> int:
    """The length of a chunk: `CHUNK`, or the power of two that holds a shorter text."""
    return min(CHUNK, 1 << max(0, length - 1).bit_length())


def split(x: Tensor, chunk: int, fill: float = 0.0) -> Tensor:
    """[b p ...] as [b n chunk ...]; what is missing in the last chunk is `fill`."""
    missing = -x.shape[1] % chunk
    if missing:
        x = torch.cat([x, x.new_full((x.shape[0], missing, *x.shape[2:]), fill)], dim=1)
    return x.unflatten(1, (-1, chunk))


def in_chunks(x: Tensor, chunk: int, fill: float = 0.0) -> Tensor:
    """[b p s ...] as [b n s chunk ...]; see `split`."""
    return split(x, chunk, fill).transpose(2, 3)


def joined(x: Tensor, length: int) -> Tensor:
    """[b n s chunk ...] as [b p s ...], without what was filled in."""
    return x.transpose(2, 3).flatten(1, 2)[:, :length]


class Products(NamedTuple):
    """Products of one number a token over the stretches of a chunk."""

    between: Float[Tensor, "*lead chunk chunk"]
    """[t, j] = ∏_{j<r≤t} a_r: what is left at t of what came in at j; 0 where j > t."""
    since_start: Float[Tensor, "*lead chunk"]
    """∏_{r≤t} a_r: what is left at t of what was there before the chunk."""


def products(decay: Float[Tensor, "*lead chunk"]) -> Products:
    """All products of neighbouring decays in a chunk, whose length is a power of two."""
    between = cast(Tensor, _Between.apply(decay))
    return Products(between, decay[..., :1] * between[..., 0])


class _Between(torch.autograd.Function):
    """`Products.between`: halves are joined where the whole stands. Backward, row by row from the last token."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor) -> Tensor:
        chunk, width = decay.shape[-1], 1
        between, since = torch.eye(chunk, dtype=decay.dtype, device=decay.device).repeat(*decay.shape[:-1], 1, 1), decay
        while width < chunk:
            blocks = between.unflatten(-1, (-1, 2 * width)).unflatten(-3, (-1, 2 * width))
            joining = blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
            halves = since.unflatten(-1, (-1, 2 * width))
            first, second = halves[..., :width], halves[..., width:]
            joining[..., width:, :width] = second[..., None] * joining[..., width - 1, None, :width]
            since = torch.cat([first, first[..., -1:] * second], dim=-1).flatten(-2)
            width *= 2
        ctx.save_for_backward(decay, between)
        return between

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        decay, between = ctx.saved_tensors
        total = grads[0].clone()
        rows = total.unbind(-2)
        for t in range(len(rows) - 1, 0, -1):
            rows[t - 1].addcmul_(decay[..., t, None], rows[t])
        return F.pad((total[..., 1:, :] * between[..., :-1, :]).sum(dim=-1), (1, 0))


class Addressed(NamedTuple):
    """A chunk's addresses, decays put in."""

    scores: tuple[Float[Tensor, "*lead chunk chunk"], ...]
    """Of each reader: [t, j] = r_tᵀ (∏_{j<r≤t} a_r ⊙ k_j); 0 where j > t."""
    readers: tuple[Float[Tensor, "*lead chunk address"], ...]
    """∏_{r≤t} a_r ⊙ r_t: what reads at t from the state before the chunk."""
    writer: Float[Tensor, "*lead chunk address"]
    """∏_{j<r≤end} a_r ⊙ k_j: where what is written at j stands at the chunk's end."""
    carried: Float[Tensor, "*lead width"]
    """∏ a_r over the chunk, by channel or (width 1) for all."""


def addressed(
    readers: tuple[Float[Tensor, "*lead chunk address"], ...],
    k: Float[Tensor, "*lead chunk address"],
    decay: Float[Tensor, "*lead chunk width"],
) -> Addressed:
    """What a chunk's tokens read of each other and of the state before.

    Args:
        readers: read addresses.
        k: write addresses.
        decay: of the state before each token, one number (width 1) or one an address channel.
    """
    if decay.shape[-1] == 1:
        between, since = products(decay[..., 0])
        return Addressed(
            tuple(between * (r @ k.mT) for r in readers),
            tuple(r * since[..., None] for r in readers),
            k * between[..., -1, :, None],
            since[..., -1:],
        )
    # One decay a channel: neighbours are joined, each reading from the other's end, so that no product is divided.
    tokens = k[..., None, :]
    scores = [(r[..., None, :] * tokens).sum(dim=-1, keepdim=True) for r in readers]
    reads, total = [(r * decay)[..., None, :] for r in readers], decay
    while tokens.shape[-3] > 1:
        left, right = total[..., 0::2, None, :], total[..., 1::2, None, :]
        early, late = tokens[..., 0::2, :, :], tokens[..., 1::2, :, :]
        for i, read in enumerate(reads):
            first, second = scores[i][..., 0::2, :, :], scores[i][..., 1::2, :, :]
            low = read[..., 1::2, :, :] @ early.mT
            scores[i] = torch.cat([F.pad(first, (0, first.shape[-1])), torch.cat([low, second], dim=-1)], dim=-2)
            reads[i] = torch.cat([read[..., 0::2, :, :], read[..., 1::2, :, :] * left], dim=-2)
        tokens = torch.cat([early * right, late], dim=-2)
        total = (left * right)[..., 0, :]
    only = tuple(s[..., 0, :, :] for s in scores), tuple(r[..., 0, :, :] for r in reads)
    return Addressed(*only, tokens[..., 0, :, :], total[..., 0, :])


def segments(like: Tensor) -> list[slice]:
    """Stretches of whole chunks, the last one as long as is left.

    Args:
        like: any of the terms [b p ...].
    """
    batch, length = like.shape[:2]
    tokens = SEGMENT if like.device.type == "cpu" else GPU_SEGMENT
    stretch = max(1, tokens // (CHUNK * max(1, batch))) * CHUNK
    return [slice(start, min(start + stretch, length)) for start in range(0, length, stretch)]
