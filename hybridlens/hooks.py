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
from hybridlens.slots import KeySlots

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
    sizes: tuple[int | None, ...]
    """Size of each axis; None for batch, positions and keys."""


class HookPoint(TransformerLensHookPoint):
    """An identity module that names one activation.

    Args:
        axes: the activation's axis letters, separated by spaces, such as ``"b p h e"``.
        lazy: the activation is computed only when somebody asks for it.
        read_only: the activation is derived; giving it another value raises `HookFunctionError`.
        gradient_read_only: the gradient there can be read, but not replaced.
        blocks: size of the axis ``h`` where it stands for channel blocks, not attention heads.
    """

    def __init__(
        self,
        axes: str,
        *,
        lazy: bool = False,
        read_only: bool = False,
        gradient_read_only: bool = False,
        blocks: int | None = None,
    ) -> None:
        super().__init__()
        self.axes = tuple(axes.split())
        self.lazy = lazy
        self.read_only = read_only
        self.gradient_read_only = gradient_read_only
        self.blocks = blocks
        self.envoy: Any = None  # nnsight's handle, set by the first trace
        self.slots: KeySlots | None = None
        """At scores and pattern, while a hook function runs: where its queries and keys stand in the text."""

    def __call__(self, x: Tensor) -> Tensor:
        """`x`, or what the hooks made of it; checked to be of the same shape, dtype and device."""
        hooks = self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks
        if self.envoy is None and not hooks:  # a decode step comes by here a hundred times
            return x
        out = super().__call__(x)
        if out is x:
            return out
        problem = _mismatch(x, out, "the hook function")
        if problem is None and self.read_only and not unchanged(x, out):
            problem = "this point is read-only (it is derived from other activations), so it cannot be edited"
        if problem is not None:
            raise HookFunctionError(f"hook on '{self.name}': {problem}")
        return out

    def forward(self, x: Tensor) -> Tensor:
        """`x` itself, or, for hooks that may write in place, a copy: what came before stays as it was."""
        return x.clone() if self._may_be_written() else x

    def _may_be_written(self) -> bool:
        if len(self._forward_hooks) > len(self.fwd_hooks):  # added by other means than ours
            return True
        return self._awaited() or any(not getattr(h.user_hook, "reads_only", False) for h in self.fwd_hooks)

    def asked(self) -> bool:
        """Whether anybody wants this activation now: a hook, or a waiting nnsight trace.

        What is not wanted need not be computed; call `skip` then.
        """
        return bool(self._forward_hooks or self._forward_pre_hooks or self._backward_hooks) or self._awaited()

    def _awaited(self) -> bool:
        """Whether a trace is running and waits here."""
        if self.envoy is None or not self.envoy.interleaver.interleaving:
            return False
        location = f"{self.envoy.path}.output"
        return location in self.envoy.interleaver.parked or location in self.envoy.interleaver.observers

    def takes_blocks(self) -> bool:
        """Whether everybody who wants this activation will take it a block of queries at a time."""
        if self._forward_pre_hooks or self._backward_hooks or len(self._forward_hooks) > len(self.fwd_hooks):
            return False
        return not self._awaited() and all(getattr(h.user_hook, "by_query", False) for h in self.fwd_hooks)

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
        if self.envoy is None or not self.envoy.interleaver.interleaving:
            raise HookFunctionError(
                f"'{self.name}.output' has a value only inside `with lens.trace(tokens):`; "
                "outside one, use run_with_cache or run_with_hooks"
            )
        return self.envoy


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


