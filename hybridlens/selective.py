"""Mamba's recurrence, exact, with an initial state, forward and backward.

Its decay and write have a state axis, so they are made, used and dropped a few tokens at a time, where they are in
cache, and its backward pass makes them again from the states kept at the chunk borders. `selective_states` keeps every
state, for those who hooked it; `discretise` and `read_out` give its parts.

On a GPU `hybridlens.scan_kernels` chooses a kernel library behind `selective_scan`.

How it fails: as `hybridlens.scan` does.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridlens.scan import kernel_for

CHUNK_ELEMENTS = 1 << 18
"""Elements of decay that `selective_scan` holds at once: 1 MB in float32, about a core's cache."""

GPU_CHUNKS = 64
"""How many times more it holds off the CPU, where a launch costs more than a cache miss."""


class SelectiveScan(NamedTuple):
    """What `selective_scan` returns."""

    y: Float[Tensor, "batch pos channel"]
    """C_t · h_t, the readout before the skip connection and the gate."""
    final: Float[Tensor, "batch channel state"]
    """The state after the last token, float32."""


def selective_scan(
    dt: Float[Tensor, "batch pos channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch pos state"],
    C: Float[Tensor, "batch pos state"],
    x: Float[Tensor, "batch pos channel"],
    initial: Float[Tensor, "batch channel state"] | None = None,
) -> SelectiveScan:
    """Mamba's recurrence (Gu & Dao 2023, eq. 2): h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t, y_t = C_t · h_t.

    Memory beyond inputs and outputs is a few chunks of at most `CHUNK_ELEMENTS`, whatever the length.

    Args:
        dt: Δ, after softplus; 0 leaves the state as it is.
        A: the diagonal, negative.
        B: write directions.
        C: readout directions; the readout is done in its dtype.
        x: the channel inputs.
        initial: the state before the first token; zero if None.
    """
    if initial is None:
        initial = dt.new_zeros((*dt.shape[::2], A.shape[1]), dtype=torch.float32)
    if dt.shape[1] == 1 and not torch.is_grad_enabled():
        return _selective_step(dt[:, 0].float(), A, B[:, 0].float(), C[:, 0], x[:, 0].float(), initial)
    kernel = kernel_for("selective", dt, A, B, C, x, initial, steps=dt.shape[1], states=A.shape[1])
    if kernel is not None and kernel.selective is not None:
        return SelectiveScan(*kernel.selective(dt, A, B, C, x, initial))
    y, final = cast(tuple[Tensor, Tensor], _SelectiveScan.apply(dt, A, B, C, x, initial))
    return SelectiveScan(y, final)


class SelectiveStates(NamedTuple):
    """What `selective_states` returns."""

    states: Float[Tensor, "batch pos channel state"]
    """After every token, float32."""
    y: Float[Tensor, "batch pos channel"]
    """C_t · h_t, as `selective_scan` has it, to the bit."""


def selective_states(
    dt: Float[Tensor, "batch pos channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch pos state"],
    C: Float[Tensor, "batch pos state"],
    x: Float[Tensor, "batch pos channel"],
    initial: Float[Tensor, "batch channel state"],
) -> SelectiveStates:
    """`selective_scan` that keeps every state, without gradients, on a CPU.

    A chunk's states are made and read out where they are in cache, and written away once; memory beyond the result
    is a few chunks. Arguments as in `selective_scan`.
    """
    At, state = A.t().contiguous(), initial.float().transpose(1, 2)
    made = dt.new_empty(dt.shape[1], dt.shape[0], A.shape[1], dt.shape[2], dtype=torch.float32)
    outputs, start = list[Tensor](), 0
    for dt_, B_, C_, x_ in _chunks(A, dt, B, C, x):
        decay, write = _discretise(dt_.float(), B_.float(), x_.float(), At)
        states = _in_place(decay, write, state)
        outputs.append(_read(states, C_))
        made[start : start + states.shape[0]] = states
        start += states.shape[0]
        state = states[-1].clone()
    return SelectiveStates(made.permute(1, 0, 3, 2), torch.cat(outputs).transpose(0, 1))


