"""What goes into a recurrence: NamedTuples of tensors over time, handled alike whatever their fields are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T", bound=tuple[Any, ...])
"""An operator's terms: a NamedTuple of tensors [b p ...]; some may be None, some an `Edited`."""


def before(states: Tensor, initial: Tensor) -> Tensor:
    """The state before every token [b p *state]."""
    return torch.cat([initial[:, None].to(states.dtype), states[:, :-1]], dim=1)


def wide(x: Tensor) -> Tensor:
    """In float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def length_of(terms: tuple[Any, ...]) -> int:
    """How many tokens the terms are of."""
    return next(leaves(terms)).shape[1]


def leaves(value: object) -> Iterator[Tensor]:
    """The tensors of terms, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in cast(tuple[object, ...], value):
            yield from leaves(part)


def mapped(terms: T, change: Callable[[Tensor], Tensor]) -> T:
    """Terms with every tensor changed."""
    return cast(T, _mapped(terms, change))


def _mapped(value: object, change: Callable[[Tensor], Tensor]) -> object:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        parts = [_mapped(part, change) for part in cast(tuple[object, ...], value)]
        return cast(Callable[..., object], type(value))(*parts)
    return value