def _mismatch(before: Tensor, after: object, who: str) -> str | None:
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
    after a real change, so that a read, or writing the same value back, changes no bit.
    """
    if after is before or before.device.type == "meta" or torch.equal(after, before):
        return True
    if not bool(before.sum().isnan()):  # no NaN is there, which is all that `equal` misses
        return False
    return bool(((after == before) | (after.isnan() & before.isnan())).all())


@dataclass(frozen=True)
class Edit:
    """One edit of a run: a hook point, a function, and when and where it acts.

    Args:
        hook: a hook-point name, or a predicate on names.
        fn: ``fn(tensor, hook)`` returning a replacement of the same shape, or None. With `rows`,
            it is given only those rows.
        phase: "prefill", "decode" or "both".
        rows: the batch rows it touches; None for all.
        ahead: act in a pass ahead of each forward pass, over the same tokens and state, whose outcome is dropped.
            So an edit of an early layer can rest on what later layers would have computed. It doubles the cost.

    Raises:
        UnknownNameError: for a phase that does not exist.
    """

    hook: str | Callable[[str], bool]
    fn: HookFunction
    phase: Phase = "both"
    rows: Sequence[int] | Tensor | None = None
    ahead: bool = False

    def __post_init__(self) -> None:
        check_phase(self.phase)
        if not callable(self.fn):
            raise HookFunctionError(f"an edit of {self.hook!r} was given {self.fn!r}, expected a function")
        if self.rows is None:
            return
        rows: Any = self.rows.tolist() if isinstance(self.rows, Tensor) else self.rows
        if not isinstance(rows, Sequence) or not all(type(row) is int for row in rows):
            raise HookFunctionError(f"an edit of {self.hook!r} was given rows {rows!r}, expected a list of row numbers")
        object.__setattr__(self, "rows", tuple(dict.fromkeys(rows)))

    def acts_in(self, phase: Phase) -> bool:
        """Whether this edit acts in a forward pass of that phase."""
        return self.phase in ("both", phase)

    def function(self) -> HookFunction:
        """The hook function, restricted to `rows` where they are given."""
        rows, fn = self.rows, self.fn
        if rows is None:
            return fn

        def on_rows(tensor: Tensor, hook: HookPoint) -> Tensor:
            size = tensor.shape[0]
            if not all(-size <= row < size for row in rows):
                raise HookFunctionError(
                    f"edit of '{hook.name}': rows {list(rows)} given, but the batch has rows 0..{size - 1}"
                )
            index = torch.tensor([row % size for row in rows], dtype=torch.long, device=tensor.device)
            part, slots = tensor[index], hook.slots
            hook.slots = None if slots is None else slots.select(index)
            try:
                out = fn(part, hook=hook)
            finally:
                hook.slots = slots
            out = part if out is None else out
            problem = _mismatch(part, out, "the hook function")
            if problem is not None:
                raise HookFunctionError(f"hook on '{hook.name}': {problem}")
            return tensor.index_copy(0, index, out)

        return by_query(on_rows) if getattr(fn, "by_query", False) else on_rows


def check_phase(phase: str) -> None:
    """Refuse a phase that does not exist.

    Raises:
        UnknownNameError: naming the ones that do.
    """
    if phase not in PHASES:
        raise UnknownNameError(f"phase {phase!r} does not exist; expected one of {', '.join(PHASES)}")


def resolve(names: NameFilter, points: Mapping[str, HookPoint]) -> list[str]:
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
    ends = [p for p in points if p.split(".")[-1] in (name, f"hook_{name}")]
    near = f"; close names: {', '.join(ends[:3])}" if ends else closest(name, points)
    raise UnknownNameError(f"hook point '{name}' does not exist{near}; see lens.hook_points")


@contextmanager
def attached(
    points: Mapping[str, HookPoint],
    forward: Iterable[tuple[NameFilter, HookFunction]],
    backward: Iterable[tuple[NameFilter, HookFunction]] = (),
) -> Generator[None]:
    """Attach hook functions for the length of a ``with`` block; they are gone afterwards, whatever happens.

    Names are resolved before anything is attached, so a wrong one leaves nothing behind. A backward hook acts
    in backward passes inside the block, of forward passes inside the block.

    Raises:
        UnknownNameError: for a name that the model lacks.
        HookFunctionError: for anything but pairs of names and a function.
    """
    inside = [True]
    wanted: list[tuple[HookPoint, HookFunction, Literal["fwd", "bwd"]]] = []
    for names, fn in map(_pair, forward):
        for name in resolve(names, points):
            wanted.append((points[name], _checked(fn), "fwd"))  # noqa: PERF401
    for names, fn in map(_pair, backward):
        for name in resolve(names, points):
            wanted.append((points[name], _checked_gradient(fn, inside), "bwd"))  # noqa: PERF401
    handles: list[tuple[HookPoint, LensHandle, str]] = []
    try:
        for point, fn, direction in wanted:
            handles.append((point, point.add_hook(fn, dir=direction), direction))
        yield
    finally:
        inside[0] = False
        for point, handle, direction in handles:
            handle.hook.remove()
            kept = point.fwd_hooks if direction == "fwd" else point.bwd_hooks
            if handle in kept:
                kept.remove(handle)


def _pair(given: object) -> tuple[NameFilter, HookFunction]:
    if not isinstance(given, tuple) or len(given) != 2 or not callable(given[1]):
        raise HookFunctionError(f"a hook is a pair (name, function), {given!r} was given; hooks are a list of pairs")
    return given


def _checked(fn: HookFunction) -> HookFunction:
    """`fn`, with what it returns checked at once, whatever hooks come after it."""
    if getattr(fn, "reads_only", False):
        return fn

    def checked(tensor: Tensor, hook: HookPoint) -> Tensor | None:
        out = fn(tensor, hook=hook)
        problem = None if out is None else _mismatch(tensor, out, "the hook function")
        if problem is not None:
            raise HookFunctionError(f"hook on '{hook.name}': {problem}")
        return out

    return by_query(checked) if getattr(fn, "by_query", False) else checked


def _checked_gradient(fn: HookFunction, inside: Sequence[bool]) -> HookFunction:
    """`fn` on gradients, checked, and silent once its ``with`` block has ended."""

    def checked(grad: Tensor, hook: HookPoint) -> Tensor | None:
        if not inside[0]:
            return None
        out = fn(grad, hook=hook)
        if out is None:
            return None
        problem = _mismatch(grad, out, "the backward hook function")
        if problem is None and hook.gradient_read_only and not unchanged(grad, out):
            problem = "the gradient of a state can be read but not replaced; replace that of hook_write or hook_y"
        if problem is not None:
            raise HookFunctionError(f"backward hook on '{hook.name}': {problem}")
        return out

    return checked
