"""Edits and hooks: functions that are at named points for the length of a run, and gone afterwards.

An `Edit` is a small value, a name with a function, a phase and rows; `attached` puts functions at the points that
names stand for, for runs of this thread only. The points themselves are in `hybridlens.hook_points`; everything about
hooks can be imported from here.

How it fails: a name that does not exist raises `UnknownNameError` with the layers that have such a point, and so
does a predicate, or a list, that stands for no point at all; hooks are removed even when one of them raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Never, TypeAlias, cast

import torch
from torch import Tensor

from hybridlens.aliases import table_name
from hybridlens.boundary import public
from hybridlens.boundary_words import shown
from hybridlens.display.hooks import EditShown, HookPointsShown
from hybridlens.elsewhere import other_point
from hybridlens.errors import HookFunctionError, KeywordError, NotCachedError, UnknownNameError, closest
from hybridlens.hook_functions import HookFunction, by_query, capturable, mismatch, reads_only, unchanged
from hybridlens.hook_handles import Direction, Directions, HookHandle
from hybridlens.hook_points import EditedActivation, HookPoint, HookSpec, wanted
from hybridlens.indices import Rows, rows_of
from hybridlens.visits import HERE

__all__ = [
    "PHASES",
    "Direction",
    "Directions",
    "Edit",
    "EditedActivation",
    "HookFunction",
    "HookHandle",
    "HookPoint",
    "HookPoints",
    "HookSpec",
    "NameFilter",
    "Phase",
    "attached",
    "by_query",
    "capturable",
    "check_name",
    "check_phase",
    "reads_only",
    "resolve",
    "unchanged",
    "wanted",
]

NameFilter: TypeAlias = str | Sequence[str] | Callable[[str], bool] | None
Phase: TypeAlias = Literal["prefill", "decode", "both"]
PHASES = ("prefill", "decode", "both")


@public
@dataclass(frozen=True)
class Edit(EditShown):
    """One edit of a run: a hook point, a function, and when and where it acts.

    Args:
        hook: a hook-point name, or a predicate on names.
        fn: ``fn(tensor, hook)`` returning a replacement of the same shape, or None. With `rows`,
            it is given only those rows.
        phase: "prefill", "decode" or "both".
        rows: the batch rows it touches, as a list, numpy array or tensor of integers; None for all.
        ahead: act in a pass ahead of each forward pass, over the same tokens and state, whose outcome is dropped.
            So an edit of an early layer can rest on what later layers would have computed. It doubles the cost.

    Raises:
        UnknownNameError: for a phase that does not exist.
        InputError: for a function that cannot be called, or rows that are no row numbers.
    """

    hook: str | Callable[[str], bool]
    fn: HookFunction
    phase: Phase = "both"
    rows: Rows | None = None
    ahead: bool = False

    def __post_init__(self) -> None:
        if self.rows is not None:
            object.__setattr__(self, "rows", rows_of(self.rows, f"an edit of {self.hook!r}"))

    def acts_in(self, phase: Phase) -> bool:
        """Whether this edit acts in a forward pass of that phase."""
        return self.phase in ("both", phase)

    def function(self) -> HookFunction:
        """The hook function, restricted to `rows` where they are given."""
        fn = self.fn
        if self.rows is None:
            return fn
        rows = cast(tuple[int, ...], self.rows)

        def on_rows(tensor: Tensor, hook: HookPoint) -> Tensor:
            size = tensor.shape[0]
            if not all(-size <= row < size for row in rows):
                raise HookFunctionError(
                    f"edit of '{hook.name}': rows {list(rows)} given, but the batch has rows 0..{size - 1}"
                )
            index = torch.tensor(
                list(dict.fromkeys(row % size for row in rows)), dtype=torch.long, device=tensor.device
            )
            part, slots = tensor[index], hook.slots
            hook.slots = None if slots is None else slots.select(index)
            try:
                with HERE.visits[-1].of_rows(index, part):
                    out = fn(part, hook=hook)
            finally:
                hook.slots = slots
            out = part if out is None else out
            problem = mismatch(part, out, "the hook function")
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
        UnknownNameError: for a name that the model lacks, a predicate that fails or holds for none, or an empty list.
    """
    if names is None:
        return [name for name, point in tuple(points.items()) if not point.read_only]  # splices come and go
    if isinstance(names, str):
        return [check_name(names, points)]
    if callable(names):
        called = getattr(names, "__qualname__", type(names).__name__)
        try:
            found = [name for name in tuple(points) if names(name)]
        except (TypeError, ValueError) as error:
            said = " ".join(str(error).split())
            raise UnknownNameError(
                f"the predicate {called} failed ({type(error).__name__}: {said}); expected a function of a hook "
                "point's name that says True or False"
            ) from error
        if not found:
            raise UnknownNameError(
                f"the predicate {called} holds for no hook point; names look like '{next(iter(points))}' or "
                f"'{list(points)[len(points) // 2]}', see lens.hook_points"
            )
        return found
    found = [check_name(name, points) for name in names]
    if not found:
        raise UnknownNameError("an empty list of hook-point names was given, expected at least one name")
    return found


