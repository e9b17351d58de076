"""The gradient of a trajectory, whatever the recurrence.

How it fails: gradients are first order only; asking for second ones raises. The backward pass holds a few tensors of
the trajectory's size.
"""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridlens.recurrences.terms import before, leaves, mapped


@runtime_checkable
class Operator(Protocol):
    """What is asked of a recurrence here; see `hybridlens.recurrences.base.Recurrence`."""

    def made(self, terms: Any, initial: Tensor) -> Tensor:
        """The trajectory, without gradients."""
        ...

    def reached(self, edits: Tensor) -> Tensor:
        """Where the trajectory depends on edits."""
        ...

    def continued(
        self, plain: Tensor, reached: Tensor, terms: Any, initial: Tensor, edit: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """The trajectory made anew from the first edit on."""
        ...

    def adjoint(self, terms: Any, grad: Tensor, mask: Tensor | None = None) -> Tensor:
        """The total gradient at every state."""
        ...

    def at(self, terms: Any, tokens: slice | int) -> Any:
        """The terms of some tokens."""
        ...

    def step(self, previous: Tensor, terms: Any) -> Tensor:
        """One token."""
        ...

    def carry_back(self, grad: Tensor, terms: Any) -> Tensor:
        """The gradient before a token."""
        ...


def trajectory(
    op: Operator,
    terms: tuple[Any, ...],
    initial: Tensor,
    states: Tensor | None = None,
    hooked: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The state after every token [b p *state], differentiable.

    Args:
        op: the recurrence.
        terms: of all tokens.
        initial: the state before the first.
        states: the trajectory before an edit of states, if there is one.
        hooked: what a hook made of it.
        mask: True at the entries that are edits; None for nowhere.
    """
    return cast(Tensor, _Trajectory.apply(op, terms, states, hooked, mask, initial, *leaves(terms)))


class _Trajectory(torch.autograd.Function):
    """A trajectory, or one with edited states put in.

    Backward: the operator's adjoint gives how the loss changes with every state, and one step's gradients, at all
    tokens at once, how it then changes with the terms.
    """

    @staticmethod
    def forward(
        ctx: Any,
        op: Operator,
        terms: tuple[Any, ...],
        states: Tensor | None,
        hooked: Tensor | None,
        mask: Tensor | None,
        initial: Tensor,
        *parts: Tensor,
    ) -> Tensor:
        plain = mapped(terms, Tensor.detach)
        if hooked is None:
            used = op.made(plain, initial)
        elif mask is None or states is None:
            used = hooked.clone()
        else:
            used = op.continued(states, op.reached(mask), plain, initial, (hooked, mask))
        ctx.op, ctx.form = op, mapped(terms, lambda t: t.new_empty(0))
        ctx.dtype = None if hooked is None else hooked.dtype
        ctx.save_for_backward(used, mask, initial, *parts)
        return used

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        used, mask, initial, *parts = ctx.saved_tensors
        op: Operator = ctx.op
        needed = ctx.needs_input_grad[6:]
        given = iter(parts)
        total = op.adjoint(mapped(ctx.form, lambda _: next(given)), grads[0], mask)
        own = total if mask is None else total.masked_fill(mask, 0.0)
        with torch.enable_grad():
            fresh = [t.detach().requires_grad_(need) for t, need in zip(parts, needed, strict=True)]
            each = iter(fresh)
            made = op.step(before(used, initial), mapped(ctx.form, lambda _: next(each)))
        wanted = [t for t in fresh if t.requires_grad]
        got = iter(torch.autograd.grad(made, wanted, own, allow_unused=True) if wanted else ())
        to_terms = [next(got) if t.requires_grad else None for t in fresh]
        to_initial = None
        if ctx.needs_input_grad[5]:
            given = iter(parts)
            first = op.at(mapped(ctx.form, lambda _: next(given)), 0)
            to_initial = op.carry_back(own[:, 0], first).to(initial.dtype)
        to_hooked = None if ctx.dtype is None else total.to(ctx.dtype)
        return None, None, None, to_hooked, None, to_initial, *to_terms