def edited_states(
    was: SelectiveStates,
    edited: Float[Tensor, "batch pos channel state"],
    dt: Float[Tensor, "batch pos channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch pos state"],
    C: Float[Tensor, "batch pos state"],
    x: Float[Tensor, "batch pos channel"],
    initial: Float[Tensor, "batch channel state"],
    edits: Bool[Tensor, "batch pos channel state"] | None = None,
) -> SelectiveStates:
    """The trajectory that an edited one stands for (`scan.persistent_states`), read out; on a CPU, without gradients.

    Chunks before the first edit are taken over; from there on decays and writes are made again, a chunk at a time.

    Args:
        was: what `selective_states` gave for the other arguments.
        edited: its states after hooks.
        dt: as in `selective_scan`, like all that follows, but for the last.
        edits: True where an entry is edited; None for those that differ.
    """
    given = None if edits is None else edits.permute(1, 0, 3, 2)
    before, wanted = (states.permute(1, 0, 3, 2) for states in (was.states, edited))
    At, state = A.t().contiguous(), initial.float().transpose(1, 2)
    made, outputs = torch.empty_like(before), list[Tensor]()
    begun, start = False, 0
    for dt_, B_, C_, x_, y_ in _chunks(A, dt, B, C, x, was.y):
        part = slice(start, start + dt_.shape[0])
        mask = wanted[part] != before[part] if given is None else given[part]
        start = part.stop
        begun = begun or bool(mask.any())
        if begun:
            decay, write = _discretise(dt_.float(), B_.float(), x_.float(), At)
            states = _in_place(decay.masked_fill_(mask, 0.0), torch.where(mask, wanted[part], write), state)
            outputs.append(_read(states, C_))
        else:
            states = before[part]
            outputs.append(y_)
        made[part] = states
        state = states[-1].clone()
    return SelectiveStates(made.permute(1, 0, 3, 2), torch.cat(outputs).transpose(0, 1))


def _selective_step(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, x: Tensor, initial: Tensor) -> SelectiveScan:
    """A single token: the layout that the state is held in serves, and nothing is rearranged."""
    decay = torch.exp(dt[..., None] * A)
    state = torch.addcmul((dt * x)[..., None] * B[:, None, :], decay, initial)
    return SelectiveScan(torch.matmul(state.to(C.dtype), C[..., None])[:, None, :, 0], state)


def discretise(
    dt: Float[Tensor, "batch pos channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch pos state"],
    x: Float[Tensor, "batch pos channel"],
) -> tuple[Float[Tensor, "batch pos channel state"], Float[Tensor, "batch pos channel state"]]:
    """Mamba's decay exp(Δ A) and write Δ B x for every token, in float32."""
    dt, B, x = (t.transpose(0, 1).contiguous().float() for t in (dt, B, x))
    decay, write = _discretise(dt, B, x, A.t().contiguous())
    return decay.permute(1, 0, 3, 2), write.permute(1, 0, 3, 2)


def read_out(
    states: Float[Tensor, "batch pos channel state"], C: Float[Tensor, "batch pos state"]
) -> Float[Tensor, "batch pos channel"]:
    """y_t = C_t · h_t, in the dtype of `C`, a few tokens at a time."""
    step = _chunk_length(states.shape[0], states.shape[2] * states.shape[3], states.device)
    parts = [
        _read(h.permute(1, 0, 3, 2).contiguous(), c.transpose(0, 1))
        for h, c in zip(states.split(step, dim=1), C.split(step, dim=1), strict=True)
    ]
    return torch.cat(parts).transpose(0, 1)


# Inside, time comes first and channels last, [pos, batch, state, channel]: steps are then contiguous, and
# sums over the few states of a channel run along whole rows of channels.


