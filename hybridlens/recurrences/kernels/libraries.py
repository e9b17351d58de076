"""Kernel libraries behind the two scans: what each one's own conventions ask for, put right here.

Each adapter calls one function of one library and imports it only then. The linear ones give states
alone: `hybridlens.recurrences.scan` has the backward pass, which is the same scan from the other end, so that no
gradient rests on a library (flash-linear-attention works on the logarithm of the decay, whose gradient
is lost where a decay is 0).

mamba-ssm has neither an initial state nor a gradient for the last one. Both are made of tokens, for
which the kernel has everything: before the text, one token a state direction that writes the initial
state with Δ = 2⁻³⁰, which multiplies the state by exp(2⁻³⁰ A), 1 in float32; behind it, one token a
direction with Δ = 0 that reads the last state out.

How it fails: a channel whose A is below about -16 forgets the initial state by more than 2⁻²⁶ a token, and an
initial state beyond 10²⁹ overflows. mamba-ssm reads out in float32 where the plain code rounds the states
to the dtype of C first.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

WRITING = 2.0**-30
"""Δ of the tokens that write an initial state; a power of two, so that multiplying by it loses nothing."""


def accelerated_scan(decay: Tensor, write: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    """`accelerated_scan.scalar.scan(gates, tokens)` (0.3): [row, 1, pos], contiguous, any length, zero before it.

    Shapes are those of `triton_scans.linear_scan`. The initial state is folded into the first write.
    Rows and channels share the first axis, since a grid's second one holds at most 65,535.
    """
    scan = import_module("accelerated_scan.scalar").scan
    decay, write = _turned(decay, reverse), _turned(write, reverse)
    first = torch.addcmul(write[:, 0], decay[:, 0], initial)
    write = torch.cat([first[:, None], write[:, 1:]], dim=1)
    gates, tokens = (t.transpose(1, 2).flatten(0, 1)[:, None].contiguous() for t in (decay, write))
    states = scan(gates, tokens)[:, 0].unflatten(0, initial.shape).transpose(1, 2)
    return _turned(states, reverse)


def flash_linear_attention(decay: Tensor, write: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    """`fla.ops.hgrn.fused_recurrent_hgrn(x, g, initial_state)` (0.6): [batch, pos, channel], g the log of the decay.

    A decay of 0 is a logarithm of -∞, which the kernel takes. A negative decay has no logarithm: with s_t the
    product of the signs up to t, s_t h_t has the decay |a_t| and the write s_t w_t, and the same size.
    """
    scan = import_module("fla.ops.hgrn").fused_recurrent_hgrn
    decay, write = _turned(decay, reverse), _turned(write, reverse)
    sign = torch.where(decay < 0, -1.0, 1.0).cumprod(dim=1)
    states, _ = scan((sign * write).contiguous(), decay.abs().log().contiguous(), initial_state=initial.contiguous())
    return _turned(sign * states, reverse)


def mamba_ssm(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, x: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """`selective_scan_fn(u, delta, A, B, C)` (mamba-ssm 2.3): [batch, channel, pos] and [batch, state, pos], float32.

    Arguments and results are those of `triton_scans.selective_scan`.
    """
    scan = import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    return cast(tuple[Tensor, Tensor], _FirstOrder.apply(lambda *t: _with_both_ends(scan, *t), dt, A, B, C, x, initial))


def _with_both_ends(
    scan: Callable[..., Tensor], dt: Tensor, A: Tensor, B: Tensor, C: Tensor, x: Tensor, initial: Tensor
) -> tuple[Tensor, Tensor]:
    batch, steps, channels = x.shape
    width = A.shape[1]
    axes = torch.eye(width, device=x.device).expand(batch, -1, -1)
    nothing = torch.zeros(batch, channels, width, device=x.device)
    dt_, B_, C_, x_ = (t.float().transpose(1, 2) for t in (dt, B, C, x))
    y = scan(
        torch.cat([initial.float() / WRITING, x_, nothing], dim=2),
        torch.cat([torch.full_like(nothing, WRITING), dt_, nothing], dim=2),
        A.float().contiguous(),
        torch.cat([axes, B_, torch.zeros_like(axes)], dim=2),
        torch.cat([torch.zeros_like(axes), C_, axes], dim=2),
    )
    return y[..., width : width + steps].transpose(1, 2).to(C.dtype), y[..., width + steps :]


def triton_linear(decay: Tensor, write: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    """`triton_scans.linear_scan`."""
    return import_module("hybridlens.recurrences.kernels.triton_scans").linear_scan(decay, write, initial, reverse)


def triton_selective(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, x: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """`triton_scans.selective_scan`."""
    return import_module("hybridlens.recurrences.kernels.triton_scans").selective_scan(dt, A, B, C, x, initial)


def _turned(x: Tensor, reverse: bool) -> Tensor:
    return x.flip(1) if reverse else x


class _FirstOrder(torch.autograd.Function):
    """A library's differentiable function, with second derivatives refused: theirs would be silent zeros."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        asked = ctx.needs_input_grad[1:]
        if not any(asked):
            return function(*inputs)
        with torch.enable_grad():
            ctx.inputs = [t.detach().requires_grad_(wanted) for t, wanted in zip(inputs, asked, strict=True)]
            ctx.outputs = function(*ctx.inputs)
        return tuple(t.detach() for t in ctx.outputs)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        wanted = [t for t in ctx.inputs if t.requires_grad]
        got = iter(torch.autograd.grad(ctx.outputs, wanted, grads, retain_graph=True))
        return None, *(next(got) if t.requires_grad else None for t in ctx.inputs)
