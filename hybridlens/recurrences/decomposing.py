"""Recurrences whose state is a sum over what each token put there, and what can be said of such sums.

S_t = Σ_j C_j, where C_j is what token j put in, decayed and erased from by every token since. Terms with some tokens
silenced give the part of the others, since nothing that decays or erases depends on what was put in.

How it fails: edits inside terms act where they stand, and are part of no token's share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Bool, Float
from torch import Tensor

from hybridlens.errors import InputError
from hybridlens.recurrences.base import Recurrence
from hybridlens.recurrences.terms import T


class Decomposable(Recurrence[T], ABC):
    """A recurrence whose state can be taken apart by head, and into what each token put there."""

    @abstractmethod
    def by_head(self, states: Tensor) -> Float[Tensor, "*lead rec_head value address"]:
        """States [... *state] as a matrix a head; the address has one axis of length 1 where there is none."""

    @abstractmethod
    def decays(self, terms: T) -> Float[Tensor, "batch pos rec_head entry"]:
        """What multiplies each part of a head's state that decays by itself."""

    @abstractmethod
    def offered(self, terms: T) -> Tensor:
        """What each token would have stand at its address [b p *state].

        That is what it adds, where nothing is erased; of a delta rule v kᵀ, to which it writes the difference.
        """

    @abstractmethod
    def silenced(self, terms: T, tokens: Bool[Tensor, "#batch pos"]) -> T:
        """The terms where these tokens put nothing in, and decay and erase as before.

        Args:
            terms: of all tokens.
            tokens: True where nothing is put in.
        """

    def faded(self, state: Tensor, terms: T) -> Tensor:
        """What a token's decay leaves of a state, before it erases or puts in anything [... *state]."""
        return self.carry(state, terms)

    def erasures(self, terms: T) -> Float[Tensor, "batch rec_head query key"]:
        """How much of each earlier token's value a token takes away from its address.

        Raises:
            InputError: this recurrence erases nothing.
        """
        raise InputError(
            "erasures were asked of a recurrence that only decays; only delta rules erase at an address (Gated "
            "DeltaNet, Kimi delta attention)"
        )
