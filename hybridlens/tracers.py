"""nnsight's tracers, with what is ours in them: the ``with`` blocks of traces, invokes, sessions and edits.

nnsight finds a block by the frame that enters it, reads its source, and runs it beside the model. A block whose source
cannot be read runs where it is written instead (`hybridlens.inline`).

How it fails: see `hybridlens.tracing`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, no_type_check

from nnsight.intervention.barrier import Barrier
from nnsight.intervention.editing import EditingTracer
from nnsight.intervention.interleaver import Event, Mediator
from nnsight.intervention.iterator import Iterations
from nnsight.intervention.tracer import InterleavingTracer, Invoker
from nnsight.tracing.tracer import Tracer, WithBlockNotFoundError, dec, inc, skip_context, skippable

from hybridlens.boundary_words import shown
from hybridlens.elsewhere import missing
from hybridlens.errors import InputError
from hybridlens.habits import TRACES, Habit
from hybridlens.hooks import Edit
from hybridlens.inline import InlineBlock, refuse
from hybridlens.interleaving import request
from hybridlens.invokes import Prompts, RowBatcher
from hybridlens.reloaded import reread
from hybridlens.shapes import Lengths
from hybridlens.tokens import TokensLike
from hybridlens.written import check

if TYPE_CHECKING:
    from hybridlens.traces import Root, Run

IDLE = 10_000
"""Steps in a row that a loop without an end may ask for nothing."""


class LensTracer(InterleavingTracer):
    """A trace of a lens.

    Args:
        run: what it is to run.
        prompts: what is given to `lens.trace`; None where the block's invokes bring them.
    """

    def __init__(self, run: Run, prompts: Prompts | None) -> None:
        super().__init__(run.root, run, *([] if prompts is None else [prompts]))
        self.run = run
        self._block: InlineBlock | None = None

    def through(self, root: Root) -> LensTracer:
        """The same trace, with the edits that another handle of the lens holds."""
        self.envoy = self.run.root = root
        return self

    @no_type_check  # nnsight counts the frames between here and its user's
    def __enter__(self) -> LensTracer:
        """As nnsight's; without a source the block runs where it stands."""
        if self.run.root.interleaver.interleaving:
            raise InputError(
                "a trace was opened inside a trace of the same lens, whose forward pass is under way; end the first "
                "`with lens.trace(...)` before the second, or use run_with_cache or run_with_hooks inside it"
            )
        reread(sys._getframe(1).f_code)
        try:
            self.capture()
        except WithBlockNotFoundError:
            self._enter_inline()
            return self
        check(self.node)
        if skippable(self.node):
            skip_context(self)
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, exc_traceback: Any) -> bool:
        """As nnsight's."""
        if self._block is None:
            return super().__exit__(exc_type, exc_value, exc_traceback)
        block, self._block = self._block, None
        return block.exit(exc_value)

    def _enter_inline(self) -> None:
        if not self.args:
            raise refuse("a trace of several invokes")
        envoy, fn, args = self.run.root, self.run, self.args
        batcher = RowBatcher(envoy)

        def run(block: InlineBlock) -> None:
            block.batch_group = batcher.add(*args)
            envoy.interleaver.mediators.append(block)
            envoy.interleave(fn, batcher=batcher)

        self._block = InlineBlock(run)
        try:
            self._block.enter()
        except BaseException:
            self._block = None
            raise

    def invoke(
        self,
        tokens: TokensLike | None = None,
        *,
        lengths: Sequence[int] | Lengths | None = None,
        edits: Sequence[Edit] = (),
    ) -> Any:
        """One prompt, or several, of a trace that was opened without any; its block sees its own rows alone.

        Args:
            tokens: as `lens.trace` takes them; None to see the rows of all other invokes.
            lengths: real tokens of each row of a tensor padded on the right.
            edits: of its rows alone, whose numbers are counted from its first.
        """
        if tokens is None:
            return Invoker(self)
        self.run.plan.admit(edits)
        return Invoker(self, Prompts(self.run.lens.batch(tokens, lengths), edits))

    @property
    def iter(self) -> Steps:
        """Steps of a generation: ``for step in tracer.iter[:3]:``; see `Steps`."""
        return Steps()

    @property
    def result(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What the run gives: logits and state of a forward pass, or a `Generation`; an invoke's rows of it."""
        return request(Event.VALUE, "result")

    def barrier(self, n: int) -> Barrier:
        """As nnsight's; what was written in place before it is the model's by then."""
        return FlushingBarrier(n)


class Steps(Iterations):
    """Which steps of a run a loop goes over: ``tracer.iter[2]``, ``[:3]``, ``[0:6:2]``, ``[[0, 4]]``, or all, ``[:]``.

    Raises:
        InputError: for steps counted from the end, which is not known yet, or a loop without an end in which nothing
            waits for the run.
    """

    by = 1
    """Of a slice: from each step to the next."""

    def __getitem__(self, key: slice | int | list[int]) -> Steps:
        """The steps that an index, a slice or a list says."""
        if not isinstance(key, slice):
            return Steps(steps=[_step(i) for i in (key if isinstance(key, (list, tuple)) else [key])])
        found = Steps(_step(key.start or 0), None if key.stop is None else _step(key.stop))
        found.by = 1 if key.step is None else _step(key.step)
        if found.by == 0:
            raise InputError("tracer.iter was given a slice that goes on by 0, expected by 1 or more")
        return found

    def _indices(self) -> Iterator[int]:
        if self.steps is not None:
            yield from self.steps
            return
        if self.stop is not None:
            yield from range(self.start, self.stop, self.by)
            return
        mediator: Any = Mediator.current("tracer.iter")
        idle = 0
        for step in itertools.count(self.start, self.by):
            before = mediator.__dict__.get("asked", 0)
            yield step
            idle = idle + 1 if mediator.__dict__.get("asked", 0) == before else 0
            if idle == IDLE:
                raise InputError(
                    f"a loop over tracer.iter[:] asked for nothing in {IDLE} steps in a row, and ends only where it "
                    "asks for more than the run gives; read a hook point in it, or say where it ends: tracer.iter[:3]"
                )


def _step(given: Any) -> int:
    if isinstance(given, bool) or not hasattr(given, "__index__") or given < 0:
        raise InputError(f"tracer.iter was given {shown(given)}, expected steps counted from 0")
    return int(given)


class FlushingBarrier(Barrier):
    """A barrier that gives what blocks hold back to the model first."""

    def __call__(self) -> None:
        """Wait here until every block has arrived."""
        mediator: Any = Mediator.current("tracer.barrier()")
        mediator.flush()
        super().__call__()


class Session(Tracer):
    """Several traces whose values pass from one to the next unsaved."""

    def __init__(self) -> None:
        super().__init__()
        self._inline = False

    @no_type_check  # nnsight counts the frames between here and its user's
    def __enter__(self) -> Session:
        """As nnsight's; without a source the block runs where it stands."""
        reread(sys._getframe(1).f_code)
        try:
            self.capture()
        except WithBlockNotFoundError:
            self._inline = True
            inc()
            return self
        check(self.node)
        if skippable(self.node):
            skip_context(self)
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, exc_traceback: Any) -> bool:
        """As nnsight's."""
        if not self._inline:
            return super().__exit__(exc_type, exc_value, exc_traceback)
        dec()
        return False


class Edited(NamedTuple):
    """What ``with lens.edit() as (tracer, edited):`` binds."""

    tracer: Editing
    edited: Root

    def __getattr__(self, name: str) -> Any:
        """Asked for what one of the two has: how to take them apart."""
        if name.startswith("_"):
            raise AttributeError(name)
        habit = Habit("with lens.edit() as (tracer, edited):", TRACES, "and edited.trace(tokens) behind its block")
        raise missing(self, "what lens.edit() gives, a tuple of two,", name, {name: habit})


class Editing(EditingTracer):
    """A block that acts in every trace of the edited copy that it gives."""

    @no_type_check  # nnsight counts the frames between here and its user's
    def __enter__(self) -> Any:
        """The tracer and the edited copy."""
        reread(sys._getframe(1).f_code)
        try:
            self.capture()
        except WithBlockNotFoundError:
            raise refuse("an edit that is kept") from None
        if skippable(self.node):
            skip_context(self)
        return Edited(self, self.envoy)
