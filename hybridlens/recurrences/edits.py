"""Edits of what a recurrence computes as it goes: its states, its writes, a delta rule's recalls.

A hook sees a whole tensor over time, computed without the edit, and gives back one of the same shape with a mask of the
entries that are edits. Those entries are put in where the recurrence makes them; all later ones are made anew.

Gradients. At what a hook gave back stands the total gradient, at edited and unedited entries alike: how the loss
changes with that entry, everything later that follows from it included. So it answers "what if this entry were set to
another value", one entry at a time: setting all at once would cut them off from each other. An unedited entry is made
by the recurrence, which hears its gradient there (`put`); what comes back through the hook must then not be counted a
second time, and `_Gate` takes it off. What `_Note` saw is good for one backward pass, told by its number in autograd,
so that nothing is left of an earlier one.

How it fails: gradients are first order only. A hook that detaches an entry, hands it on unedited and, in the same
call, makes another entry from it undetached, gets that entry's gradient wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Hook: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Given an activation: what stands there now, and True where that is an edit (None: nowhere)."""


class Edited(NamedTuple):
    """Entries that are put in where a recurrence makes them."""

    value: Tensor
    """What the hook gave; at unedited entries it only hears their gradient."""
    mask: Tensor
    """bool, of the same shape: True where an edit says so, changed or frozen."""


class Tapped(NamedTuple):
    """What came back from a hook."""

    value: Tensor
    mask: Tensor | None


def tap(seen: Tensor, hook: Hook) -> Tapped:
    """Show a hook what a recurrence made, so that gradients are counted once; see the module's docstring.

    The value goes on into `put`, or into a function whose gradient for it is the total one at every entry.
    """
    if not seen.requires_grad:
        return Tapped(*hook(seen))
    cell = _Cell()
    value, mask = hook(cast(Tensor, _Gate.apply(seen, cell)))
    cell.mask = mask
    return Tapped(cast(Tensor, _Note.apply(value, cell)) if value.requires_grad else value, mask)


def edit_of(seen: Tensor, hook: Hook) -> Edited | None:
    """`tap`, as a recurrence's terms take it: None where there is neither an edit nor anybody who hears a gradient."""
    value, mask = tap(seen, hook)
    if mask is not None:
        return Edited(value, mask)
    if value.requires_grad:
        return Edited(value, torch.zeros_like(value, dtype=torch.bool))
    return None


def put(made: Tensor, edit: Edited | None) -> Tensor:
    """The entries of an edit in the place of those made; the gradient at its value is the total one everywhere."""
    if edit is None:
        return made
    if not edit.value.requires_grad:
        return torch.where(edit.mask, edit.value.to(made.dtype), made)
    return cast(Tensor, _Put.apply(made, edit.value, edit.mask))


def with_value(made: Tensor, value: Tensor) -> Tensor:
    """The second tensor's numbers with the gradient of the first: the same quantity, computed in two ways."""
    return cast(Tensor, _WithValue.apply(made, value)) if made.requires_grad else value


class _Cell:
    """What the backward pass has to know of a hooked tensor, filled in as it becomes known."""

    mask: Tensor | None = None
    total: tuple[int, Tensor] | None = None
    """The number of a backward pass, and the total gradient in it."""


def _pass() -> int:
    """The number of the backward pass that is running."""
    return torch._C._current_graph_task_id()  # pyright: ignore[reportPrivateUsage]


class _Gate(torch.autograd.Function):
    """Identity; backward, what edited entries took from here through the hook.

    An unedited entry whose gradient is 0 here was detached by the hook, so that nothing of it came this way.
    """

    @staticmethod
    def forward(ctx: Any, seen: Tensor, cell: _Cell) -> Tensor:
        ctx.cell = cell
        return seen.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,), (mask, total) = grads, (ctx.cell.mask, ctx.cell.total)
        ctx.cell.total = None
        if total is None or total[0] != _pass():
            return grad, None
        whole = grad == 0 if mask is None else mask | (grad == 0)
        return torch.where(whole, grad, grad - total[1]), None


class _Note(torch.autograd.Function):
    """Identity; backward, the total gradient is noted for the gate before the hook."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, cell: _Cell) -> Tensor:
        ctx.cell = cell
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.cell.total = (_pass(), grads[0])
        return grads[0], None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, made: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.dtype = value.dtype
        return torch.where(mask, value.to(made.dtype), made)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grads[0].masked_fill(mask, 0.0), grads[0].to(ctx.dtype), None


class _WithValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, made: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grads[0], None
