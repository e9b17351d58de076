"""The place where an activation can be read, edited and differentiated.

A `HookPoint` is TransformerLens' identity module with four additions: it knows its axes, it says whether anybody
wants its activation (so that costly ones are computed only then), it tells which entries were edited, and it is
also nnsight's handle (``point.output`` inside a trace).

Hooks come by in this order: an nnsight trace (and torch's own hooks on the module), then the functions that stand at
the point, in the order in which they came (`hybridlens.hook_handles`): those that a user put there (``add_hook``) and
those attached for a run (`hybridlens.hooks.attached`) alike.

How it fails: a hook function that returns another shape, dtype or device, or that writes to a read-only point,
raises `HookFunctionError` naming the point. What it raises itself comes out as it is, with a note that names the point
and the axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor

from hybridlens.display import Displayed
from hybridlens.display.hooks import HookSpecShown
from hybridlens.elsewhere import missing
from hybridlens.errors import HookFunctionError
from hybridlens.habits import POINT, SPEC
from hybridlens.hook_functions import HookFunction, differing, mismatch, noted, unchanged
from hybridlens.hook_handles import HandleHolder, HookHandle
from hybridlens.shapes import Positions
from hybridlens.slots import KeySlots
from hybridlens.visits import HERE, Visit, version


class _Spec(NamedTuple):
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


class HookSpec(HookSpecShown, _Spec):
    """What is known of a hook point before anything runs."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        """Say where the point itself is, which has what was asked for."""
        raise missing(self, "what lens.hook_points says of a point", name, SPEC)


class _Edited(NamedTuple):
    value: Tensor
    mask: Tensor | None
    """True where an entry was edited: its value differs, or a hook froze it; None where nothing was edited."""


class EditedActivation(Displayed, _Edited):
    """What hooks made of an activation."""

    __slots__ = ()


class HookPoint(HandleHolder):
    """An identity module that names one activation.

    Args:
        axes: the activation's axis letters, separated by spaces, such as ``"b p h e"``.
        lazy: the activation is computed only when somebody asks for it.
        read_only: the activation is derived; giving it another value raises `HookFunctionError`.
        gradient_read_only: the gradient there can be read, but not replaced.
        sizes: of axes, by letter: ``HookPoint("b p h e", h=8, e=16)``.

    Raises:
        ValueError: for the size of an axis that it has not.
    """

    def __init__(
        self,
        axes: str,
        *,
        lazy: bool = False,
        read_only: bool = False,
        gradient_read_only: bool = False,
        **sizes: int,
    ) -> None:
        super().__init__()
        self.axes = tuple(axes.split())
        self.lazy = lazy
        self.read_only = read_only
        self.gradient_read_only = gradient_read_only
        self.sizes = sizes
        self.envoy: Any = None  # nnsight's handle, set by the first trace
        unknown = sorted(set(sizes) - set(self.axes))
        if unknown:
            raise ValueError(f"sizes of axes {', '.join(unknown)} given for a hook point with axes {axes}")

    def __getstate__(self) -> dict[str, Any]:
        """What a copy keeps: not nnsight's handle, which belongs to the trace of one model."""
        return {**super().__getstate__(), "envoy": None}

    # Activations come by.

    def __call__(self, x: Tensor) -> Tensor:
        """`x`, or what the hooks made of it; checked to be of the same shape, dtype and device."""
        if (  # written out: a decode step comes by here hundreds of times
            self.handles
            or self._forward_hooks
            or self._forward_pre_hooks
            or self._backward_hooks
            or self._backward_pre_hooks
            or (self.envoy is not None and self.envoy.interleaver.busy)
        ):
            return self._visited(x)[0]
        return x

    def edited(self, x: Tensor) -> EditedActivation:
        """What the hooks made of `x`, and which entries they edited."""
        if not (self.handles or self._outside()):
            return EditedActivation(x, None)
        value, frozen = self._visited(x)
        mask = None if unchanged(x, value) else differing(x, value)
        if frozen is None:
            return EditedActivation(value, mask)
        return EditedActivation(value, frozen if mask is None else mask | frozen)

    def lazily(self, make: Callable[[], Tensor]) -> Tensor | None:
        """What the hooks made of ``make()``, which is run only if anybody asks for it; None if nobody does."""
        return self(make()) if wanted(self) else None

    def edited_lazily(self, make: Callable[[], Tensor]) -> EditedActivation | None:
        """`edited` of ``make()``, which is run only if anybody asks for it; None if nobody does."""
        return self.edited(make()) if wanted(self) else None

    def asked(self) -> bool:
        """Whether anybody in this thread wants this activation now: a hook, or a waiting nnsight trace."""
        return (
            (bool(self.handles) and bool(self.acting()))
            or bool(self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks)
            or (self.envoy is not None and self._awaited())
        )

    def traced(self) -> bool:
        """Whether a trace of this model runs in this thread, wherever it waits."""
        return self.envoy is not None and bool(self.envoy.interleaver.busy)

    def takes_blocks(self) -> bool:
        """Whether everybody who wants this activation will take it a block of queries at a time."""
        if self._on_module() or self._awaited():
            return False
        return all(handle.dir == "fwd" and getattr(handle.user_hook, "by_query", False) for handle in self.acting())

    def __getattr__(self, name: str) -> Any:
        """Say what to type instead of a name of nnsight's that a point has not."""
        if name in POINT:
            raise missing(self, "a hook point", name, POINT)
        return super().__getattr__(name)

    # For hook functions.

    @property
    def slots(self) -> KeySlots | None:
        """At scores and pattern, while a hook function runs: where its queries and keys stand in the text."""
        found = HERE.slots.get(self)
        return self.envoy.own_slots(found) if found is not None and self._in_block() else found

    @slots.setter
    def slots(self, slots: KeySlots | None) -> None:
        if slots is None:
            HERE.slots.pop(self, None)
        else:
            HERE.slots[self] = slots

    @property
    def positions(self) -> Positions | None:
        """While a hook function runs: the absolute position of each token of the forward pass, padding counted on.

        Of the rows that the function was given. Where it is given blocks of queries, `slots` says which these are.
        """
        run = HERE.visits[-1].reading if HERE.visits and HERE.visits[-1].point is self else None
        if run is None:
            return None
        return self.envoy.own_positions(run.positions) if self._in_block() else run.positions

    def freeze(self, mask: Tensor) -> None:
        """Say, in a hook function, that entries count as edited though they keep the value they have.

        By value alone that cannot be told: at ``ssm.hook_state`` a frozen entry stays what it is, whatever becomes
        of the states before it. Several masks add up, of one function or of several; an entry that a later
        function changes is simply changed. Inside a trace it is called at the point: ``point.freeze(mask)``.

        Args:
            mask: True where an entry is frozen; broadcasts to what the function was given (with ``Edit(rows=)``,
                to those rows).

        Raises:
            HookFunctionError: for another dtype or shape, at a read-only point, or outside a hook function.
        """
        if not (HERE.visits and HERE.visits[-1].point is self) and self._in_block():
            _ = self.output  # the block waits until the model is here
        if not (HERE.visits and HERE.visits[-1].point is self):
            raise HookFunctionError(
                f"'{self.name}'.freeze was called while no hook function of that point runs; "
                "call hook.freeze(mask) inside the function"
            )
        if self._in_block():
            mask = self.envoy.of_all_rows(mask, HERE.visits[-1].given)
        HERE.visits[-1].freeze(mask)

    @property
    def output(self) -> Any:
        """The live activation, inside ``with lens.trace(...)``: read it, write to it in place, or assign to it.

        A tensor that was read or saved before is not changed by what is written to this one in place.
        """
        return self._traced("output").output

    @output.setter
    def output(self, value: Any) -> None:
        self._traced("output").output = value

    @property
    def input(self) -> Any:
        """The activation as it comes, before anything that is written to `output`; else as `output`."""
        return self._traced("input").input

    @input.setter
    def input(self, value: Any) -> None:
        self._traced("input").input = value

    @property
    def inputs(self) -> Any:
        """The same as nnsight has it of any module: ``((activation,), {})``."""
        return self._traced("inputs").inputs

    @inputs.setter
    def inputs(self, value: Any) -> None:
        self._traced("inputs").inputs = value

    # How a visit goes.

    def _visited(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the hooks made of `x`, and what they froze."""
        visit = Visit(self, x)
        with visit.open():
            value = self._from_outside(x) if self._outside() else x
            for handle in self.acting("fwd"):
                value = self._applied(handle.user_hook, value)
        if value is x:
            return self._differentiable(x, visit), visit.frozen
        problem = mismatch(x, value, "the hook function")
        if problem is None and self.read_only and not unchanged(x, value):
            problem = "this point is read-only (it is derived from other activations), so it cannot be edited"
        if problem is not None:
            raise HookFunctionError(f"hook on '{self.name}': {problem}")
        return self._differentiable(value, visit), visit.frozen

    def _from_outside(self, x: Tensor) -> Tensor:
        """What a trace and torch's own hooks made of `x`."""
        before = version(x)
        value = super().__call__(x)
        if value is x and x.is_meta and version(x) != before:  # written in place, which has no value to show for it
            return x.view_as(x)
        return value

    def forward(self, x: Tensor) -> Tensor:
        """`x` itself, or, for those outside who may write in place, a copy: what came before stays as it was."""
        return x.clone() if (self._forward_hooks or self._awaited()) and not x.is_meta else x

    def _applied(self, fn: HookFunction, value: Tensor) -> Tensor:
        """`value` after one hook function, which may write in place to a copy of its own."""
        reads = getattr(fn, "reads_only", False)
        if reads and value.requires_grad and not value.is_meta:
            given = value.view_as(value)  # of its own: what else `value` is used for gives no gradient here
        else:
            given = value if reads else value.clone()
        before = version(given)
        try:
            out = fn(given, hook=self)
        except Exception as error:
            noted(error, self.name, self.axes, given)
            raise
        if out is None:  # on the meta device only the count of writings tells whether there was one
            return value if given.is_meta and version(given) == before else given
        problem = mismatch(value, out, "the hook function")
        if problem is not None:
            raise HookFunctionError(f"hook on '{self.name}': {problem}")
        return out

    def _differentiable(self, value: Tensor, visit: Visit) -> Tensor:
        """`value`, whose gradient goes by the backward hooks that are here now, whatever thread computes it."""
        handles: Sequence[HookHandle] = self.acting("bwd") if value.requires_grad else ()
        if not handles:
            return value

        def through(grad: Tensor) -> Tensor:
            backward = Visit(self, grad, backward=True)
            backward.reading = visit.reading
            with backward.open():
                for handle in handles:
                    grad = grad if handle.removed else self._applied_to_gradient(handle.user_hook, grad)
            return grad

        seen = value.view_as(value)  # of its own: what else `value` is used for gives no gradient here
        seen.register_hook(through)
        return seen

    def _applied_to_gradient(self, fn: HookFunction, grad: Tensor) -> Tensor:
        """A gradient after one backward hook, which may return a tensor, a tuple of one, or None."""
        try:
            out = _alone(fn(grad, hook=self))
        except Exception as error:
            noted(error, self.name, self.axes, grad)
            raise
        if out is None:
            return grad
        problem = mismatch(grad, out, "the backward hook function")
        if problem is None and self.gradient_read_only and not unchanged(grad, out):
            problem = "the gradient of a state can be read but not replaced; replace that of hook_write or hook_y"
        if problem is not None:
            raise HookFunctionError(f"backward hook on '{self.name}': {problem}")
        return out

    # Who is there.

    def _outside(self) -> bool:
        """Whether somebody is here besides hook handles: torch's own hooks on the module, or a trace."""
        return self._on_module() or (self.envoy is not None and bool(self.envoy.interleaver.busy))

    def _on_module(self) -> bool:
        return bool(self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks)

    def _awaited(self) -> bool:
        """Whether a trace is running in this thread and waits here."""
        if self.envoy is None or not self.envoy.interleaver.busy:
            return False
        return bool(self.envoy.interleaver.awaited(self.envoy.path))

    def _in_block(self) -> bool:
        """Whether the code that runs now is the block of a trace of this model."""
        return self.envoy is not None and bool(self.envoy.interleaver.in_block())

    def _skip(self) -> None:
        """Count a visit in which the activation was not computed: nnsight finds a decode step by their number."""
        if self.envoy is not None and self.envoy.interleaver.busy:
            for side in ("input", "output"):
                self.envoy.interleaver.handle(f"{self.envoy.path}.{side}", None)

    def _traced(self, side: str) -> Any:
        if not self._in_block():
            raise HookFunctionError(
                f"'{self.name}.{side}' has a value only inside `with lens.trace(tokens):`; "
                "outside one, use run_with_cache or run_with_hooks"
            )
        return self.envoy


def _alone(returned: Any) -> Any:
    """What a backward hook returned, without the tuple of one in which torch's own hooks have it."""
    return returned[0] if isinstance(returned, tuple) and len(cast(tuple[Any, ...], returned)) == 1 else returned


def wanted(*points: HookPoint) -> bool:
    """Whether anybody asks for any of these activations; if not, none of them is to be computed in this pass."""
    for point in points:
        if point.asked():
            return True
    for point in points:
        if point.envoy is not None:
            point._skip()  # pyright: ignore[reportPrivateUsage]
    return False
