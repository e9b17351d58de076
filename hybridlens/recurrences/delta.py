"""The delta rule of matrix states, S_t = a_t S_{t-1} + β_t (v_t - a_t S_{t-1} k_t) k_tᵀ, y_t = S_t q_t.

Gated DeltaNet (Yang et al. 2024, "Gated Delta Networks") with one number a_t a head, Kimi delta attention with one a
key channel. What the decayed state holds at the address k_t, the recall, is taken away before v_t is put there, so that
the rule is not elementwise: of a row u of the state, every entry depends on every earlier one of that row.

The fast form is the chunked one (Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule"): what each
token writes, r_t = β_t (v_t - recall_t), solves a triangular system within a chunk, linear in the state before it.

Edits act in time order: recall, write, state; all that comes after is made from the edited ones.

How it fails: as `hybridlens.recurrences.chunks` does; it and the loop differ in rounding. With β |k|² above 2 the
rule itself grows without bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hybridlens.recurrences.base import Run
from hybridlens.recurrences.chunks import segments
from hybridlens.recurrences.delta_chunks import Chunks, Stretch
from hybridlens.recurrences.edits import Edited, Hook, edit_of, put
from hybridlens.recurrences.every_state import Walk, one_by_one, side_by_side, walked
from hybridlens.recurrences.matrix import Held, Matrix, at_address, held
from hybridlens.recurrences.terms import before, mapped, wide

Inner: TypeAlias = Literal["recall", "write"]
"""What a token makes of the state before it, on the way to its own."""


class DeltaTerms(NamedTuple):
    """What goes into a delta rule; addresses repeated to heads, normalised and scaled."""

    decay: Float[Tensor, "*lead rec_head"] | Float[Tensor, "*lead rec_head address"]
    """One number a head, or one a key channel."""
    v: Float[Tensor, "*lead rec_head value"]
    k: Float[Tensor, "*lead rec_head address"]
    q: Float[Tensor, "*lead rec_head address"]
    beta: Float[Tensor, "*lead rec_head"]
    """The write strength; 0 on padding."""
    recall_edit: Edited | None = None
    """Of a S k [b p s u]."""
    write_edit: Edited | None = None
    """Of β (v - recall) kᵀ [b p s u m]."""


class Delta(Matrix[DeltaTerms]):
    """A matrix state a head from which each token erases what stood at its address.

    Args:
        shape: of one row's state, (s, u, m).
    """

    def hold(self, terms: DeltaTerms, valid: Bool[Tensor, "batch pos"] | None) -> DeltaTerms:
        """Decay 1 and no write where not valid."""
        if valid is None:
            return terms
        decay, beta, edit = held(Held(terms.decay, terms.beta, terms.write_edit), valid)
        return terms._replace(decay=decay, beta=beta, write_edit=edit)

    def step(self, previous: Tensor, terms: DeltaTerms) -> Tensor:
        """a S + β (v - recall) kᵀ."""
        decayed = _rate(terms) * previous
        return decayed + _write(_recall(decayed, terms), terms)

    def recalls(self, previous: Tensor, terms: DeltaTerms) -> Float[Tensor, "*lead rec_head value"]:
        """What the decayed state holds at the write address, a S k, from the state before each token."""
        return _recall(_rate(terms) * previous, terms)

    def writes(self, previous: Tensor, terms: DeltaTerms) -> Float[Tensor, "*lead rec_head value address"]:
        """All that is added to the decayed state, β (v - recall) kᵀ, from the state before each token."""
        return _write(self.recalls(previous, terms), terms)

    def carry(self, state: Tensor, terms: DeltaTerms) -> Tensor:
        """a S - β (a S k) kᵀ, without the erasures that an edit has replaced."""
        decayed = _rate(terms) * state
        recall = at_address(decayed, terms.k)
        if terms.recall_edit is not None:
            recall = recall.masked_fill(terms.recall_edit.mask, 0.0)
        erased = (wide(terms.beta)[..., None] * recall)[..., None] * wide(terms.k)[..., None, :]
        if terms.write_edit is not None:
            erased = erased.masked_fill(terms.write_edit.mask, 0.0)
        return decayed - erased

    def carry_back(self, grad: Tensor, terms: DeltaTerms) -> Tensor:
        """a (g - β (g k) kᵀ), without the erasures that an edit has replaced."""
        heard = grad if terms.write_edit is None else grad.masked_fill(terms.write_edit.mask, 0.0)
        erased = wide(terms.beta)[..., None] * at_address(heard, terms.k)
        if terms.recall_edit is not None:
            erased = erased.masked_fill(terms.recall_edit.mask, 0.0)
        return _rate(terms) * (grad - erased[..., None] * wide(terms.k)[..., None, :])

    def readout(self, states: Tensor, terms: DeltaTerms) -> Tensor:
        """S q, float32."""
        return at_address(states, terms.q)

    def with_recalls(self, terms: DeltaTerms, initial: Tensor, recall: Hook) -> DeltaTerms:
        """The terms with what a hook makes of the recalls [b p s u], which it sees as they are before any edit."""
        seen = self.recalls(before(self.states(terms, initial), initial), terms)
        return terms._replace(recall_edit=edit_of(seen, recall))

    def with_writes(self, terms: DeltaTerms, initial: Tensor, write: Hook) -> DeltaTerms:
        """The terms with what a hook makes of the writes [b p s u m], as they follow from edited recalls."""
        seen = self.writes(before(self.states(terms, initial), initial), terms)
        return terms._replace(write_edit=edit_of(seen, write))

    def run(self, terms: DeltaTerms, initial: Tensor) -> Run:
        """Chunk by chunk with matrix products; of states only those at the chunks' borders are made."""
        if terms.beta.shape[1] == 1:
            states = self.step(initial[:, None], terms)
            return Run(self.readout(states, terms), states[:, 0])
        edits = _edits(terms)
        if edits is not None:
            return self.run_edited(terms, _bare(terms), edits, initial)
        ys, final = list[Tensor](), initial
        for stretch in self._stretches(terms, initial):
            ys.append(stretch.read_out())
            final = stretch.final
        return Run(torch.cat(ys, dim=1), final)

    def after(self, terms: DeltaTerms, initial: Tensor) -> Tensor:
        """The state after the last token; nothing is read out."""
        if terms.beta.shape[1] == 1 or _edits(terms) is not None:
            return self.run(terms, initial).final
        for stretch in self._stretches(terms, initial):
            initial = stretch.final
        return initial

    def made(self, terms: DeltaTerms, initial: Tensor) -> Tensor:
        """Every state, made of what each token writes; where chunks go side by side, from those at their borders."""
        edits = _edits(terms)
        if edits is not None:
            return self.continued(self.made(_bare(terms), initial), self.reached(edits), terms, initial)
        found = [(stretch.borders, stretch.each_write()) for stretch in self._stretches(terms, initial)]
        return _filled(terms, initial, found)

    def run_with_states(self, terms: DeltaTerms, initial: Tensor) -> tuple[Run, Tensor]:
        """Both out of one pass over the chunks."""
        if terms.beta.shape[1] == 1 or _edits(terms) is not None:
            return super().run_with_states(terms, initial)
        ys, found, final = list[Tensor](), list[tuple[Tensor, Tensor]](), initial
        for stretch in self._stretches(terms, initial):
            ys.append(stretch.read_out())
            found.append((stretch.borders, stretch.each_write()))
            final = stretch.final
        return Run(torch.cat(ys, dim=1), final), _filled(terms, initial, found)

    def _stretches(self, terms: DeltaTerms, initial: Tensor) -> Iterator[Stretch]:
        """The chunked form, stretch by stretch."""
        for part in segments(terms.beta):
            stretch = Chunks.of(*self.at(terms, part)[:5]).run(initial, part.stop - part.start)
            initial = stretch.final
            yield stretch

    def adjoint(self, terms: DeltaTerms, grad: Tensor, mask: Tensor | None = None) -> Tensor:
        """g_t = grad_t + a_{t+1} (g_{t+1} - β_{t+1} (g_{t+1} k_{t+1}) k_{t+1}ᵀ)."""
        if _edits(terms) is not None:
            return super().adjoint(terms, grad, mask)
        rate, address, out = _rate(terms), wide(terms.k)[..., None, :], grad.clone()
        back = -rate * address * wide(terms.beta)[..., None, None]
        for t in range(grad.shape[1] - 1, 0, -1):
            heard = out[:, t] if mask is None else out[:, t].masked_fill(mask[:, t], 0.0)
            earlier = out[:, t - 1].addcmul_(rate[:, t], heard)
            earlier.addcmul_(heard @ address[:, t].mT, back[:, t])
        return out

    def reached(self, edits: Tensor) -> Tensor:
        """By rows of the state [b p s u 1]: an entry changes the recall, and so its whole row."""
        return edits.any(dim=-1, keepdim=True).cummax(dim=1).values

    def first_order_inside(
        self, terms: DeltaTerms, at: Inner, mask: Tensor, change: Tensor, gradient: Tensor
    ) -> Tensor:
        """`first_order` of replaced recalls [b p s u] or writes [b p s u m].

        Both are made of the state before their token, and so hear of what was replaced earlier: an entry counts with
        what the patch changes there beyond what it would have changed to by itself.
        """
        acting = mask & (change != 0)
        still = _bare(terms)._replace(v=torch.zeros_like(terms.v))
        edit = Edited(change, acting)
        given = still._replace(recall_edit=edit) if at == "recall" else still._replace(write_edit=edit)
        nothing = self.empty(change.shape[0], change.device)
        moved = before(self.loop(given, nothing), nothing)
        heard = self.recalls(moved, still) if at == "recall" else self.writes(moved, still)
        beyond = torch.where(acting, gradient * (change - heard), 0.0)
        return beyond.flatten(1).sum(dim=1, dtype=torch.float64)

    def hidden_attention(self, terms: DeltaTerms) -> Float[Tensor, "batch rec_head pos pos"]:
        """β_j q_tᵀ (∏_{j<r≤t} a_r (I - β_r k_r k_rᵀ)) k_j, erasures included: y is this times v."""
        length = terms.beta.shape[1]
        return Chunks.of(*terms[:5]).hidden_attention()[..., :length, :length]

    def decays(self, terms: DeltaTerms) -> Float[Tensor, "batch pos rec_head entry"]:
        """One number a head, or one a key channel."""
        decay = wide(terms.decay)
        return decay[..., None] if decay.ndim == terms.beta.ndim else decay

    def faded(self, state: Tensor, terms: DeltaTerms) -> Tensor:
        """a S."""
        return _rate(terms) * state

    def offered(self, terms: DeltaTerms) -> Float[Tensor, "*lead rec_head value address"]:
        """v kᵀ, over |k|² where keys are not unit vectors: with it in place, k reads v."""
        k = wide(terms.k)
        return wide(terms.v)[..., None] * (k / k.square().sum(dim=-1, keepdim=True))[..., None, :]

    def silenced(self, terms: DeltaTerms, tokens: Bool[Tensor, "#batch pos"]) -> DeltaTerms:
        """Value 0, so that a token erases and puts nothing there."""
        return terms._replace(v=terms.v.masked_fill(tokens[..., None, None], 0.0))

    def erasures(self, terms: DeltaTerms) -> Float[Tensor, "batch rec_head query key"]:
        """β_t β_j k_tᵀ a_t (∏_{j<r<t} a_r (I - β_r k_r k_rᵀ)) k_j: what is erased, β_t recall_t, is this times v."""
        # Hidden attention of twice as many tokens: each first decays the state and reads it at k, then writes.
        twice = mapped(_bare(terms), lambda t: t.repeat_interleave(2, dim=1))
        reads = torch.arange(twice.beta.shape[1], device=twice.beta.device) % 2 == 0
        decay = twice.decay.masked_fill(~reads.reshape(-1, *[1] * (twice.decay.ndim - 2)), 1.0)
        twice = twice._replace(decay=decay, q=twice.k, beta=twice.beta.masked_fill(reads[:, None], 0.0))
        recalled = self.hidden_attention(twice)[:, :, 0::2, 1::2]
        return wide(terms.beta).transpose(1, 2)[..., None] * recalled


