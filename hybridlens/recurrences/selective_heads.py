"""Mamba's recurrence in heads: equal blocks of channels, each of which reads and writes in directions of its own.

A head is Mamba's recurrence by itself and runs by itself (Zamba, https://arxiv.org/abs/2405.16712, has two of them).

How it fails: as `hybridlens.recurrences.mamba_scan` does.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.recurrences.base import Run
from hybridlens.recurrences.diagonal import Diagonal, DiagonalTerms
from hybridlens.recurrences.mamba_scan import SelectiveStates
from hybridlens.recurrences.selective import Selective, SelectiveTerms


class SelectiveHeads(Selective):
    """Mamba's recurrence whose B and C have an axis of heads.

    Args:
        shape: of one row's state, (c, n).
        heads: equal consecutive blocks of its channels.
    """

    def __init__(self, shape: tuple[int, ...], heads: int) -> None:
        super().__init__(shape)
        self.explicit_operator = Diagonal(shape, heads)
        self.heads = heads
        self.one = Selective((shape[0] // heads, shape[1]))

    def apart(self, terms: SelectiveTerms) -> list[SelectiveTerms]:
        """The terms of each head."""
        by_head = (self._chunks(terms.dt, -1), self._chunks(terms.A, 0), terms.B.unbind(-2), terms.C.unbind(-2))
        return [SelectiveTerms(*part) for part in zip(*by_head, self._chunks(terms.x, -1), strict=True)]

    def explicit(self, terms: SelectiveTerms) -> DiagonalTerms:
        """Decay and write of every token."""
        parts = [self.one.explicit(part) for part in self.apart(terms)]
        decay, write = [part.decay for part in parts], [part.write for part in parts]
        return DiagonalTerms(torch.cat(decay, dim=-2), torch.cat(write, dim=-2), terms.C)

    def source(self, terms: SelectiveTerms) -> Float[Tensor, "batch pos channel state"]:
        """Δ B."""
        return torch.cat([self.one.source(part) for part in self.apart(terms)], dim=-2)

    def step(self, previous: Tensor, terms: SelectiveTerms) -> Tensor:
        """exp(Δ A) ⊙ S + Δ B x."""
        parts = zip(self._chunks(previous, -2), self.apart(terms), strict=True)
        return torch.cat([self.one.step(state, part) for state, part in parts], dim=-2)

    def readout(self, states: Float[Tensor, "batch pos channel state"], terms: SelectiveTerms) -> Tensor:
        """S C, in the dtype of `C`."""
        parts = zip(self._chunks(states, -2), self.apart(terms), strict=True)
        return torch.cat([self.one.readout(state, part) for state, part in parts], dim=-1)

    def run(self, terms: SelectiveTerms, initial: Tensor) -> Run:
        """Readout and last state, one head after the other."""
        parts = zip(self.apart(terms), self._chunks(initial, -2), strict=True)
        runs = [self.one.run(part, state) for part, state in parts]
        return Run(torch.cat([run.y for run in runs], dim=-1), torch.cat([run.final for run in runs], dim=-2))

    def _seen(self, terms: SelectiveTerms, initial: Tensor) -> SelectiveStates:
        parts = zip(self.apart(terms), self._chunks(initial, -2), strict=True)
        return _together([self.one._seen(part, state) for part, state in parts])

    def _edited(
        self, was: SelectiveStates, value: Tensor, mask: Tensor, terms: SelectiveTerms, initial: Tensor
    ) -> SelectiveStates:
        before = map(SelectiveStates, self._chunks(was.states, -2), self._chunks(was.y, -1))
        given = (self._chunks(value, -2), self._chunks(mask, -2), self.apart(terms), self._chunks(initial, -2))
        return _together([self.one._edited(*part) for part in zip(before, *given, strict=True)])

    def _chunks(self, x: Tensor, axis: int) -> tuple[Tensor, ...]:
        return x.chunk(self.heads, dim=axis)


def _together(heads: list[SelectiveStates]) -> SelectiveStates:
    states, y = zip(*heads, strict=True)
    return SelectiveStates(torch.cat(states, dim=-2), torch.cat(y, dim=-1))
