"""Operations as a device would run them, counted; and memory, on the meta device, where nothing has values.

A view launches nothing, so it is counted apart. On the meta device nothing can be read back, so whatever runs there
waits for no device. Memory counts the tensors that operations made, as long as they live.

How it fails: an operation of several launches counts as one, and a kernel that PyTorch does not know as none.
"""

import weakref
from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Counts what runs inside its ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        """Those that compute, by name."""
        self.views = 0
        """Those that do not."""
        self.crossings: Counter[str] = Counter()
        """Those with tensors of two devices, which copy from one to the other; numbers are no tensors."""
        self.peak = 0
        """Bytes at once, beyond those that were there before."""
        self._living: dict[int, int] = {}

    @property
    def launches(self) -> int:
        """How many compute."""
        return self.launched.total()

    @property
    def all(self) -> int:
        """How many there were."""
        return self.launches + self.views

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
        out = func(*args, **(kwargs or {}))
        made = [value for value in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(value, Tensor)]
        if any(kind.alias_info is not None and not kind.alias_info.is_write for kind in func._schema.returns):
            self.views += 1
            return out
        self.launched[str(func)] += 1
        if len({value.device for value in (*given, *made) if value.ndim or value.device.type != "cpu"}) > 1:
            self.crossings[str(func)] += 1
        for value in made:
            self._holds(value)
        return out

    def _holds(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        place = storage._cdata  # pyright: ignore[reportPrivateUsage]
        if place not in self._living:
            self._living[place] = storage.nbytes()
            self.peak = max(self.peak, sum(self._living.values()))
            weakref.finalize(storage, self._living.pop, place, 0)
