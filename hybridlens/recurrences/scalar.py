"""The scalar recurrence of matrix states, S_t = a_t S_{t-1} + Δ_t v_t k_tᵀ, y_t = S_t q_t, one number a_t a head.

Mamba-2 (Dao & Gu 2024, "Transformers are SSMs") with v, k, q for x, B, C, and lightning attention without Δ. The fast
form is theirs: within a chunk attention with decays for a mask, between chunks the state.

How it fails: as `hybridlens.recurrences.chunks` does; it and the loop differ in rounding.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hybridlens.recurrences import scan
from hybridlens.recurrences.base import Run
from hybridlens.recurrences.chunks import Products, chunk_of, in_chunks, joined, products, segments, split
from hybridlens.recurrences.edits import Edited, Hook, edit_of, put, with_value
from hybridlens.recurrences.every_state import Walk, one_by_one, side_by_side, walked, walked_back
from hybridlens.recurrences.matrix import Held, Matrix, at_address, held
from hybridlens.recurrences.terms import before, wide


class Apart(NamedTuple):
    """Addresses that heads of a group have in common, where some of them were given others by an edit."""

    k: Float[Tensor, "*lead rec_head address"]
    q: Float[Tensor, "*lead rec_head address"]
    edited: Bool[Tensor, "*lead rec_head"]
    """Whose k or q is not that of the terms; nowhere, where somebody only hears their gradients."""


class Sharing(NamedTuple):
    """How heads share addresses."""

    heads: int
    """So many consecutive ones have the same k and q."""
    apart: Apart | None = None
    """Those that they share, if the terms' own are edited; None if the terms' own are shared."""


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
    sharing: Sharing | None = None
    """Heads that have the same k and q, which are then multiplied once for all of them; None for none."""


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
        if terms.sharing is not None and terms.sharing.apart is not None:
            return self._run_apart(terms, terms.sharing, terms.sharing.apart.edited, initial)
        parts, state = list[Tensor](), initial
        for part in segments(terms.decay):
            some = _Chunked.of(self.at(terms, part))
            borders, state = some.borders(state)
            parts.append(joined(some.read(borders), part.stop - part.start))
        return Run(torch.cat(parts, dim=1), state)

    def after(self, terms: ScalarTerms, initial: Tensor) -> Tensor:
        """The state after the last token; nothing is read out."""
        apart = terms.sharing is not None and terms.sharing.apart is not None
        if terms.decay.shape[1] == 1 or terms.write_edit is not None or apart:
            return self.run(terms, initial).final
        for part in segments(terms.decay):
            _, initial = _Chunked.of(self.at(terms, part)).borders(initial)
        return initial

    def _run_apart(self, terms: ScalarTerms, sharing: Sharing, edited: Tensor, initial: Tensor) -> Run:
        """With other addresses for some heads; what they do not reach is what `run` gives without them, to the bit."""
        with torch.no_grad():
            plain = self.run(_shared(terms, sharing), initial)
        own, reached = self.run(terms._replace(sharing=None), initial), edited.cummax(dim=1).values
        y = torch.where(reached[..., None], own.y.detach(), plain.y)
        final = torch.where(reached[:, -1, :, None, None], own.final.detach(), plain.final)
        return Run(with_value(own.y, y), with_value(own.final, final))

    def made(self, terms: ScalarTerms, initial: Tensor) -> Tensor:
        """Every state, written once; on a GPU those at the chunks' borders the fast way, then all chunks at once."""
        edit = terms.write_edit
        if edit is not None:
            plain = self.made(terms._replace(write_edit=None), initial)
            return self.continued(plain, self.reached(edit.mask), terms, initial)
        walk = Walk(wide(terms.decay)[..., None], _written(terms), wide(terms.k))
        if one_by_one(initial):
            return walked(walk, initial)
        still = terms.decay == 1
        idle = torch.zeros_like(still) if terms.dt is None else still & (terms.dt == 0)
        found, state = list[Tensor](), initial
        for part in segments(terms.decay):
            borders, state = _Chunked.of(self.at(terms, part)).borders(state)
            found.append(borders)
        return side_by_side(walk, torch.cat(found, dim=1), idle)

    def adjoint(self, terms: ScalarTerms, grad: Tensor, mask: Tensor | None = None) -> Tensor:
        """g_t = grad_t + a_{t+1} g_{t+1}."""
        if one_by_one(grad[:, 0]):
            return walked_back(wide(terms.decay)[..., None], grad, mask)
        decay = wide(terms.decay)[..., None, None].expand(grad.shape)
        return scan.adjoint(decay if mask is None else decay.masked_fill(mask, 0.0), grad)

    def hidden_attention(self, terms: ScalarTerms) -> Float[Tensor, "batch rec_head pos pos"]:
        """q_t · k_j Δ_j ∏_{j<r≤t} a_r: y is this times v."""
        length, sharing = terms.decay.shape[1], terms.sharing
        if sharing is not None and sharing.apart is not None:
            own, plain = terms._replace(sharing=None), _shared(terms, sharing)
            reached = sharing.apart.edited.cummax(dim=1).values.transpose(1, 2)[..., None]
            return torch.where(reached, self.hidden_attention(own), self.hidden_attention(plain))
        some = _Chunked.of(terms)
        within, ends, since = some.within(), some.ends(), some.decays.since_start
        batch, chunks, groups, members, chunk, _ = within.shape
        out = within.new_empty(batch, groups, members, chunks * chunk, chunks * chunk)
        left = ends[:, 0, ..., :0]  # what is left, where a chunk begins, of what each token before it wrote
        for i in range(chunks):
            start, end = i * chunk, (i + 1) * chunk
            scores = some.q[:, i] @ some.k[:, :i].transpose(1, 2).flatten(2, 3).mT
            out[..., start:end, :start] = scores[:, :, None] * since[:, i, ..., None] * left[..., None, :]
            out[..., start:end, start:end] = within[:, i]
            out[..., start:end, end:] = 0.0
            left = torch.cat([left * since[:, i, ..., -1:], ends[:, i]], dim=-1)
        return out.flatten(1, 2)[..., :length, :length]

    def decays(self, terms: ScalarTerms) -> Float[Tensor, "batch pos rec_head one"]:
        """One number a head."""
        return wide(terms.decay)[..., None]

    def offered(self, terms: ScalarTerms) -> Tensor:
        """The writes."""
        return self.writes(terms)

    def silenced(self, terms: ScalarTerms, tokens: Bool[Tensor, "#batch pos"]) -> ScalarTerms:
        """Value 0."""
        return terms._replace(v=terms.v.masked_fill(tokens[..., None, None], 0.0))


