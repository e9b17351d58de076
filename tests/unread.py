"""Tensors that refuse to be read: they stand for those on a device, for which the host would have to wait.

They compute like others. Whatever gives the host a value of one, makes a tensor whose size hangs on its values, takes
entries of one by a mask or by indices that are on the host, or sends a tensor of the host over and waits for it, raises
`Waited`. What is made "on the device" inside `Away` is one of them, too.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

READS = {
    "cpu", "tolist", "item", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__",
    "nonzero", "argwhere", "equal", "allclose", "unique", "unique_consecutive", "masked_select", "bincount",
    "is_nonzero",
}  # fmt: skip
MAKES = {
    "zeros", "ones", "full", "empty", "arange", "tensor", "as_tensor", "eye", "rand", "randn", "zeros_like",
    "ones_like", "full_like", "empty_like",
}  # fmt: skip


class Waited(AssertionError):
    """The host would have waited for the device."""


class OnDevice(Tensor):
    """A tensor that refuses to be read; what is computed from it is one, too."""


def sent(value: Tensor) -> Tensor:
    """A tensor as if it were on a device."""
    return value.as_subclass(OnDevice)


def read(value: Tensor) -> Tensor:
    """A tensor that may be read again; for tests, once a run is over."""
    return value.as_subclass(Tensor)


class Away(TorchFunctionMode):
    """The length of a ``with`` block in which waiting raises.

    Args:
        alone: nothing may be sent from the host at all, as in a step that is recorded.
    """

    def __init__(self, alone: bool = False) -> None:
        super().__init__()
        self.alone = alone

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        first = args[0] if args else None
        if name in READS and any(isinstance(value, OnDevice) for value in args):
            raise Waited(f"{name} reads a tensor on the device")
        if name == "repeat_interleave" and any(isinstance(value, OnDevice) for value in args[1:]):
            raise Waited("repeat_interleave by a tensor")
        if name == "where" and len(args) == 1:
            raise Waited("where of a mask alone")
        if name in ("__getitem__", "__setitem__") and isinstance(first, OnDevice):
            for index in args[1] if isinstance(args[1], tuple) else (args[1],):
                if isinstance(index, Tensor) and (index.dtype == torch.bool or not isinstance(index, OnDevice)):
                    raise Waited(f"{name} by {'a mask' if index.dtype == torch.bool else 'indices on the host'}")
        if name == "to" and not isinstance(first, OnDevice) and _device(args[1:], kwargs):
            if self.alone or not kwargs.get("non_blocking"):
                raise Waited("a tensor of the host is sent to the device, and waited for")
            return sent(func(*args, **kwargs).clone())
        if name == "copy_" and isinstance(first, OnDevice) and not isinstance(args[1], OnDevice):
            if self.alone or not (kwargs.get("non_blocking") or args[2:]):
                raise Waited("copy_ from the host")
            return func(first, sent(args[1].clone()))
        out = func(*args, **kwargs)
        if name in MAKES and kwargs.get("device") is not None and isinstance(out, Tensor):
            if name in ("tensor", "as_tensor"):
                raise Waited(f"{name} makes a tensor of the host's numbers on the device")
            return sent(out)
        return out


def _device(args: Any, kwargs: Any) -> bool:
    found = [value for value in (*args, *kwargs.values()) if isinstance(value, (torch.device, str))]
    return bool(found)


@contextmanager
def reading_allowed() -> Generator[None]:
    """Inside `Away`: what is done here may wait."""
    with torch._C.DisableTorchFunction():
        yield


def send(model: torch.nn.Module) -> torch.nn.Module:
    """A model whose weights and buffers are all on the device."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(sent(weight.detach()), weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = sent(buffer)
    return model
