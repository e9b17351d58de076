"""What the hooks of one thread's runs are doing right now.

Hook points belong to a model that several threads may run at once; whatever concerns one run only is kept here,
by thread: the visit that a point is having, and where tokens, queries and keys stand in the text meanwhile. So no run
sees another, and nothing has to be locked.

How it fails: a `Visit` refuses, in one line, a mask that is not one of truth values over its activation.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from hybridlens.errors import HookFunctionError
from hybridlens.shapes import Lengths, Positions
from hybridlens.slots import KeySlots

if TYPE_CHECKING:
    from hybridlens.hook_points import HookPoint


class Reading(NamedTuple):
    """A forward pass: where its tokens stand."""

    positions: Positions
    """Absolute position of each token, padding counted on."""
    lengths: Lengths | None
    """Real tokens of each row; None where all rows are full."""
    left: tuple[int, ...] | None = None
    """Padding on the left of each row as it was given, where results are to be turned back to that; else None."""


class _Here(threading.local):
    """One for each thread."""

    def __init__(self) -> None:
        self.thread = object()
        """By which a hook handle knows whose it is."""
        self.levels: list[object] = []
        """One for each ``with`` block of hooks that is open."""
        self.slots: dict[HookPoint, KeySlots] = {}
        self.given: tuple[Lengths, tuple[int, ...]] | None = None
        """Rows that were given padded on the left: their lengths, and the padding."""
        self.reading: Reading | None = None
        self.visits: list[Visit] = []


HERE = _Here()


@contextmanager
def reading(positions: Positions, lengths: Lengths | None) -> Generator[None]:
    """The length of a forward pass over tokens at these absolute positions; a pass within another has its own."""
    outer, given = HERE.reading, HERE.given
    turned = given is not None and given[0] is lengths  # this pass, not one that a hook of it runs
    HERE.reading = Reading(positions, lengths, given[1] if given is not None and turned else None)
    try:
        yield
    finally:
        HERE.reading = outer


@contextmanager
def given_as(lengths: Lengths | None, left: tuple[int, ...] | None) -> Generator[None]:
    """Say, around a forward pass over rows of these lengths, with how much padding on the left they were given."""
    outer, HERE.given = HERE.given, None if lengths is None or left is None else (lengths, left)
    try:
        yield
    finally:
        HERE.given = outer


def version(tensor: Tensor) -> int:
    """How often a tensor was written in place."""
    return 0 if tensor.is_inference() else tensor._version  # pyright: ignore[reportPrivateUsage]


def _of_rows(run: Reading, index: Tensor) -> Reading:
    """What is known of some rows of a forward pass."""
    lengths = None if run.lengths is None else run.lengths[index.to(run.lengths.device)]
    left = None if run.left is None else tuple(run.left[row] for row in index.tolist())
    return Reading(run.positions[index.to(run.positions.device)], lengths, left)


class Visit:
    """One activation's passage through its hook point.

    Args:
        point: where.
        given: the activation, as the hook functions know its shape.
        backward: the gradient comes by, not the activation.
    """

    def __init__(self, point: HookPoint, given: Tensor, *, backward: bool = False) -> None:
        self.point = point
        self.given = given
        self.backward = backward
        self.reading = HERE.reading
        """Where the tokens of the pass stand; None outside one."""
        self.frozen: Tensor | None = None
        """True where a hook said that an entry counts as edited; None where none did."""

    @contextmanager
    def open(self) -> Generator[None]:
        """The length of the visit: `HookPoint.freeze` is for it."""
        HERE.visits.append(self)
        try:
            yield
        finally:
            HERE.visits.pop()

    def freeze(self, mask: Tensor) -> None:
        """See `HookPoint.freeze`.

        Raises:
            HookFunctionError: for anything but truth values that broadcast to the activation.
        """
        where, shape = f"'{self.point.name}'.freeze", tuple(self.given.shape)
        if self.backward:
            raise HookFunctionError(f"{where} was called by a backward hook; call it where the activation is edited")
        if self.point.read_only:
            raise HookFunctionError(f"{where}: this point is read-only, so nothing in it can be frozen")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:  # pyright: ignore[reportUnnecessaryIsInstance]
            given = getattr(mask, "dtype", type(mask).__name__)
            raise HookFunctionError(f"{where} was given {given}, expected a tensor of truth values (torch.bool)")
        try:
            whole = mask.to(self.given.device).expand(shape)
        except RuntimeError as error:
            raise HookFunctionError(
                f"{where} was given a mask of shape {list(mask.shape)}, expected one that broadcasts to {list(shape)}"
            ) from error
        self.frozen = whole.clone() if self.frozen is None else self.frozen | whole

    @contextmanager
    def of_rows(self, index: Tensor, part: Tensor) -> Generator[None]:
        """A visit within this one, of some rows of its batch; what is frozen there is frozen here.

        Args:
            index: the rows, as integers.
            part: what the hook function is given of them.
        """
        inner = Visit(self.point, part)
        inner.reading = None if self.reading is None else _of_rows(self.reading, index)
        with inner.open():
            yield
        if inner.frozen is not None:
            none = torch.zeros(self.given.shape, dtype=torch.bool, device=self.given.device)
            self.freeze(none.index_copy(0, index, inner.frozen))
