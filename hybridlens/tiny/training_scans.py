"""The two recurrences with their own backward passes, quick enough to train on.

Mechanism: each recurrence is one `torch.autograd.Function`: a loop over time on ``[time, batch, ...]`` slices
with `torch.addcmul` into memory set aside before it, and in the backward pass the same loop in reverse.
Mamba's per-channel, per-state decays are rebuilt in chunks of time in both passes, so that they stay in the
cache of the processor and are never held for the whole sequence.

How it fails: whole sequences from a zero state only, first derivatives only, float32 on the processor. The
lens has the general ones (`hybridlens.scan`).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 16
"""Time steps of Mamba's decay and write held at once."""


class _LinearScan(torch.autograd.Function):
    """``h[t] = a[t] * h[t-1] + b[t]`` along the first axis, from a zero state."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        states = torch.empty_like(b)
        states[0] = b[0]
        for t in range(1, b.shape[0]):
            torch.addcmul(b[t], a[t], states[t - 1], out=states[t])
        ctx.save_for_backward(a, states)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a, states = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_b = torch.empty_like(grad)
        grad_b[-1] = grad[-1]
        for t in range(grad.shape[0] - 2, -1, -1):
            torch.addcmul(grad[t], a[t + 1], grad_b[t + 1], out=grad_b[t])
        grad_a = torch.zeros_like(a)
        torch.mul(grad_b[1:], states[:-1], out=grad_a[1:])
        return grad_a, grad_b


def linear_scan(
    a: Float[Tensor, "pos batch width"], b: Float[Tensor, "pos batch width"]
) -> Float[Tensor, "pos batch width"]:
    """States of the recurrence ``h[t] = a[t] * h[t-1] + b[t]`` from ``h[-1] = 0``; differentiable."""
    out = _LinearScan.apply(a, b)
    assert isinstance(out, Tensor)
    return out


class _SelectiveScan(torch.autograd.Function):
    """Mamba's recurrence; see `selective_scan`. Time first, channels last."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        time, batch, width = u.shape
        n_state = a.shape[0]
        out = torch.empty_like(u)
        starts: list[Tensor] = []
        state = u.new_zeros(batch, n_state, width)
        for lo in range(0, time, CHUNK):
            hi = min(lo + CHUNK, time)
            starts.append(state)
            _, states = _chunk_states(u[lo:hi], delta[lo:hi], a, b[lo:hi], state)
            torch.matmul(c[lo:hi].unsqueeze(2), states, out=out[lo:hi].unsqueeze(2))
            state = states[-1].clone()
        ctx.save_for_backward(u, delta, a, b, c, torch.stack(starts))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        u, delta, a, b, c, starts = ctx.saved_tensors
        grad_out = grads[0].contiguous()
        time = u.shape[0]
        grad_u, grad_delta = torch.empty_like(u), torch.empty_like(delta)
        grad_b, grad_c, grad_a = torch.empty_like(b), torch.empty_like(c), torch.zeros_like(a)
        carry = torch.zeros_like(starts[0])
        for index in range(starts.shape[0] - 1, -1, -1):
            lo, hi = index * CHUNK, min((index + 1) * CHUNK, time)
            decay, states = _chunk_states(u[lo:hi], delta[lo:hi], a, b[lo:hi], starts[index])
            torch.matmul(states, grad_out[lo:hi].unsqueeze(3), out=grad_c[lo:hi].unsqueeze(3))
            grad_state = c[lo:hi].unsqueeze(3) * grad_out[lo:hi].unsqueeze(2)
            grad_state[-1] += carry
            for t in range(hi - lo - 2, -1, -1):
                grad_state[t].addcmul_(decay[t + 1], grad_state[t + 1])
            carry = decay[0] * grad_state[0]
            write = delta[lo:hi] * u[lo:hi]
            torch.matmul(grad_state, write.unsqueeze(3), out=grad_b[lo:hi].unsqueeze(3))
            grad_write = torch.matmul(b[lo:hi].unsqueeze(2), grad_state).squeeze(2)
            torch.mul(grad_write, delta[lo:hi], out=grad_u[lo:hi])
            grad_state[0].mul_(starts[index])
            grad_state[1:].mul_(states[:-1])
            grad_state.mul_(decay)
            torch.mul(grad_write, u[lo:hi], out=grad_delta[lo:hi])
            grad_delta[lo:hi] += (grad_state * a).sum(2)
            grad_a += (grad_state * delta[lo:hi].unsqueeze(2)).sum((0, 1))
        return grad_u, grad_delta, grad_a, grad_b, grad_c


def _chunk_states(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Decay and state [time, batch, state, channel] of one chunk of time that begins from `start`."""
    decay = (delta.unsqueeze(2) * a).exp_()
    states = b.unsqueeze(3) * (delta * u).unsqueeze(2)
    states[0].addcmul_(decay[0], start)
    for t in range(1, u.shape[0]):
        states[t].addcmul_(decay[t], states[t - 1])
    return decay, states


def selective_scan(
    u: Float[Tensor, "pos batch width"],
    delta: Float[Tensor, "pos batch width"],
    a: Float[Tensor, "state width"],
    b: Float[Tensor, "pos batch state"],
    c: Float[Tensor, "pos batch state"],
) -> Float[Tensor, "pos batch width"]:
    """Mamba's selective recurrence, differentiable in all five arguments.

    ``h[t] = exp(delta[t] a) h[t-1] + delta[t] b[t] u[t]`` and ``y[t] = c[t] . h[t]``, from a zero state
    (Gu and Dao 2023, equations 2a and 2b with their discretisation). The skip term D is not included.
    """
    out = _SelectiveScan.apply(u, delta, a, b, c)
    assert isinstance(out, Tensor)
    return out