def _discretise(dt: Tensor, B: Tensor, x: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    return torch.exp(dt[:, :, None, :] * A), B[..., None] * (dt * x)[:, :, None, :]


def _read(states: Tensor, C: Tensor) -> Tensor:
    return torch.matmul(C[:, :, None, :], states.to(C.dtype))[:, :, 0]


def _chunk_length(batch: int, width: int, device: torch.device) -> int:
    elements = CHUNK_ELEMENTS if device.type == "cpu" else GPU_CHUNKS * CHUNK_ELEMENTS
    return max(1, elements // max(1, batch * width))


class _SelectiveScan(torch.autograd.Function):
    """Chunk by chunk; the backward pass makes each chunk's states again from the state at its border."""

    @staticmethod
    def forward(
        ctx: Any, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, x: Tensor, initial: Tensor
    ) -> tuple[Tensor, Tensor]:
        At, state = A.t().contiguous(), initial.float().transpose(1, 2)
        borders, outputs = list[Tensor](), list[Tensor]()
        for dt_, B_, C_, x_ in _chunks(A, dt, B, C, x):
            borders.append(state)
            decay, write = _discretise(dt_.float(), B_.float(), x_.float(), At)
            states = _in_place(decay, write, state)
            outputs.append(_read(states, C_))
            state = states[-1].clone()
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(dt, A, B, C, x, torch.stack(borders))
        return torch.cat(outputs).transpose(0, 1), state.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *given: Tensor
    ) -> tuple[Tensor, ...]:
        grad_y, grad_final = given
        dt, A, B, C, x, borders = ctx.saved_tensors
        At, carry = A.t().contiguous(), grad_final.float().transpose(1, 2)
        grad_A = torch.zeros_like(At, dtype=torch.float32)
        grads: list[tuple[Tensor, ...]] = []
        chunks = list(zip(_chunks(A, dt, B, C, x, grad_y), borders.unbind(0), strict=True))
        for chunk, border in reversed(chunks):
            dt_, B_, C_, x_, gy = (t.float() for t in chunk)
            decay, write = _discretise(dt_, B_, x_, At)
            states = _in_place(decay, write, border)
            grad_C = torch.matmul(states, gy[..., None])[..., 0]
            g = C_[..., None] * gy[:, :, None, :]
            g[-1] += carry
            _adjoint_in_place(decay, g)
            carry = decay[0] * g[0]
            grad_B = torch.matmul(g, (dt_ * x_)[..., None])[..., 0]
            written = torch.matmul(B_[:, :, None, :], g)[:, :, 0]  # Σ_n g B, what Δ x is worth
            g[0] *= border
            g[1:] *= states[:-1]
            g *= decay  # now what Δ A is worth
            grad_A += (g * dt_[:, :, None, :]).sum((0, 1))
            grads.append(((g * At).sum(2) + written * x_, grad_B, grad_C, written * dt_))
        joined = [torch.cat(part[::-1]).transpose(0, 1) for part in zip(*grads, strict=True)]
        to_dt, to_B, to_C, to_x = (g.to(t.dtype) for g, t in zip(joined, (dt, B, C, x), strict=True))
        return to_dt, grad_A.t().to(A.dtype), to_B, to_C, to_x, carry.transpose(1, 2)


def _chunks(A: Tensor, *tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    """Pieces [pos, batch, ...] short enough that a decay for all of their tokens stays in cache."""
    step = _chunk_length(tensors[0].shape[0], A.numel(), A.device)
    return zip(*(t.transpose(0, 1).contiguous().split(step) for t in tensors), strict=True)


def _in_place(decay: Tensor, write: Tensor, initial: Tensor) -> Tensor:
    """The states, written over `write`."""
    previous = initial
    for a, w in zip(decay.unbind(0), write.unbind(0), strict=True):
        previous = torch.addcmul(w, a, previous, out=w)
    return write


def _adjoint_in_place(decay: Tensor, grad: Tensor) -> None:
    """g_t = grad_t + a_{t+1} g_{t+1}, written over `grad`."""
    after = None
    for a, g in reversed(list(zip(decay[1:].unbind(0), grad.unbind(0)[:-1], strict=True))):
        after = torch.addcmul(g, a, grad[-1] if after is None else after, out=g)
