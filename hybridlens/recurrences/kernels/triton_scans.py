"""The recurrences as Triton kernels: one launch a scan, for GPUs on which no kernel library fits.

`linear_scan` gives each program a block of channels of one row. It walks over time in tiles, solves a
tile with an associative scan and carries the last state over; run from the other end it is its own
adjoint. `selective_scan` is Mamba's: a program holds the state of a few channels and makes decay, write
and readout as it goes, so nothing with a state axis is stored but one border in every √length tokens.
Its backward pass makes the states of such a stretch again and walks back over them.

How it fails: importing this needs triton. States are float32 inside whatever the inputs' dtype, and
float64 inputs lose precision (`hybridlens.recurrences.kernels.choice` never sends them here). The order of the
operations differs from the plain code's, so results agree in float32 rounding and not in every bit.
"""
# Triton is optional, and its language has no types that a checker could follow.
# pyright: basic, reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 64
"""Tokens that `linear_scan` solves at once."""

CHANNELS = 32
"""Channels of one program."""


@triton.jit
def _join(decay, state, next_decay, next_state):
    return decay * next_decay, next_decay * state + next_state


@triton.jit
def _linear(decay, write, initial, states, steps, channels, REVERSE: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr):
    b = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0).to(tl.int64) * BC + tl.arange(0, BC)
    known = c < channels
    row = tl.arange(0, BT)
    state = tl.load(initial + b * channels + c, mask=known, other=0.0).to(tl.float32)
    for tile in range(tl.cdiv(steps, BT)):
        s = tile * BT + row
        t = steps - 1 - s if REVERSE else s
        at = (b * steps + t[:, None]) * channels + c[None, :]
        mask = (s < steps)[:, None] & known[None, :]
        a = tl.load(decay + at, mask=mask, other=1.0).to(tl.float32)
        w = tl.load(write + at, mask=mask, other=0.0).to(tl.float32)
        product, local = tl.associative_scan((a, w), 0, _join)
        local += product * state[None, :]
        tl.store(states + at, local, mask=mask)
        state = tl.sum(tl.where((row == BT - 1)[:, None], local, 0.0), 0)


