"""Hook points: the names under which every activation is read, edited and differentiated.

A `HookPoint` is TransformerLens' identity module with three additions: it knows its axes, it says
whether anybody wants its activation (so that costly ones are computed only then), and it is also
nnsight's handle (``point.output`` inside a trace). An `Edit` is a small value, a name with a
function, a phase and rows; it is attached for the length of a run and never stored on a model.

How it fails: a hook function that returns another shape, dtype or device, or that writes to a
read-only point, raises `HookFunctionError` naming the point; the run's hooks are removed all the
same. A name that does not exist raises `UnknownNameError` with the layers that have such a point.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint as TransformerLensHookPoint
from transformer_lens.hook_points import LensHandle

from hybridlens.errors import HookFunctionError, UnknownNameError, closest

HookFunction: TypeAlias = Callable[..., Tensor | None]
"""``fn(tensor, hook=point)``: returns a replacement, or None to leave the activation as it is."""

NameFilter: TypeAlias = str | Sequence[str] | Callable[[str], bool] | None
Phase: TypeAlias = Literal["prefill", "decode", "both"]
PHASES = ("prefill", "decode", "both")


class HookSpec(NamedTuple):
    """What is known of a hook point before anything runs."""

    name: str
    axes: tuple[str, ...]
    """Axis letters of `hybridlens.shapes.AXES`, outermost first."""
    layer: int | None
    """The layer it belongs to; None for the points of the whole model."""
    lazy: bool
    """Computed only when hooked."""
    read_only: bool
    """An edit raises."""


class HookPoint(TransformerLensHookPoint):
    """An identity module that names one activation.

    Args:
        axes: the activation's axis letters, separated by spaces, such as ``"b p h e"``.
        lazy: the activation is computed only when somebody asks for it.
        read_only: the activation is derived; returning another value raises `HookFunctionError`.
    """

    def __init__(self, axes: str, *, lazy: bool = False, read_only: bool = False) -> None:
        super().__init__()
        self.axes = tuple(axes.split())
        self.lazy = lazy
        self.read_only = read_only
        self.envoy: Any = None  # nnsight's handle, set by the first trace

    def __call__(self, x: Tensor) -> Tensor:
        """`x`, or what the hooks made of it; checked to be of the same shape, dtype and device."""
        out = super().__call__(x)
        if out is x:
            return out
        problem = _mismatch(x, out)
        if problem is None and self.read_only and not torch.equal(out, x):
            problem = "this point is read-only (it is derived from other activations), so it cannot be edited"
        if problem is not None:
            raise HookFunctionError(f"hook on '{self.name}': {problem}")
        return out

    def asked(self) -> bool:
        """Whether anybody wants this activation now: a hook, or a waiting nnsight trace.

        What is not wanted need not be computed; call `skip` then.
        """
        if self._forward_hooks or self._forward_pre_hooks or self._backward_hooks:
            return True
        if self.envoy is None or not self.envoy.interleaver.interleaving:
            return False
        location = f"{self.envoy.path}.output"
        return location in self.envoy.interleaver.parked or location in self.envoy.interleaver.observers

    def skip(self) -> None:
        """Count a visit in which the activation was not computed.

        nnsight finds a decode step by the number of visits to a point.
        """
        if self.envoy is not None and self.envoy.interleaver.interleaving:
            self.envoy.interleaver.handle(f"{self.envoy.path}.output", None)

    @property
    def output(self) -> Any:
        """The live activation, inside ``with lens.trace(...)``: read it, or assign to it."""
        return self._traced().output

    @output.setter
    def output(self, value: Any) -> None:
        self._traced().output = value

    def _traced(self) -> Any:
        if self.envoy is None:
            raise HookFunctionError(
                f"'{self.name}.output' has a value only inside `with lens.trace(tokens):`; "
                "outside one, use run_with_cache or run_with_hooks"
            )
        return self.envoy


def _mismatch(before: Tensor, after: object) -> str | None:
    """Why `after` cannot stand in for `before`, or None when it can."""
    if not isinstance(after, Tensor):
        return f"the hook function returned {type(after).__name__}, expected a tensor or None"
    for what in ("shape", "dtype", "device"):
        was, now = getattr(before, what), getattr(after, what)
        if was != now:
            if what == "shape":
                was, now = list(was), list(now)
            return f"the hook function returned {what} {now}, expected {was}; return a tensor like the one given"
    return None


class Watch:
    """Whether an activation came back from its hook points as it went in.

    Most hooks only read. Where a costlier formula is needed to make an edit count, the model runs
    it only after a real change, so that a read, or writing the same value back, changes no bit.
    In-place writes are noticed by the tensor's version counter.
    """

    def __init__(self, before: Tensor) -> None:
        self.before = before
        self.version = None if before.is_inference() else before._version  # pyright: ignore[reportPrivateUsage]
        self.copy = before.clone() if before.is_inference() else None

    def unchanged(self, after: Tensor) -> bool:
        """True when `after` holds the values that were put in."""
        if self.copy is not None:
            return torch.equal(after, self.copy)
        if self.before._version != self.version:  # pyright: ignore[reportPrivateUsage]
            return False
        return after is self.before or torch.equal(after, self.before)


@dataclass(frozen=True)
class Edit:
    """One edit of a run: a hook point, a function, and when and where it acts.

    Args:
        hook: a hook-point name, or a predicate on names.
        fn: ``fn(tensor, hook)`` returning a replacement of the same shape, or None. With `rows`,
            it is given only those rows.
        phase: "prefill", "decode" or "both".
        rows: the batch rows it touches; None for all.

    Raises:
        UnknownNameError: for a phase that does not exist.
    """

    hook: str | Callable[[str], bool]
    fn: HookFunction
    phase: Phase = "both"
    rows: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise UnknownNameError(f"phase {self.phase!r} does not exist; expected one of {', '.join(PHASES)}")

    def acts_in(self, phase: Phase) -> bool:
        """Whether this edit acts in a forward pass of that phase."""
        return self.phase in ("both", phase)

    def function(self) -> HookFunction:
        """The hook function, restricted to `rows` where they are given."""
        rows, fn = self.rows, self.fn
        if rows is None:
            return fn

        def on_rows(tensor: Tensor, hook: HookPoint) -> Tensor:
            index = torch.as_tensor(list(rows), device=tensor.device)
            if index.numel() and not -tensor.shape[0] <= int(index.min()) <= int(index.max()) < tensor.shape[0]:
                raise HookFunctionError(
                    f"edit of '{hook.name}': rows {list(rows)} given, but the batch has rows 0..{tensor.shape[0] - 1}"
                )
            part = tensor[index]
            out = fn(part, hook=hook)
            out = part if out is None else out
            problem = _mismatch(part, out)
            if problem is not None:
                raise HookFunctionError(f"hook on '{hook.name}': {problem}")
            return tensor.index_copy(0, index % tensor.shape[0], out)

        return on_rows


def resolve(names: NameFilter | str, points: Mapping[str, HookPoint]) -> list[str]:
    """The hook-point names that a name, list of names or predicate stands for, in forward order.

    ``None`` stands for every point but the hidden attention of recurrent layers
    (``ssm.hook_pattern``), whose cost grows with the square of the length times the channels, so
    that it has to be asked for by name.

    Raises:
        UnknownNameError: for a name that the model lacks.
    """
    if names is None:
        return [name for name, point in points.items() if not point.read_only]
    if isinstance(names, str):
        return [check_name(names, points)]
    if callable(names):
        return [name for name in points if names(name)]
    return [check_name(name, points) for name in names]


def check_name(name: str, points: Mapping[str, HookPoint]) -> str:
    """`name`, if the model has such a hook point.

    Raises:
        UnknownNameError: otherwise, saying which layers have such a point and which names are close.
    """
    if name in points:
        return name
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match:
        suffix = match.group(2)
        layers = [p.split(".")[1] for p in points if re.fullmatch(rf"blocks\.\d+\.{re.escape(suffix)}", p)]
        if layers:
            raise UnknownNameError(
                f"hook point '{name}' does not exist: layers with {suffix} are {', '.join(layers)}"
            )
    raise UnknownNameError(f"hook point '{name}' does not exist{closest(name, points)}; see lens.hook_points")


@contextmanager
def attached(
    points: Mapping[str, HookPoint],
    forward: Iterable[tuple[NameFilter, HookFunction]],
    backward: Iterable[tuple[NameFilter, HookFunction]] = (),
) -> Generator[None]:
    """Attach hook functions for the length of a ``with`` block; they are gone afterwards, whatever happens.

    Names are resolved before anything is attached, so a wrong one leaves nothing behind.
    """
    resolved = [
        (points[name], fn, direction)
        for direction, hooks in (("fwd", forward), ("bwd", backward))
        for names, fn in hooks
        for name in resolve(names, points)
    ]
    handles: list[tuple[HookPoint, LensHandle, str]] = []
    try:
        for point, fn, direction in resolved:
            handle = point.add_hook(fn, dir="fwd" if direction == "fwd" else "bwd")
            handles.append((point, handle, direction))
        yield
    finally:
        for point, handle, direction in handles:
            handle.hook.remove()
            kept = point.fwd_hooks if direction == "fwd" else point.bwd_hooks
            if handle in kept:
                kept.remove(handle)
