"""Hook functions: what they are, how they are marked, and what they may give back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from hybridlens.errors import HybridLensError
from hybridlens.shapes import AXES

HookFunction: TypeAlias = Callable[..., Tensor | None]
"""``fn(tensor, hook=point)``: returns a replacement, or None to leave the activation as it is."""


def reads_only(fn: HookFunction) -> HookFunction:
    """Mark a hook function that never writes to what it is given, so that no copy is made for it."""
    fn.reads_only = True  # pyright: ignore[reportFunctionMemberAccess]
    return fn


def by_query(fn: HookFunction) -> HookFunction:
    """Mark a hook function that treats every query by itself, so that long prompts need not be held whole.

    At scores and pattern it may then be given a block of consecutive queries at a time, with the keys up to the
    last of them; ``hook.slots`` says which. Blocks come in order, and ``hook.slots.first`` is 0 in the first.
    """
    fn.by_query = True  # pyright: ignore[reportFunctionMemberAccess]
    return fn


def capturable(fn: HookFunction) -> HookFunction:
    """Mark a hook function made of tensor operations alone, of fixed shapes, which may act in captured decode steps.

    It is called in the first steps and not after: what it did to its tensor is then done again. So it may hang on
    nothing but that tensor, and tensors that stay; whatever else it counts or keeps, it does so once or twice only.
    """
    fn.capturable = True  # pyright: ignore[reportFunctionMemberAccess]
    return fn


class _Capturing(threading.local):
    now = False


_HERE = _Capturing()


@contextmanager
def capturing() -> Generator[None]:
    """While a step of fixed shapes runs in this thread: no value may be read, so that what hooks return is new."""
    before, _HERE.now = _HERE.now, True
    try:
        yield
    finally:
        _HERE.now = before


def in_captured_step() -> bool:
    """Whether a step of fixed shapes runs in this thread, in which nothing may be asked of a device."""
    return _HERE.now


def of_trace(fn: Callable[..., object]) -> Callable[..., object]:
    """Mark a function that stands on a module for the length of a trace, and does nothing unless its block asks."""
    fn.of_trace = True  # pyright: ignore[reportFunctionMemberAccess]
    return fn


def noted(error: Exception, point: str | None, axes: Sequence[str], given: Tensor) -> None:
    """Note on what a hook function raised where that was, and which axes it was given.

    Args:
        error: of the user's own; the library's say it all already.
        point: the hook point's name.
        axes: its axis letters.
        given: the activation, or its gradient.
    """
    if not isinstance(error, HybridLensError):
        sizes = ", ".join(f"{AXES[axis]} {size}" for axis, size in zip(axes, given.shape, strict=False))
        error.add_note(f"in the hook function on {point!r}, called as fn(tensor, hook=point) with a tensor of {sizes}")


def mismatch(before: Tensor, after: object, who: str) -> str | None:
    """Why `after` cannot stand in for `before`, or None when it can."""
    if not isinstance(after, Tensor):
        return f"{who} returned {type(after).__name__}, expected a tensor or None"
    for what in ("shape", "dtype", "device"):
        was, now = getattr(before, what), getattr(after, what)
        if was != now:
            if what == "shape":
                was, now = list(was), list(now)
            return f"{who} returned {what} {now}, expected {was}; return a tensor like the one given"
    return None


def unchanged(before: Tensor, after: Tensor) -> bool:
    """Whether an activation came back from its hook point as it went in.

    Most hooks only read. Where a costlier formula is needed to make an edit count, the model runs it only
    after a real change, so that a read, or writing the same value back, changes no bit. Two tensors on the meta
    device, which has no values, cannot be compared, and count as different; so do two in a captured step.
    """
    if after is before:
        return True
    if before.is_meta or _HERE.now:
        return False
    if torch.equal(after, before):
        return True
    if not bool(before.sum().isnan()):  # no NaN is there, which is all that `equal` misses
        return False
    return not bool(differing(before, after).any())


def differing(before: Tensor, after: Tensor) -> Tensor:
    """True where two tensors differ; NaN is equal to NaN, and on the meta device nothing is equal."""
    if before.is_meta:
        return torch.ones_like(before, dtype=torch.bool)
    before, after = before.detach(), after.detach()
    return (after != before) & ~(after.isnan() & before.isnan())
