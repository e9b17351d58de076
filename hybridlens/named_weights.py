"""Weights of a layer's parts under TransformerLens' names: ``lens.blocks[2].attn.W_Q``.

They are read when asked for, so that a weight that was changed or exchanged since is followed, and cannot be written to
(`hybridlens.read_only`). Row vectors times matrices, every multiplier of the family in them: with x what the part reads
(the stream behind its norm), ``x @ W_Q[h] + b_Q[h]`` is what `hook_q` holds of head h. A bias that the model has not is
zeros. No norm is folded in; `hybridlens.weights` does that.

How it fails: a name that a part lacks raises `AbsentError`, an `AttributeError`, in one line, and so does one of
others' (`hybridlens.habit_parts`); weights that are no
plain matrices (adapters, quantised ones) `CheckpointError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from hybridlens.elsewhere import missing
from hybridlens.habits import Habit
from hybridlens.near_points import InPasses
from hybridlens.read_only import read_only


@runtime_checkable
class HasNamedWeights(Protocol):
    """What has weights under names."""

    def named_weight(self, name: str) -> Tensor:
        """The weight of that name."""
        ...


class NamedWeight(property):
    """A weight as an attribute.

    Args:
        name: its own.
        doc: what it is.
    """

    def __init__(self, name: str, doc: str) -> None:
        def get(part: HasNamedWeights) -> Tensor:
            return read_only(part.named_weight(name))

        super().__init__(get, doc=doc)


class NamedWeights(InPasses, ABC):
    """A part of a layer with weights under names."""

    habits: Mapping[str, Habit] = {}
    """What is said of names that it has not."""

    @abstractmethod
    def named_weight(self, name: str) -> Tensor:
        """The weight of that name.

        Raises:
            AbsentError: the part has none of the name.
            CheckpointError: it is no plain matrix.
        """

    def __getattr__(self, name: str) -> Any:
        """What PyTorch finds; where a weight's own attribute failed, what that said, which PyTorch would hide."""
        if isinstance(getattr(type(self), name, None), NamedWeight):
            return self.named_weight(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in type(self).habits:
                raise
            raise missing(self, "this part", name, type(self).habits) from None


def or_zeros(bias: Tensor | None, like: Tensor, *shape: int) -> Tensor:
    """A bias; where there is none, zeros."""
    return like.new_zeros(shape) if bias is None else bias
