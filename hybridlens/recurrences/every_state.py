"""Every state of a recurrence of matrix states, once it is known what each token writes.

Each state is made from the one before it where it is to stand, so that it is written once and read while it is in
cache. Large states are made one after the other; of small ones, and where launches are what costs, all chunks of a text
step at the same time, each from the state before it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hybridlens.recurrences.chunks import chunk_of, split

LARGE_STATE = 1 << 14
"""Elements of a state, all rows together, from which on a step on a CPU costs more than calling it."""


class Walk(NamedTuple):
    """S_t = a_t S_{t-1} + w_t k_tᵀ."""

    decay: Float[Tensor, "batch pos rec_head width"]
    """One number a head (width 1), or one a key channel."""
    written: Float[Tensor, "batch pos rec_head value"]
    k: Float[Tensor, "batch pos rec_head address"]


def one_by_one(initial: Float[Tensor, "batch rec_head value address"]) -> bool:
    """Whether states of this size are made one after the other, so that none at the chunks' borders is asked for."""
    return initial.device.type == "cpu" and initial.numel() >= LARGE_STATE


def walked(
    walk: Walk, initial: Float[Tensor, "batch rec_head value address"]
) -> Float[Tensor, "batch pos rec_head value address"]:
    """Every state, one after the other, without gradients.

    Args:
        walk: of all tokens.
        initial: the state before them.
    """
    out = _room(walk, walk.k.shape[1], initial)
    if out.device.type != "meta":
        _step(Walk(*(x[:, None] for x in walk)), initial[:, None], out[:, None])
    return out


def side_by_side(
    walk: Walk, borders: Float[Tensor, "batch chunk rec_head value address"], idle: Bool[Tensor, "batch pos rec_head"]
) -> Float[Tensor, "batch pos rec_head value address"]:
    """Every state, all chunks at the same time, without gradients.

    Args:
        walk: of all tokens.
        borders: the state before each chunk.
        idle: True at tokens that leave the state as it is: there it is the one before, to the bit.
    """
    length = idle.shape[1]
    chunk = chunk_of(length)
    out = _room(walk, borders.shape[1] * chunk, borders[:, 0])
    if out.device.type == "meta":
        return out[:, :length]
    _step(Walk(*(split(x, chunk) for x in walk)), borders, out.unflatten(1, (-1, chunk)))
    made = out[:, :length]
    if not bool(idle.any()):
        return made
    own = torch.arange(1, length + 1, device=idle.device)[:, None].masked_fill(idle, 0).cummax(dim=1).values
    whole = torch.cat([borders[:, :1].to(made.dtype), made], dim=1)
    return whole.gather(1, own[..., None, None].expand(made.shape))


def walked_back(
    decay: Float[Tensor, "batch pos rec_head width"], grad: Tensor, mask: Tensor | None
) -> Float[Tensor, "batch pos rec_head value address"]:
    """g_t = grad_t + a_{t+1} g_{t+1}, one after the other; `hybridlens.recurrences.base.Recurrence.adjoint`."""
    out = grad.clone()
    for t in range(grad.shape[1] - 1, 0, -1):
        heard = out[:, t] if mask is None else out[:, t].masked_fill(mask[:, t], 0.0)
        out[:, t - 1].addcmul_(decay[:, t, :, None], heard)
    return out


def _room(walk: Walk, length: int, like: Tensor) -> Tensor:
    batch, _, heads, values = walk.written.shape
    dtype = torch.promote_types(walk.written.dtype, like.dtype)
    return like.new_empty((batch, length, heads, values, walk.k.shape[-1]), dtype=dtype)


def _step(walk: Walk, previous: Tensor, out: Tensor) -> None:
    """All chunks [b n chunk ...] from the state before each, written to `out`."""
    for decay, written, k, state in zip(*(x.unbind(2) for x in (*walk, out)), strict=True):
        torch.mul(previous, decay[..., None, :], out=state)
        previous = state.addcmul_(written[..., None], k[..., None, :])