def linear_scan(decay: Tensor, write: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    """h_t = decay_t h_{t-1} + write_t, or h_t = decay_t h_{t+1} + write_t, on [batch, pos, channel].

    Args:
        decay: what multiplies the previous state.
        write: what is added; the states have its dtype.
        initial: the state before the first token (the last one if `reverse`), [batch, channel].
        reverse: run from the last token to the first.
    """
    decay, write, initial = decay.contiguous(), write.contiguous(), initial.contiguous()
    states = torch.empty_like(write)
    batch, steps, channels = write.shape
    grid = (triton.cdiv(channels, CHANNELS), batch)
    _linear[grid](decay, write, initial, states, steps, channels, reverse, TILE, CHANNELS)
    return states


@triton.jit
def _selective_forward(
    dt, A, B, C, x, initial, y, final, borders, steps, stretch, channels, width, BC: tl.constexpr, BN: tl.constexpr
):
    b = tl.program_id(1).to(tl.int64)
    rows = tl.num_programs(1)
    c = tl.program_id(0).to(tl.int64) * BC + tl.arange(0, BC)
    n = tl.arange(0, BN)
    at_state = c[:, None] * width + n[None, :]
    mask = (c < channels)[:, None] & (n < width)[None, :]
    a = tl.load(A + at_state, mask=mask, other=0.0).to(tl.float32)
    state = tl.load(initial + b * channels * width + at_state, mask=mask, other=0.0)
    for piece in range(tl.cdiv(steps, stretch)):
        tl.store(borders + (piece * rows + b) * channels * width + at_state, state, mask=mask)
        for t in range(piece * stretch, tl.minimum(steps, (piece + 1) * stretch)):
            delta = tl.load(dt + (b * steps + t) * channels + c, mask=c < channels, other=0.0).to(tl.float32)
            u = tl.load(x + (b * steps + t) * channels + c, mask=c < channels, other=0.0).to(tl.float32)
            into = tl.load(B + (b * steps + t) * width + n, mask=n < width, other=0.0).to(tl.float32)
            out = tl.load(C + (b * steps + t) * width + n, mask=n < width, other=0.0)
            state = tl.exp(delta[:, None] * a) * state + into[None, :] * (delta * u)[:, None]
            # Rounded to the dtype of C before the readout, as the plain code and Hugging Face's do.
            read = tl.sum(state.to(out.dtype).to(tl.float32) * out.to(tl.float32)[None, :], 1)
            tl.store(y + (b * steps + t) * channels + c, read, mask=c < channels)
    tl.store(final + b * channels * width + at_state, state, mask=mask)


@triton.jit
def _selective_backward(
    dt, A, B, C, x, borders, grad_y, grad_final, scratch,
    to_dt, to_A, to_B, to_C, to_x, to_initial,
    steps, stretch, channels, width, BC: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    rows = tl.num_programs(1)
    block = tl.program_id(0).to(tl.int64)
    c = block * BC + tl.arange(0, BC)
    n = tl.arange(0, BN)
    at_state = c[:, None] * width + n[None, :]
    mask = (c < channels)[:, None] & (n < width)[None, :]
    a = tl.load(A + at_state, mask=mask, other=0.0).to(tl.float32)
    carry = tl.load(grad_final + b * channels * width + at_state, mask=mask, other=0.0)
    sum_A = tl.zeros([BC, BN], dtype=tl.float32)
    pieces = tl.cdiv(steps, stretch)
    for i in range(pieces):
        piece = pieces - 1 - i
        start = piece * stretch
        end = tl.minimum(steps, start + stretch)
        # Slot j of the scratch holds the state before token start + j.
        state = tl.load(borders + (piece * rows + b) * channels * width + at_state, mask=mask, other=0.0)
        tl.store(scratch + b * channels * width + at_state, state, mask=mask)
        for t in range(start, end):
            delta = tl.load(dt + (b * steps + t) * channels + c, mask=c < channels, other=0.0).to(tl.float32)
            u = tl.load(x + (b * steps + t) * channels + c, mask=c < channels, other=0.0).to(tl.float32)
            into = tl.load(B + (b * steps + t) * width + n, mask=n < width, other=0.0).to(tl.float32)
            state = tl.exp(delta[:, None] * a) * state + into[None, :] * (delta * u)[:, None]
            tl.store(scratch + ((t - start + 1) * rows + b) * channels * width + at_state, state, mask=mask)
        tl.debug_barrier()  # what one thread stored, another may load
        for j in range(end - start):
            t = end - 1 - j
            before = tl.load(scratch + ((t - start) * rows + b) * channels * width + at_state, mask=mask, other=0.0)
            after = tl.load(scratch + ((t - start + 1) * rows + b) * channels * width + at_state, mask=mask, other=0.0)
            delta = tl.load(dt + (b * steps + t) * channels + c, mask=c < channels, other=0.0).to(tl.float32)
            u = tl.load(x + (b * steps + t) * channels + c, mask=c < channels, other=0.0).to(tl.float32)
            gy = tl.load(grad_y + (b * steps + t) * channels + c, mask=c < channels, other=0.0).to(tl.float32)
            into = tl.load(B + (b * steps + t) * width + n, mask=n < width, other=0.0).to(tl.float32)
            out = tl.load(C + (b * steps + t) * width + n, mask=n < width, other=0.0).to(tl.float32)
            g = carry + out[None, :] * gy[:, None]
            at_block = ((block * rows + b) * steps + t) * width + n
            tl.store(to_C + at_block, tl.sum(after * gy[:, None], 0), mask=n < width)
            tl.store(to_B + at_block, tl.sum(g * (delta * u)[:, None], 0), mask=n < width)
            written = tl.sum(g * into[None, :], 1)  # what Δ x is worth
            carry = tl.exp(delta[:, None] * a) * g
            exponent = carry * before  # what Δ A is worth
            sum_A += exponent * delta[:, None]
            to_delta = tl.sum(exponent * a, 1) + written * u
            tl.store(to_dt + (b * steps + t) * channels + c, to_delta, mask=c < channels)
            tl.store(to_x + (b * steps + t) * channels + c, written * delta, mask=c < channels)
        tl.debug_barrier()
    tl.store(to_A + b * channels * width + at_state, sum_A, mask=mask)
    tl.store(to_initial + b * channels * width + at_state, carry, mask=mask)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor]:
        dt, A, B, C, x, initial = (t.contiguous() for t in given)
        batch, steps, channels = x.shape
        width, stretch = A.shape[1], isqrt(steps - 1) + 1
        y = torch.empty(x.shape, dtype=C.dtype, device=x.device)
        state = {"dtype": torch.float32, "device": x.device}
        final = torch.empty((batch, channels, width), **state)
        borders = torch.empty((triton.cdiv(steps, stretch), batch, channels, width), **state)
        _selective_forward[triton.cdiv(channels, CHANNELS), batch](
            dt, A, B, C, x, initial.float(), y, final, borders, steps, stretch, channels, width,
            CHANNELS, triton.next_power_of_2(width), num_warps=1,
        )  # fmt: skip
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(dt, A, B, C, x, borders)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, ...]:
        dt, A, B, C, x, borders = ctx.saved_tensors
        batch, steps, channels = x.shape
        width, stretch = A.shape[1], isqrt(steps - 1) + 1
        blocks = triton.cdiv(channels, CHANNELS)
        state = {"dtype": torch.float32, "device": x.device}
        scratch = torch.empty((stretch + 1, batch, channels, width), **state)
        to_dt, to_x = torch.empty(x.shape, **state), torch.empty(x.shape, **state)
        to_B, to_C = torch.empty((2, blocks, batch, steps, width), **state)
        to_A, to_initial = torch.empty((2, batch, channels, width), **state)
        _selective_backward[blocks, batch](
            dt, A, B, C, x, borders, given[0].contiguous(), given[1].float().contiguous(), scratch,
            to_dt, to_A, to_B, to_C, to_x, to_initial, steps, stretch, channels, width,
            CHANNELS, triton.next_power_of_2(width), num_warps=1,
        )  # fmt: skip
        grads = (to_dt, to_A.sum(0), to_B.sum(0), to_C.sum(0), to_x)
        return *(g.to(t.dtype) for g, t in zip(grads, (dt, A, B, C, x), strict=True)), to_initial


def selective_scan(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, x: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """Mamba's recurrence: y [batch, pos, channel] in the dtype of `C`, and the last state in float32.

    The arguments are those of `mamba_scan.selective_scan`, with the initial state given. Memory beyond inputs
    and outputs is about 2√pos states, and backward two [batch, pos, state] for every 32 channels.
    """
    return _SelectiveScan.apply(dt, A, B, C, x, initial)