def check_name(name: str, points: Mapping[str, object]) -> str:
    """`name`, or what it is an alias of, if the model has such a hook point.

    Raises:
        UnknownNameError: otherwise, saying which layers have such a point and which names are close.
    """
    if name in points:
        return name
    name = table_name(name, points)
    if name in points:
        return name
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match:
        suffix = match.group(2)
        layers = [p.split(".")[1] for p in points if re.fullmatch(rf"blocks\.\d+\.{re.escape(suffix)}", p)]
        if layers:
            raise UnknownNameError(
                f"hook point {shown(name)} does not exist: layers with {suffix} are {', '.join(layers)}"
            )
    instead = other_point(name, points)
    if instead is not None:
        raise UnknownNameError(f"hook point {shown(name)} does not exist; {instead}")
    ends = [p for p in points if p.split(".")[-1] in (name, f"hook_{name}")]
    near = f"; close names: {', '.join(ends[:3])}" if ends else closest(name, points)
    raise UnknownNameError(f"hook point {shown(name)} does not exist{near}; see lens.hook_points")


class HookPoints(HookPointsShown):
    """The hook points of a model by name, in the order in which they fire: a dict that shows itself as a table."""

    def __missing__(self, name: Any) -> HookSpec:
        """Of a point by one of its other names, as hooks are given them.

        Raises:
            NotCachedError: the model has no such point; the line says which names come near. A `KeyError` too.
        """
        if not isinstance(name, str):
            raise NotCachedError(f"{name!r} was given; hook points go by name, as '{next(iter(self))}'")
        try:
            return self[check_name(name, self)]
        except UnknownNameError as error:
            raise NotCachedError(str(error)) from None

    def __call__(self) -> Never:
        """TransformerLens has a method of the name.

        Raises:
            KeywordError: saying where the points themselves are; a `TypeError` too, as of what cannot be called.
        """
        raise KeywordError("lens.hook_points is a table and no method; type lens.hook_dict.values() for the points")


@contextmanager
def attached(
    points: Mapping[str, HookPoint],
    forward: Iterable[tuple[NameFilter, HookFunction]],
    backward: Iterable[tuple[NameFilter, HookFunction]] = (),
    *,
    stay: bool = False,
) -> Generator[None]:
    """Attach hook functions for the length of a ``with`` block; they are gone afterwards, whatever happens.

    They act in runs of this thread only: other threads may run the same model meanwhile, with hooks of their own.
    Names are resolved before anything is attached, so a wrong one leaves nothing behind. A backward hook acts
    in backward passes inside the block, of forward passes inside the block, whatever thread computes gradients.

    Args:
        points: those of the model.
        forward: (names, function) for activations.
        backward: likewise for gradients.
        stay: leave them there at the end, until somebody removes them.

    Raises:
        UnknownNameError: for a name that the model lacks.
    """
    forward_hooks = [(points[name], fn) for names, fn in forward for name in resolve(names, points)]
    backward_hooks = [(points[name], fn) for names, fn in backward for name in resolve(names, points)]
    levels, mine = HERE.levels, object()  # of this thread, whichever leaves the block
    levels.append(mine)
    handles = [point.add_hook(fn, "fwd", level=len(levels), own=True) for point, fn in forward_hooks]
    handles += [point.add_hook(fn, "bwd", level=len(levels), own=True) for point, fn in backward_hooks]
    try:
        yield
    finally:
        levels.remove(mine)
        if not stay:
            for handle in handles:
                handle.remove()
