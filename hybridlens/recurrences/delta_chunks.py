"""The delta rule in chunks: what each token writes, the states between chunks, and hidden attention.

Within a chunk what each token writes, r_t = β_t (v_t - recall_t), solves a triangular system, linear in the state
before it (Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule"). Its inverse is made once and
multiplies values and addresses, which is faster than to solve for both.

Hidden attention joins neighbouring stretches of text: where each value stands at the end of the first, read by what
each token of the second reads of the state before it.

How it fails: as `hybridlens.recurrences.chunks` does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.recurrences.chunks import Addressed, addressed, chunk_of, in_chunks, joined
from hybridlens.recurrences.terms import wide


class Chunks(NamedTuple):
    """The terms of a stretch in chunks [b n s chunk ...]."""

    v: Tensor
    addresses: Addressed
    """Readers are k, of the decayed state, and q."""
    solving: Float[Tensor, "batch chunk rec_head token token"]
    """T: with the state before the chunk empty, tokens write T v."""

    @staticmethod
    def of(decay: Tensor, v: Tensor, k: Tensor, q: Tensor, beta: Tensor) -> Chunks:
        """Of terms [b p s ...]; see `hybridlens.recurrences.delta.DeltaTerms`."""
        chunk = chunk_of(beta.shape[1])
        by_head = decay.ndim == beta.ndim
        v, k, q, beta = (in_chunks(wide(t), chunk).contiguous() for t in (v, k, q, beta))
        decay = in_chunks(wide(decay), chunk, 1.0)
        addresses = addressed((k, q), k, decay[..., None] if by_head else decay)
        # R with R_t = β_t v_t - β_t Σ_{j<t} (k_t … k_j) R_j, by forward substitution.
        system = beta[..., None] * addresses.scores[0]
        ones = torch.eye(chunk, dtype=system.dtype, device=system.device).expand(system.shape)
        solved = torch.linalg.solve_triangular(system, ones, upper=False, unitriangular=True)
        return Chunks(v, addresses, solved * beta[..., None, :])

    def run(self, initial: Tensor, length: int) -> Stretch:
        """From the state before them, [b s u m], over `length` tokens, without those that were filled in."""
        own, held = self.solving @ self.v, self.solving @ self.addresses.readers[0]
        states, written, state = list[Tensor](), list[Tensor](), initial.to(own.dtype).flatten(0, 1)
        for new, of_state, writer, carried in zip(
            *(t.transpose(0, 1).flatten(1, 2) for t in (own, held, self.addresses.writer, self.addresses.carried)),
            strict=True,
        ):
            states.append(state)
            written.append(torch.baddbmm(new, of_state, state.mT, alpha=-1))
            state = torch.baddbmm(state * carried[:, None], written[-1].mT, writer)
        borders, each = (torch.stack(t).unflatten(1, initial.shape[:2]).transpose(0, 1) for t in (states, written))
        return Stretch(self, borders, each, state.unflatten(0, initial.shape[:2]), length)

    def hidden_attention(self) -> Float[Tensor, "batch rec_head pos pos"]:
        """What each token reads of each one's value, what was filled in included."""
        spans = self.spans()
        whole = sum(span.within.shape[-1] for span in spans)
        out = spans[0].within.new_empty((*spans[0].within.shape[:-2], whole, whole))
        _fill(out, spans)
        return out

    def spans(self) -> list[Span]:
        """Its chunks as stretches of hidden attention."""
        (_, scores), (reads_k, reads_q) = self.addresses.scores, self.addresses.readers
        within = scores @ self.solving
        stands = self.solving.mT @ self.addresses.writer
        carried = torch.diag_embed(self.addresses.carried.expand(*within.shape[:3], stands.shape[-1]))
        spans = Span(within, stands, reads_q - within @ reads_k, carried - reads_k.mT @ stands)
        return [Span(*parts) for parts in zip(*(part.unbind(1) for part in spans), strict=True)]


class Stretch(NamedTuple):
    """What a run over some chunks gives."""

    chunks: Chunks
    borders: Float[Tensor, "batch chunk rec_head value address"]
    """The state before each."""
    written: Float[Tensor, "batch chunk rec_head token value"]
    """What each token writes."""
    final: Float[Tensor, "batch rec_head value address"]
    length: int
    """Tokens, without those that were filled in."""

    def read_out(self) -> Float[Tensor, "batch pos rec_head value"]:
        """What each token reads."""
        (_, scores), (_, readers) = self.chunks.addresses.scores, self.chunks.addresses.readers
        return joined(scores @ self.written + readers @ self.borders.mT, self.length)

    def each_write(self) -> Float[Tensor, "batch pos rec_head value"]:
        """`written`, token by token."""
        return joined(self.written, self.length)


class Span(NamedTuple):
    """A stretch of text, as hidden attention sees it [b s ...]."""

    within: Float[Tensor, "*lead pos pos"]
    """Of a chunk's tokens, what each reads of each other's values."""
    stands: Float[Tensor, "*lead pos address"]
    """Where each token's value stands at the end, erasures of the tokens after it included."""
    reads: Float[Tensor, "*lead pos address"]
    """What each token reads of the state before the stretch."""
    carried: Float[Tensor, "*lead address address"]
    """J with S J: what is left at the end of the state S before."""


def _fill(out: Float[Tensor, "*lead pos pos"], spans: list[Span]) -> tuple[Span, Span] | None:
    """Write the hidden attention of neighbouring stretches; gives their halves, None where there is but one."""
    if len(spans) == 1:
        out[:] = spans[0].within
        return None
    half = len(spans) // 2
    cut = sum(span.within.shape[-1] for span in spans[:half])
    first, second = _joined(out[..., :cut, :cut], spans[:half]), _joined(out[..., cut:, cut:], spans[half:])
    out[..., :cut, cut:] = 0.0
    out[..., cut:, :cut] = second.reads @ first.stands.mT
    return first, second


def _joined(out: Float[Tensor, "*lead pos pos"], spans: list[Span]) -> Span:
    """`_fill`, and the stretches as one, all but `within`."""
    halves = _fill(out, spans)
    if halves is None:
        return spans[0]
    first, second = halves
    stands = torch.cat([first.stands @ second.carried, second.stands], dim=-2)
    reads = torch.cat([first.reads, second.reads @ first.carried.mT], dim=-2)
    return Span(first.within, stands, reads, first.carried @ second.carried)
