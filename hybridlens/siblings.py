"""Names that the blocks of several invokes share: a value goes from one to another at a barrier, or not at all.

The blocks of a trace's invokes run side by side. A name that one of them binds can be read in another from then on,
which ``tracer.barrier(2)`` is for: both blocks call it, one after it has the value, the other before it takes it. In
nnsight a block that is too early has Python's NameError, or, where the name had a value before the trace (a cell that
is run again), that old value without a word, barrier or not. Here a name that another block binds is that block's:
where it has no value yet, a line says so, and the old one is never taken.

A name that was bound anew between two blocks (the variable of a loop that opens invokes) is each block's own.

How it fails: `InputError`, at the line that reads the name.
"""

from __future__ import annotations

import builtins
import dis
from collections.abc import Sequence
from itertools import permutations
from types import CodeType
from typing import Any

from nnsight.tracing.util import Scope
from torch import Tensor

from hybridlens.errors import InputError
from hybridlens.habits import PAGE, TRACES


class SiblingScope(Scope):
    """The names of an invoke's block, of which some are another's to bind.

    Args:
        scope: as nnsight made it.
        theirs: names that another block binds.
    """

    def __init__(self, scope: Scope, theirs: set[str]) -> None:
        super().__init__({name: scope[name] for name in scope if name not in theirs}, scope.shared, scope.glbls)
        self.theirs = theirs

    def __missing__(self, key: str) -> Any:
        """A name that the block has not bound, nor had when it was written."""
        if key in self.theirs and key not in self.shared:
            raise InputError(
                f"{key} has no value yet: another invoke of this trace binds it, and their blocks run side by side; "
                f"type `meet = tracer.barrier(2)` before them, and `meet()` behind that line there and before this "
                f"one; see {TRACES!r} in {PAGE}"
            )
        return super().__missing__(key)


def know_each_other(blocks: Sequence[Any]) -> None:
    """Have the blocks of a trace's invokes take names that others bind from these alone.

    Args:
        blocks: nnsight's mediators, in the order in which they are written, before they run.
    """
    if len(blocks) < 2:
        return
    names = [(_names(block.code, "LOAD_NAME"), _names(block.code, "STORE_NAME")) for block in blocks]
    theirs: list[set[str]] = [set() for _ in blocks]
    for reader, binder in permutations(range(len(blocks)), 2):
        one, other = blocks[reader].lcls, blocks[binder].lcls
        if one.shared is not other.shared:  # written in different functions
            continue
        for name in (names[reader][0] & names[binder][1]) - names[reader][1]:
            old = _found(one, name)
            unbound = old is NOTHING and not hasattr(builtins, name)
            kept = old is not NOTHING and old is _found(other, name) and (binder < reader or isinstance(old, Tensor))
            if unbound or kept:
                theirs[reader].add(name)
    for block, names_of_others in zip(blocks, theirs, strict=True):
        if names_of_others:
            block.lcls = SiblingScope(block.lcls, names_of_others)


NOTHING = object()


def _found(scope: Scope, name: str) -> Any:
    """What a name means where the block was written; `NOTHING` where it has no meaning there."""
    if name in scope:
        return scope[name]
    try:
        return scope.glbls[name]
    except KeyError:
        return NOTHING


def _names(code: CodeType, operation: str) -> set[str]:
    return {str(one.argval) for one in dis.get_instructions(code) if one.opname == operation}
