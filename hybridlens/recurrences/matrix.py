"""What recurrences of a matrix state a head have in common, whether a token decays it as a whole or erases from it."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hybridlens.recurrences.decomposing import Decomposable
from hybridlens.recurrences.edits import Edited, Hook
from hybridlens.recurrences.terms import T, wide


class Matrix(Decomposable[T]):
    """A matrix state a head, into which each token puts a value at an address.

    Args:
        shape: of one row's state, (s, u, m).
    """

    @abstractmethod
    def with_writes(self, terms: T, initial: Tensor, write: Hook) -> T:
        """The terms with what a hook makes of the writes [b p s u m].

        Args:
            terms: of all tokens.
            initial: the state before the first.
            write: sees the writes of all tokens at once.
        """

    def by_head(self, states: Tensor) -> Float[Tensor, "*lead rec_head value address"]:
        """As they are."""
        return states


class Held(NamedTuple):
    """The parts of terms that say what happens at padding."""

    decay: Float[Tensor, "batch pos rec_head"] | Float[Tensor, "batch pos rec_head address"]
    strength: Float[Tensor, "batch pos rec_head"]
    """What multiplies a write."""
    write_edit: Edited | None


def held(given: Held, valid: Bool[Tensor, "batch pos"]) -> Held:
    """Decay 1 and no write, not even an edited one, where not valid."""
    decay, strength, edit = given
    there = valid[..., None]
    if edit is not None:
        edit = Edited(edit.value, edit.mask & there[..., None, None])
    kept = torch.where(there if decay.ndim == strength.ndim else there[..., None], decay, 1.0)
    return Held(kept, torch.where(there, strength, 0.0), edit)


def at_address(state: Tensor, address: Float[Tensor, "*lead rec_head address"]) -> Tensor:
    """S k: what a state holds at an address, or is read out there, float32."""
    return (state @ wide(address)[..., None])[..., 0]
