"""The scalar recurrence of matrix states, S_t = a_t S_{t-1} + Δ_t v_t k_tᵀ, y_t = S_t q_t, one number a_t a head.

Mamba-2 (Dao & Gu 2024, "Transformers are SSMs") with v, k, q for x, B, C, and lightning attention without Δ. The fast
form is theirs: within a chunk attention with decays for a mask, between chunks the state.

How it fails: as `hybridlens.recurrences.chunks` does; it and the loop differ in rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hybridlens.recurrences import scan
from hybridlens.recurrences.base import Run
from hybridlens.recurrences.chunks import Addressed, addressed, chunk_of, in_chunks, joined, segments, side_by_side
from hybridlens.recurrences.edits import Edited, Hook, edit_of, put
from hybridlens.recurrences.matrix import Held, Matrix, at_address, held
from hybridlens.recurrences.terms import before, wide


class ScalarTerms(NamedTuple):
    """What goes into a scalar recurrence; addresses repeated to heads."""

    decay: Float[Tensor, "*lead rec_head"]
    v: Float[Tensor, "*lead rec_head value"]
    """What is written."""
    k: Float[Tensor, "*lead rec_head address"]
    """Where it is written."""
    q: Float[Tensor, "*lead rec_head address"]
    """Where it is read."""
    dt: Float[Tensor, "*lead rec_head"] | None = None
    """Mamba-2's step size as used, which multiplies what is written; None for 1. The decay is given apart."""
    write_edit: Edited | None = None
    """Of Δ v kᵀ [b p s u m]."""


class Scalar(Matrix[ScalarTerms]):
    """A matrix state a head that decays as a whole.

    Args:
        shape: of one row's state, (s, u, m).
    """

    def hold(self, terms: ScalarTerms, valid: Bool[Tensor, "batch pos"] | None) -> ScalarTerms:
        """Decay 1 and no write where not valid."""
        if valid is None:
            return terms
        dt = torch.ones_like(terms.decay) if terms.dt is None else terms.dt
        decay, dt, edit = held(Held(terms.decay, dt, terms.write_edit), valid)
        return terms._replace(decay=decay, dt=dt, write_edit=edit)

    def step(self, previous: Tensor, terms: ScalarTerms) -> Tensor:
        """a S + Δ v kᵀ."""
        return wide(terms.decay)[..., None, None] * previous + self.writes(terms)

    def writes(self, terms: ScalarTerms) -> Float[Tensor, "*lead rec_head value address"]:
        """All that is added to the decayed state: Δ v kᵀ."""
        return put(_written(terms)[..., None] * wide(terms.k)[..., None, :], terms.write_edit)

    def carry(self, state: Tensor, terms: ScalarTerms) -> Tensor:
        """a S."""
        return wide(terms.decay)[..., None, None] * state

    def carry_back(self, grad: Tensor, terms: ScalarTerms) -> Tensor:
        """a g."""
        return self.carry(grad, terms)

    def readout(self, states: Tensor, terms: ScalarTerms) -> Tensor:
        """S q, float32."""
        return at_address(states, terms.q)

    def with_writes(self, terms: ScalarTerms, initial: Tensor, write: Hook) -> ScalarTerms:
        """The terms with what a hook makes of the writes [b p s u m], which hear of no state before them."""
        return terms._replace(write_edit=edit_of(self.writes(terms), write))

    def run(self, terms: ScalarTerms, initial: Tensor) -> Run:
        """Chunk by chunk with matrix products; of states only those at the chunks' borders are made."""
        if terms.decay.shape[1] == 1:
            states = self.step(initial[:, None], terms)
            return Run(self.readout(states, terms), states[:, 0])
        if terms.write_edit is not None:
            return self.run_edited(terms, terms._replace(write_edit=None), terms.write_edit.mask, initial)
        parts, state = list[Tensor](), initial
        for part in segments(terms.decay.shape[1]):
            some = _Chunked.of(self.at(terms, part))
            borders, state = some.borders(state)
            (scores,), (reads,) = some.addresses.scores, some.addresses.readers
            y = scores @ some.written + reads @ borders.mT
            parts.append(joined(y, part.stop - part.start))
        return Run(torch.cat(parts, dim=1), state)

    def made(self, terms: ScalarTerms, initial: Tensor) -> Tensor:
        """Every state: those at the chunks' borders the fast way, then all chunks side by side."""
        edit = terms.write_edit
        if edit is not None:
            plain = self.made(terms._replace(write_edit=None), initial)
            return self.continued(plain, self.reached(edit.mask), terms, initial)
        parts, state = list[Tensor](), initial
        still = terms.decay == 1
        idle = torch.zeros_like(still) if terms.dt is None else still & (terms.dt == 0)
        for part in segments(terms.decay.shape[1]):
            some, entered = self.at(terms, part), state
            borders, state = _Chunked.of(some).borders(entered)
            parts.append(side_by_side(self.step, some, borders, idle[:, part], entered))
        return torch.cat(parts, dim=1)

    def adjoint(self, terms: ScalarTerms, grad: Tensor, mask: Tensor | None = None) -> Tensor:
        """g_t = grad_t + a_{t+1} g_{t+1}."""
        decay = wide(terms.decay)[..., None, None].expand(grad.shape)
        return scan.adjoint(decay if mask is None else decay.masked_fill(mask, 0.0), grad)

    def hidden_attention(self, terms: ScalarTerms) -> Float[Tensor, "batch rec_head pos pos"]:
        """q_t · k_j Δ_j ∏_{j<r≤t} a_r: y is this times v."""
        length = terms.decay.shape[1]
        whole = _Chunked.of(terms, 1 << max(0, length - 1).bit_length())
        pattern = whole.addresses.scores[0][:, :, 0, :length, :length]
        return pattern if terms.dt is None else pattern * wide(terms.dt).transpose(1, 2)[:, :, None]

    def decays(self, terms: ScalarTerms) -> Float[Tensor, "batch pos rec_head one"]:
        """One number a head."""
        return wide(terms.decay)[..., None]

    def offered(self, terms: ScalarTerms) -> Tensor:
        """The writes."""
        return self.writes(terms)

    def silenced(self, terms: ScalarTerms, tokens: Bool[Tensor, "#batch pos"]) -> ScalarTerms:
        """Value 0."""
        return terms._replace(v=terms.v.masked_fill(tokens[..., None, None], 0.0))


def _written(terms: ScalarTerms) -> Tensor:
    return wide(terms.v) if terms.dt is None else wide(terms.v) * wide(terms.dt)[..., None]


class _Chunked(NamedTuple):
    """The terms of a stretch in chunks [b s n chunk ...]."""

    written: Tensor
    addresses: Addressed

    @staticmethod
    def of(terms: ScalarTerms, chunk: int | None = None) -> _Chunked:
        chunk = chunk_of(terms.decay.shape[1]) if chunk is None else chunk
        k, q = (in_chunks(wide(t), chunk) for t in (terms.k, terms.q))
        decay = in_chunks(wide(terms.decay), chunk, 1.0)[..., None]
        return _Chunked(in_chunks(_written(terms), chunk), addressed((q,), k, decay))

    def borders(self, initial: Tensor) -> tuple[Tensor, Tensor]:
        """The state before every chunk [b s n u m], and the one after the last."""
        into = (self.written.mT @ self.addresses.writer).movedim(2, 1)
        decay = self.addresses.carried[..., None].movedim(2, 1).expand(into.shape)
        after = scan.linear_scan(decay, into, initial.to(into.dtype))
        return before(after, initial).movedim(1, 2), after[:, -1]
