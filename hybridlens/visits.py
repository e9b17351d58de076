"""What the hooks of one thread's runs are doing right now.

Hook points belong to a model that several threads may run at once; whatever concerns one run only is kept here,
by thread: the hook functions that are attached, the visit that a point is having, and where tokens, queries and
keys stand in the text meanwhile. So no run sees the hooks of another, and nothing has to be locked.

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
from hybridlens.hook_functions import HookFunction
from hybridlens.shapes import Positions, Valid
from hybridlens.slots import KeySlots

if TYPE_CHECKING:
    from hybridlens.hook_points import HookPoint


class Own(NamedTuple):
    """The hook functions that a thread has attached to one point, in their order."""

    forward: list[HookFunction]
    backward: list[HookFunction]


class _Here(threading.local):
    """One for each thread."""

    def __init__(self) -> None:
        self.hooks: dict[HookPoint, Own] = {}
        self.slots: dict[HookPoint, KeySlots] = {}
        self.positions: Positions | None = None
        self.valid: Valid | None = None
        self.visits: list[Visit] = []


HERE = _Here()


@contextmanager
def reading(positions: Positions, valid: Valid | None) -> Generator[None]:
    """The length of a forward pass over tokens at these absolute positions; a pass within another has its own.

    Args:
        positions: of each token.
        valid: False on padding; None where there is none.
    """
    outer = HERE.positions, HERE.valid
    HERE.positions, HERE.valid = positions, valid
    try:
        yield
    finally:
        HERE.positions, HERE.valid = outer


def version(tensor: Tensor) -> int:
    """How often a tensor was written in place."""
    return 0 if tensor.is_inference() else tensor._version  # pyright: ignore[reportPrivateUsage]


class Visit:
    """One activation's passage through its hook point.

    Args:
        point: where.
        given: the activation, as the hook functions know its shape.
    """

    def __init__(self, point: HookPoint, given: Tensor) -> None:
        self.point = point
        self.given = given
        self.positions = HERE.positions
        """Absolute position of each token of the pass; None outside one."""
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
        inner.positions = None if self.positions is None else self.positions[index.to(self.positions.device)]
        with inner.open():
            yield
        if inner.frozen is not None:
            none = torch.zeros(self.given.shape, dtype=torch.bool, device=self.given.device)
            self.freeze(none.index_copy(0, index, inner.frozen))
