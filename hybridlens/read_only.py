"""Tensors that can be read and computed with, and not written to.

What a lens hands out of a model's weights is a view of them where it can be, and otherwise a copy: with a multiplier
in it, a norm folded in, layers stacked. A write to the first would change the Hugging Face model behind the lens's
back, a write to the second would do nothing, and one cannot see which of the two one has. So both are refused.

What is computed from such a tensor is an ordinary one; what is a view of it (an index, a transpose) is read-only too,
and so is the array that NumPy has of it (``W.numpy()``), which says so in NumPy's words.
`clone` gives one's own.

A stack over some of the layers (`stacked`) knows which, so that an index beyond its end, which was meant as a layer's
number, is told where that layer stands.

How it fails: a write in place (``W[0] = 0``, ``W.zero_()``, ``out=W``, ``W.data = …``) raises `InputError`, an index
beyond a stack's end `LayerIndexError`, an `IndexError`. numpy refuses a write by its own `ValueError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from hybridlens.errors import InputError, LayerIndexError

_NO_WRITES = frozenset({"requires_grad_", "detach_", "rename_"})
"""Methods whose names end like those of writes, and that leave the numbers alone."""


class ReadOnly(Tensor):
    """A tensor that refuses writes; see the module."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        # type: (Callable[..., Any], Any, Sequence[Any], Any) -> Any  # pyright: ignore[reportTypeCommentUsage]
        """Call `func` as for an ordinary tensor, unless it writes to one of this class."""
        # Its types stand in a comment, since a checker of annotations asks tensors for their shapes, which ends here.
        with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
            return _called(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A copy of one's own."""
        return self.clone()


class Stack(ReadOnly):
    """A read-only stack over some layers; what is made of it is `ReadOnly`."""

    layers: tuple[int, ...] = ()
    """The layer of each entry."""
    listed_by: str = ""
    """What of a lens holds those, in order."""

    def __getitem__(self, index: Any) -> Tensor:
        """An entry; the first of several indices is that of an entry, and no layer's number.

        Raises:
            LayerIndexError: there is none, saying where the layer of that number stands.
        """
        try:
            return super().__getitem__(index)
        except IndexError as error:
            first: Any = index[0] if isinstance(index, tuple) and index else cast(Any, index)
            if not hasattr(first, "__index__") or -len(self) <= first.__index__() < len(self):
                raise  # at an other axis
            number, listed = first.__index__(), ", ".join(map(str, self.layers))
            entry = f"[{self.listed_by}.index({number})]" if number in self.layers else f"[0] to [{len(self) - 1}]"
            raise LayerIndexError(
                f"[{number}] was asked of a stack of {len(self)}, which holds layers {listed} alone, in that order; "
                f"type {entry}"
            ) from error


def read_only(tensor: Tensor) -> Tensor:
    """The same numbers in the same memory, without a gradient, that cannot be written to."""
    return tensor if isinstance(tensor, ReadOnly) else tensor.detach().as_subclass(ReadOnly)


def stacked(entries: Sequence[Tensor], layers: Sequence[int], listed_by: str) -> Tensor:
    """A stack that cannot be written to, and knows its layers.

    Args:
        entries: of one shape, one for each layer.
        layers: their numbers.
        listed_by: what of a lens holds those, as in "lens.attn_layers".
    """
    stack = torch.stack([entry.detach() for entry in entries]).as_subclass(Stack)
    stack.layers, stack.listed_by = tuple(layers), listed_by
    return stack


def _called(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a function of torch gives, some of whose arguments are read-only.

    Raises:
        InputError: it writes to one of those.
    """
    target = kwargs.get("out", args[0] if args and _writes(func) else None)
    targets = cast(Sequence[Any], target if isinstance(target, (tuple, list)) else (target,))
    if any(isinstance(one, ReadOnly) for one in targets):
        name = "an assignment" if func.__name__ in ("__setitem__", "__set__") else func.__name__
        raise InputError(
            f"{name} would write to a weight that a lens handed out, which is a view of the model's, or made of it; "
            ".clone() it for a copy of your own, or write to the model itself, lens.hf_model"
        )
    return _guarded(func(*args, **kwargs), {_place(arg) for arg in args if isinstance(arg, ReadOnly)})


def _writes(func: Callable[..., Any]) -> bool:
    """Whether a function of torch writes to its first argument."""
    name = func.__name__
    if name == "__set__":
        return getattr(getattr(func, "__self__", None), "__name__", "") == "data"
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
    return name.endswith("_") and name not in _NO_WRITES


def _place(tensor: Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def _guarded(made: Any, places: set[tuple[str, int]]) -> Any:
    """`made`, with the tensors in it that share memory with one that was read-only read-only too."""
    if isinstance(made, (tuple, list)) and type(made) in (tuple, list):
        return type(made)(_guarded(one, places) for one in cast(Sequence[Any], made))
    if isinstance(made, np.ndarray):
        if not made.flags.owndata:  # torch's memory under another name
            made.flags.writeable = False
        return cast(Any, made)
    if not isinstance(made, Tensor) or isinstance(made, ReadOnly) or made.layout != torch.strided:
        return made
    return made.as_subclass(ReadOnly) if made.numel() and _place(made) in places else made