def _rate(terms: DeltaTerms) -> Tensor:
    decay = wide(terms.decay)
    return decay[..., None, None] if decay.ndim == terms.beta.ndim else decay[..., None, :]


def _recall(decayed: Tensor, terms: DeltaTerms) -> Tensor:
    return put(at_address(decayed, terms.k), terms.recall_edit)


def _write(recall: Tensor, terms: DeltaTerms) -> Tensor:
    new = wide(terms.beta)[..., None] * (wide(terms.v) - recall)
    return put(new[..., None] * wide(terms.k)[..., None, :], terms.write_edit)


def _bare(terms: DeltaTerms) -> DeltaTerms:
    return terms._replace(recall_edit=None, write_edit=None)


def _edits(terms: DeltaTerms) -> Tensor | None:
    """Where recalls or writes are edited, by rows of the state or by entries; None without edits."""
    recall = None if terms.recall_edit is None else terms.recall_edit.mask[..., None]
    if terms.write_edit is None:
        return recall
    return terms.write_edit.mask if recall is None else terms.write_edit.mask | recall


def _filled(terms: DeltaTerms, initial: Tensor, found: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Every state, given those at the chunks' borders and what each token writes, stretch by stretch."""
    borders, written = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    decay = wide(terms.decay)[..., None] if terms.decay.ndim == terms.beta.ndim else wide(terms.decay)
    walk = Walk(decay, written, wide(terms.k))
    if one_by_one(initial):
        return walked(walk, initial)
    return side_by_side(walk, borders, (decay == 1).all(dim=-1) & (terms.beta == 0))