def _shared(terms: ScalarTerms, sharing: Sharing) -> ScalarTerms:
    """The terms with the addresses that heads share, as they were before an edit."""
    k, q, _ = cast(Apart, sharing.apart)
    return terms._replace(k=k, q=q, sharing=Sharing(sharing.heads))


def _written(terms: ScalarTerms) -> Tensor:
    return wide(terms.v) if terms.dt is None else wide(terms.v) * wide(terms.dt)[..., None]


class _Chunked(NamedTuple):
    """The terms of a stretch in chunks, heads in groups that share addresses."""

    v: Float[Tensor, "batch chunk token group member value"]
    strength: Float[Tensor, "batch chunk group member token"] | None
    """Δ; None for 1."""
    k: Float[Tensor, "batch chunk group token address"]
    q: Float[Tensor, "batch chunk group token address"]
    decays: Products
    """[b n g r ...]."""

    @staticmethod
    def of(terms: ScalarTerms) -> _Chunked:
        chunk, alike = chunk_of(terms.decay.shape[1]), 1 if terms.sharing is None else terms.sharing.heads

        def by_group(x: Tensor, fill: float = 0.0) -> Tensor:
            return in_chunks(wide(x), chunk, fill).unflatten(2, (-1, alike))

        return _Chunked(
            split(wide(terms.v), chunk).unflatten(3, (-1, alike)),
            None if terms.dt is None else by_group(terms.dt),
            in_chunks(wide(terms.k[:, :, ::alike]), chunk).contiguous(),
            in_chunks(wide(terms.q[:, :, ::alike]), chunk).contiguous(),
            products(by_group(terms.decay, 1.0)),
        )

    def within(self) -> Float[Tensor, "batch chunk group member token token"]:
        """What a chunk's tokens read of each other's values."""
        weights = self.decays.between * (self.q @ self.k.mT)[:, :, :, None]
        return weights if self.strength is None else weights * self.strength[..., None, :]

    def ends(self) -> Float[Tensor, "batch chunk group member token"]:
        """What is left at a chunk's end of each token's value."""
        left = self.decays.between[..., -1, :]
        return left if self.strength is None else left * self.strength

    def borders(self, initial: Tensor) -> tuple[Tensor, Tensor]:
        """The state before every chunk [b n s u m], and the one after the last."""
        left = (self.v * self.ends().movedim(-1, 2)[..., None]).transpose(2, 3).flatten(4)
        into = (left.mT @ self.k).unflatten(3, self.v.shape[4:]).flatten(2, 3)
        decay = self.decays.since_start[..., -1].flatten(2)[..., None, None].expand(into.shape)
        after = scan.linear_scan(decay, into, initial.to(into.dtype))
        return before(after, initial), after[:, -1]

    def read(self, borders: Tensor) -> Float[Tensor, "batch chunk rec_head token value"]:
        """The readout, given the state before every chunk [b n s u m]."""
        held = borders.unflatten(2, self.v.shape[3:5]).flatten(3, 4)
        earlier = (self.q @ held.mT).unflatten(-1, self.v.shape[4:]) * self.decays.since_start.movedim(-1, 3)[..., None]
        own = self.within() @ self.v.movedim(2, 4)
        return (earlier.movedim(3, 4) + own).flatten(2, 3)
