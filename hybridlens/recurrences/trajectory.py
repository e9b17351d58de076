"""The gradient of a trajectory, whatever the recurrence.

How it fails: gradients are first order only; asking for second ones raises. The backward pass holds two tensors of the
trajectory's size besides the trajectory: what comes in, and the total gradient.
"""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridlens.recurrences.terms import leaves, mapped

ELEMENTS = 1 << 20
"""Of states whose steps are differentiated at once, a few megabytes."""


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

    Backward: the operator's adjoint gives how the loss changes with every state, and one step's gradients, at some
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
        terms = mapped(ctx.form, lambda _: next(given))
        total = op.adjoint(terms, grads[0], mask)
        own = total if mask is None else total.masked_fill(mask, 0.0)
        found = [list[Tensor | None]() for _ in parts]
        length, at_once = used.shape[1], max(1, ELEMENTS // max(1, used[:, 0].numel()))
        for start in range(0, length if any(needed) else 0, at_once):
            tokens = slice(start, min(start + at_once, length))
            entered = initial[:, None].to(used.dtype) if start == 0 else used[:, start - 1 : start]
            previous = torch.cat([entered, used[:, start : tokens.stop - 1]], dim=1)
            for grad_list, grad in zip(found, _of_step(op, terms, tokens, needed, previous, own), strict=True):
                grad_list.append(grad)
        to_terms = [_joined(each) for each in found]
        to_initial = None
        if ctx.needs_input_grad[5]:
            to_initial = op.carry_back(own[:, 0], op.at(terms, 0)).to(initial.dtype)
        to_hooked = None if ctx.dtype is None else total.to(ctx.dtype)
        return None, None, None, to_hooked, None, to_initial, *to_terms


def _of_step(
    op: Operator,
    terms: tuple[Any, ...],
    tokens: slice,
    needed: tuple[bool, ...],
    previous: Tensor,
    total: Tensor,
) -> list[Tensor | None]:
    """The gradients of some tokens' steps for their terms, leaf by leaf; None where none is needed or there is none.

    Args:
        op: the recurrence.
        terms: of all tokens.
        tokens: which ones.
        needed: of each leaf.
        previous: the state before each of them.
        total: the gradient at the state after every token.
    """
    some = op.at(terms, tokens)
    with torch.enable_grad():
        fresh = [t.detach().requires_grad_(need) for t, need in zip(leaves(some), needed, strict=True)]
        each = iter(fresh)
        made = op.step(previous, mapped(some, lambda _: next(each)))
    wanted = [t for t in fresh if t.requires_grad]
    got = iter(torch.autograd.grad(made, wanted, total[:, tokens], allow_unused=True))
    return [next(got) if t.requires_grad else None for t in fresh]


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """Gradients of consecutive tokens as one; None where there are none."""
    there = [part for part in parts if part is not None]
    return torch.cat(there, dim=1) if there else None
