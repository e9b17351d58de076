"""The hook functions that stand at a point: whose they are, in which order they act, and until when.

There is one list at each point, of `HookHandle`s, for all that TransformerLens' users know: a function put there by
``add_hook`` acts in every thread until it is removed; one attached for a run, or for the length of a ``with`` block,
acts in runs of the thread that attached it. Both act in the order in which they came, but those that were to go before
all others (``prepend=True``), and both are shown by ``fwd_hooks`` and ``bwd_hooks``, each thread seeing its own.

Whatever concerns one run stays with its thread, so a copy of a point has the functions for all threads, and no others.

How it fails: a direction that does not exist raises `UnknownNameError`; a function that cannot be pickled (a lambda,
say) raises `HookFunctionError` when its model is.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast

from hybridlens.errors import HookFunctionError, UnknownNameError
from hybridlens.hook_functions import HookFunction
from hybridlens.peers import HookPoint as TransformerLensHookPoint
from hybridlens.visits import HERE

Direction: TypeAlias = Literal["fwd", "bwd"]
"""Of activations, or of gradients."""

Directions: TypeAlias = Literal["fwd", "bwd", "both"]
DIRECTIONS = {"fwd": ("fwd",), "bwd": ("bwd",), "both": ("fwd", "bwd")}

_behind, _before = itertools.count(1), itertools.count(-1, -1)


@dataclass(eq=False)
class HookHandle:
    """One function at one point, with what TransformerLens' `LensHandle` says of it."""

    user_hook: HookFunction
    """The function as it was given."""
    dir: Direction
    is_permanent: bool = False
    context_level: int | None = None
    """How many ``with lens.hooks(...)`` stood around it; None for one that was added outside any."""
    thread: object | None = None
    """Whose runs it acts in (`visits.HERE.thread`); None for all."""
    place: int = 0
    """Those of lower places act first."""
    removed: bool = False
    """Gradients that a forward pass left for it go by unheard."""
    at: dict[HookHandle, None] = field(default_factory=dict["HookHandle", None], init=False, repr=False)
    """The list in which it stands, which other threads may be changing."""

    @property
    def hook(self) -> HookHandle:
        """Itself: ``handle.hook.remove()`` is what users of TransformerLens write."""
        return self

    def remove(self) -> None:
        """Take the function away; once is enough."""
        self.removed = True
        self.at.pop(self, None)

    def matches(self, including_permanent: bool, level: int | None) -> bool:
        """Whether it is meant by these words of `remove_hooks` and `has_hooks`."""
        return (including_permanent or not self.is_permanent) and (level is None or level == self.context_level)

    def __deepcopy__(self, memo: dict[int, Any]) -> HookHandle:
        """The same function, not a copy of it or of the object whose method it is."""
        return replace(self)

    def __getstate__(self) -> dict[str, Any]:
        try:
            pickle.dumps(self.user_hook)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            called = getattr(self.user_hook, "__qualname__", type(self.user_hook).__name__)
            raise HookFunctionError(
                f"the hook function {called} cannot be pickled, and a pickled model keeps the hooks that were added to "
                "it; remove it (lens.reset_hooks(including_permanent=True)), or add a function of a module"
            ) from error
        return {**self.__dict__, "at": {}}


class HandleHolder(TransformerLensHookPoint):
    """A hook point of TransformerLens whose functions are `HookHandle`s; torch's own hooks are left alone."""

    handles: dict[HookHandle, None]
    """All of them, of every thread, in the order in which they came."""

    def __init__(self) -> None:
        self.__dict__["handles"] = {}
        super().__init__()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy keeps: of the functions, those for all threads."""
        return {**self.__dict__, "handles": sorted((h for h in list(self.handles) if h.thread is None), key=_place)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # pyright: ignore[reportUnknownMemberType]
        kept = cast(Sequence[HookHandle], self.handles)
        self.handles = {}
        for handle in kept:
            handle.at, handle.place = self.handles, next(_behind)
            self.handles[handle] = None

    def add_hook(  # pyright: ignore[reportIncompatibleMethodOverride] of other parameters
        self,
        hook: HookFunction,
        dir: Direction = "fwd",  # TransformerLens' word
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
        *,
        own: bool = False,
    ) -> HookHandle:
        """Have a function act here.

        Args:
            hook: ``fn(tensor, hook)``; what it returns, if not None, takes the tensor's place.
            dir: "fwd" for the activation, "bwd" for its gradient.
            is_permanent: stay when hooks are removed without ``including_permanent=True``.
            level: of the ``with`` block that it belongs to; removing can be limited to one.
            prepend: act before those that are there.
            own: act in runs of this thread alone.

        Raises:
            UnknownNameError: for another direction.
        """
        if dir not in ("fwd", "bwd"):
            raise UnknownNameError(f"direction {dir!r} does not exist; expected one of fwd, bwd")
        place = next(_before if prepend else _behind)
        thread = HERE.thread if own else None
        handle = HookHandle(hook, dir, is_permanent, level, thread, place)
        handle.at = self.handles
        self.handles[handle] = None
        return handle

    def acting(self, dir: Directions = "both") -> list[HookHandle]:
        """The functions that act in runs of this thread, first to last."""
        if not self.handles:
            return []
        mine, wanted = HERE.thread, DIRECTIONS[dir]  # a list of a dict is made in one go, whatever other threads do
        found = [h for h in list(self.handles) if (h.thread is None or h.thread is mine) and h.dir in wanted]
        found.sort(key=_place)
        return found

    @property
    def fwd_hooks(self) -> list[HookHandle]:
        """Those on the activation that act in this thread; an assignment removes what it leaves out."""
        return self.acting("fwd")

    @fwd_hooks.setter
    def fwd_hooks(  # pyright: ignore[reportIncompatibleVariableOverride] a plain list there
        self, handles: Sequence[HookHandle]
    ) -> None:
        self._keep("fwd", handles)

    @property
    def bwd_hooks(self) -> list[HookHandle]:
        """Likewise on its gradient."""
        return self.acting("bwd")

    @bwd_hooks.setter
    def bwd_hooks(  # pyright: ignore[reportIncompatibleVariableOverride] a plain list there
        self, handles: Sequence[HookHandle]
    ) -> None:
        self._keep("bwd", handles)

    def _keep(self, dir: Direction, handles: Sequence[HookHandle]) -> None:
        for handle in self.acting(dir):
            if handle not in handles:
                handle.remove()

    def has_hooks(
        self,
        dir: Directions = "both",
        including_permanent: bool = True,
        level: int | None = None,
    ) -> bool:
        """Whether any acts in this thread."""
        return any(handle.matches(including_permanent, level) for handle in self.acting(_direction(dir)))

    def remove_hooks(
        self,
        dir: Directions = "fwd",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove those that act in this thread; what other threads attached for runs of their own stays.

        Args:
            dir: of which direction.
            including_permanent: permanent ones too.
            level: only those of this level; None for all.

        Raises:
            UnknownNameError: for another direction.
        """
        for handle in self.acting(_direction(dir)):
            if handle.matches(including_permanent, level):
                handle.remove()


def _direction(dir: Directions) -> Directions:
    if dir not in DIRECTIONS:
        raise UnknownNameError(f"direction {dir!r} does not exist; expected one of {', '.join(DIRECTIONS)}")
    return dir


def _place(handle: HookHandle) -> int:
    return handle.place
