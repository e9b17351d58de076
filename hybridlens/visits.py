"""What the hooks of one thread's runs are doing right now.

Hook points belong to a model that several threads may run at once; whatever concerns one run only is kept here,
by thread: the hook functions that are attached, the visit that a point is having, and where tokens, queries and
keys stand in the text meanwhile. So no run sees the hooks of another, and nothing has to be locked.

How it fails: a `Visit` refuses, in one line, a mask that is not one of truth values over its activation, and
two writings in place that contradict each other.
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
from hybridlens.shapes import Positions
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
        self.visits: list[Visit] = []


HERE = _Here()


@contextmanager
def reading(positions: Positions) -> Generator[None]:
    """The length of a forward pass over tokens at these absolute positions; a pass within another has its own."""
    outer, HERE.positions = HERE.positions, positions
    try:
        yield
    finally:
        HERE.positions = outer


class _Handed(NamedTuple):
    """A tensor that was given to a trace's block, and what it was like then."""

    tensor: Tensor
    mark: int | Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> _Handed:
        return cls(tensor, tensor.clone() if tensor.is_inference() else version(tensor))

    def touched(self) -> bool:
        """Whether it was written in place since."""
        if isinstance(self.mark, Tensor):  # in inference mode nothing counts writings
            return not torch.equal(self.mark.nan_to_num(), self.tensor.nan_to_num())
        return version(self.tensor) != self.mark


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
        self._earlier: _Handed | None = None
        self._latest: _Handed | None = None

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

    def hand_out(self, value: Tensor) -> Tensor:
        """What a trace's block is given of `value`, which the model holds here now.

        The first to ask gets the tensor itself. Whoever asks again gets a copy, which becomes the model's: so a
        tensor that was saved before is not changed by what is written in place to ``point.output`` later.
        """
        if self._latest is None or value is not self._latest.tensor:
            self._earlier, self._latest = None, _Handed.of(value)
            return value
        current = self.settled(value)
        copy = current.clone()
        self._earlier, self._latest = _Handed.of(current), _Handed.of(copy)
        return copy

    def settled(self, value: Tensor) -> Tensor:
        """What the model goes on with, of the copies handed out: the one that was written in place, if any was.

        Raises:
            HookFunctionError: when two were.
        """
        earlier, latest = self._earlier, self._latest
        if earlier is None or latest is None or value is not latest.tensor or not earlier.touched():
            return value
        if latest.touched():
            raise HookFunctionError(
                f"'{self.point.name}.output' was read twice and both tensors were then written in place; "
                "write to the one that was read last"
            )
        return earlier.tensor
