"""The linear recurrences h_t = a_t h_{t-1} + w_t, exact, with an initial state, forward and backward.

Two speeds of one recurrence, chosen by how much work a time step holds: a loop over time with one
fused multiply-add a step, and, where a step is so small that calling it costs more than doing it,
a blocked form that runs the steps of many segments side by side and then joins the segments.
Both have a hand-written backward pass, which is the same recurrence run in the other direction.

On a GPU either would be a loop of small launches: there `hybridlens.recurrences.kernels.choice` chooses a kernel
library behind the same functions, and its results differ from these in float32 rounding. On a CPU
this code always runs.

`linear_scan` returns the state after every token; Mamba's recurrence, whose decay and write are made on
the way, is in `hybridlens.recurrences.mamba_scan`.

How it fails: products of many decays underflow to zero, as they do in the plain loop; decays above
1 can overflow in the blocked form where they would in the loop. Gradients are first order only.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridlens.recurrences.kernels import choice
from hybridlens.recurrences.kernels.choice import use_kernels

__all__ = [
    "adjoint",
    "kernel_for",
    "linear_scan",
    "persistent_states",
    "use_kernels",
]

SMALL_STEP = 2048
"""Elements in a time step (batch × channels × states) up to which the blocked form is faster."""


def linear_scan(
    decay: Float[Tensor, "batch pos *state"],
    write: Float[Tensor, "batch pos *state"],
    initial: Float[Tensor, "batch *state"] | None = None,
) -> Float[Tensor, "batch pos *state"]:
    """The state after each token: h_t = decay_t · h_{t-1} + write_t, elementwise.

    Args:
        decay: a_t, what multiplies the previous state.
        write: w_t, what is added to it.
        initial: h_{-1}; zero if None.
    """
    if initial is None:
        initial = torch.zeros_like(write[:, 0])
    return cast(Tensor, _LinearScan.apply(decay, write, initial))


def persistent_states(
    edited: Float[Tensor, "batch pos *state"],
    mask: Bool[Tensor, "batch pos *state"],
    decay: Float[Tensor, "batch pos *state"],
    write: Float[Tensor, "batch pos *state"],
    initial: Float[Tensor, "batch *state"],
) -> Float[Tensor, "batch pos *state"]:
    """The trajectory that an edited trajectory stands for.

    G_t = edited_t where mask_t, else decay_t · G_{t-1} + write_t, entry by entry: the recurrence with decay and write
    replaced at the edited entries, so that an edit of the state persists.
    """
    return linear_scan(decay.masked_fill(mask, 0.0), torch.where(mask, edited, write), initial)


def kernel_for(
    operation: str, *tensors: Tensor, steps: int, states: int = 1, kernels: str | None = None
) -> choice.Kernel | None:
    """The kernel for these tensors, all on one device; None where the plain code runs.

    Args:
        operation: "linear" or "selective".
        tensors: what it works on.
        steps: of time.
        states: of a channel.
        kernels: as in `use_kernels`; what that set if None.
    """
    device = tensors[0].device.type
    if device in ("cpu", "meta") or steps < 2:
        return None
    dtypes, elements = frozenset(t.dtype for t in tensors), max(t.numel() for t in tensors)
    return choice.choose(choice.Case(operation, device, dtypes, steps, elements, states), kernels)


def _run(decay: Tensor, write: Tensor, initial: Tensor, reverse: bool = False, kernels: str | None = None) -> Tensor:
    """The recurrence on [pos, batch, *state], from either end; allocates its result."""
    kernel = kernel_for("linear", decay, write, initial, steps=decay.shape[0], kernels=kernels)
    if kernel is not None and kernel.linear is not None:
        a, w = (t.transpose(0, 1).reshape(*initial.shape[:1], decay.shape[0], -1).float() for t in (decay, write))
        states = kernel.linear(a, w, initial.reshape(initial.shape[0], -1).float(), reverse)
        return states.transpose(0, 1).reshape(write.shape).to(write.dtype)
    steps, width = decay.shape[0], decay[0].numel()
    segment = 1 << max(0, (steps.bit_length() - 1) // 2)
    if decay.device.type == "meta" or width > SMALL_STEP or steps < 4 * segment or segment < 4:
        return _loop(decay, write, initial, reverse)
    return _blocked(decay, write, initial, reverse, segment)


def _loop(decay: Tensor, write: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    states = torch.empty_like(write)
    steps = list(zip(decay.unbind(0), write.unbind(0), states.unbind(0), strict=True))
    previous = initial
    for a, w, h in reversed(steps) if reverse else steps:
        torch.addcmul(w, a, previous, out=h)
        previous = h
    return states


def _blocked(decay: Tensor, write: Tensor, initial: Tensor, reverse: bool, segment: int) -> Tensor:
    """Segments of `segment` steps side by side: their own states and products, then the joins.

    A remainder that does not fill the segments is run as a plain loop.
    """
    n = decay.shape[0] // segment
    whole = n * segment
    head, tail = (
        (slice(decay.shape[0] - whole, None), slice(0, decay.shape[0] - whole))
        if reverse
        else (slice(0, whole), slice(whole, None))
    )
    a = decay[head].unflatten(0, (n, segment))
    local = write[head].unflatten(0, (n, segment)).clone()
    product = a.clone()
    order = list(range(segment))[::-1] if reverse else list(range(segment))
    for before, t in pairwise(order):
        local[:, t].addcmul_(a[:, t], local[:, before])
        product[:, t].mul_(product[:, before])
    entering = torch.empty_like(local[:, 0])
    carry = initial
    for i in range(n)[::-1] if reverse else range(n):
        entering[i] = carry
        carry = torch.addcmul(local[i, order[-1]], product[i, order[-1]], carry)
    states = local.addcmul_(product, entering[:, None]).flatten(0, 1)
    if whole == decay.shape[0]:
        return states
    rest = _loop(decay[tail], write[tail], carry, reverse)
    return torch.cat([rest, states] if reverse else [states, rest])


def adjoint(
    decay: Float[Tensor, "batch pos *state"], grad: Float[Tensor, "batch pos *state"], kernels: str | None = None
) -> Float[Tensor, "batch pos *state"]:
    """g_t = grad_t + decay_{t+1} · g_{t+1}: how the loss changes with each state, later ones included.

    Args:
        decay: what multiplies the previous state.
        grad: how the loss changes with each state through its own readout.
        kernels: as in `use_kernels`; what that set if None. A backward pass may run in another thread and after
            the `with` block, so it hands on what its forward pass was under.
    """
    return _adjoint(decay.transpose(0, 1), grad.transpose(0, 1), kernels).transpose(0, 1)


def _adjoint(decay: Tensor, grad: Tensor, kernels: str | None) -> Tensor:
    shifted = torch.cat([decay[1:], torch.zeros_like(decay[:1])])
    return _run(shifted, grad, torch.zeros_like(grad[0]), reverse=True, kernels=kernels)


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, write: Tensor, initial: Tensor) -> Tensor:
        states = _run(decay.transpose(0, 1), write.transpose(0, 1), initial).transpose(0, 1)
        ctx.kernels = choice.wanted()
        ctx.save_for_backward(decay, initial, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        decay, initial, states = ctx.saved_tensors
        g = adjoint(decay, grads[0], ctx.kernels)
        before = torch.cat([initial[:, None], states[:, :-1]], dim=1)
        return g * before, g, decay[:, 0] * g[:, 0]
