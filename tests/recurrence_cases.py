"""Random terms for every kind of recurrence, and plain loops over time to compare operators with.

The loops are written from the equations, in the dtype that they are given, and know nothing of the operators' code;
autograd goes through them. `edits` puts values in where a mask says so: of recalls, writes and states, in that order.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hybridlens.recurrences import (
    Delta,
    DeltaTerms,
    Diagonal,
    DiagonalTerms,
    Scalar,
    ScalarTerms,
    Selective,
    SelectiveHeads,
    SelectiveTerms,
)

MATRIX = ("scalar", "lightning", "delta", "channels")
SELECTIVE = ("selective", "heads")
"""Mamba's, which are float32 whatever they are given."""
KINDS = ("vector", "explicit", *SELECTIVE, *MATRIX)


class Case(NamedTuple):
    op: object
    terms: tuple
    initial: Tensor


def case(kind, batch, length, seed, dtype=torch.float64, sizes=(2, 3, 4)):
    """Decays near 0 and 1 and between, also exactly 0 and 1; β up to 2; addresses of length 1.

    `sizes` are heads, values, addresses; the diagonal ones have the first two as channels and states, and "heads" all
    three: heads, channels of one, states.
    """
    draw = torch.Generator().manual_seed(seed)
    s, u, m = sizes

    def normal(*shape):
        return torch.randn(batch, *shape, generator=draw, dtype=torch.float64)

    def decays(*shape):
        x = torch.sigmoid(4 * normal(length, *shape) + 2)
        x[:, length // 2] = 1.0
        x[:, length // 3, 0] = 0.0
        return x

    def unit(x):
        return x / x.norm(dim=-1, keepdim=True)

    if kind == "vector":
        terms, shape = DiagonalTerms(decays(s), normal(length, s), source=normal(length, s)), (s,)
    elif kind == "explicit":
        big = (length, s, u)
        terms, shape = DiagonalTerms(decays(s, u), normal(*big), normal(length, u), normal(*big)), (s, u)
    elif kind == "selective":
        dt = torch.rand(batch, length, s, generator=draw, dtype=torch.float64)
        A = -4 * torch.rand(s, u, generator=draw, dtype=torch.float64)
        terms, shape = SelectiveTerms(dt, A, normal(length, u), normal(length, u), normal(length, s)), (s, u)
    elif kind == "heads":
        dt = torch.rand(batch, length, s * u, generator=draw, dtype=torch.float64)
        A, by_head = -4 * torch.rand(s * u, m, generator=draw, dtype=torch.float64), (length, s, m)
        terms, shape = SelectiveTerms(dt, A, normal(*by_head), normal(*by_head), normal(length, s * u)), (s * u, m)
        return Case(SelectiveHeads(shape, s), changed(terms, lambda t: t.to(dtype)), normal(*shape).to(dtype))
    elif kind in ("scalar", "lightning"):
        dt = None if kind == "lightning" else torch.rand(batch, length, s, generator=draw, dtype=torch.float64)
        k, q = unit(normal(length, s, m)), normal(length, s, m)
        terms, shape = ScalarTerms(decays(s), normal(length, s, u), k, q, dt), (s, u, m)
    else:
        decay = decays(s) if kind == "delta" else decays(s, m)
        beta = 2 * torch.rand(batch, length, s, generator=draw, dtype=torch.float64)
        k, q = unit(normal(length, s, m)), normal(length, s, m)
        terms, shape = DeltaTerms(decay, normal(length, s, u), k, q, beta), (s, u, m)
    kinds = {DiagonalTerms: Diagonal, SelectiveTerms: Selective, ScalarTerms: Scalar, DeltaTerms: Delta}
    return Case(kinds[type(terms)](shape), changed(terms, lambda t: t.to(dtype)), normal(*shape).to(dtype))


def changed(terms, change):
    return type(terms)(*(None if t is None else change(t) for t in terms))


def tensors(terms):
    return [t for t in terms if t is not None]


def leafed(given):
    """The same case with tensors that want gradients."""
    terms = changed(given.terms, lambda t: t.detach().clone().requires_grad_())
    return Case(given.op, terms, given.initial.detach().clone().requires_grad_())


def loop(terms, initial, edits=None, added=None):
    """States, recalls and writes of every token [b p ...], and the readout.

    `edits`: {"recall" | "write" | "state": (mask, value)}. `added`: the same names, tensors added to what was made, by
    which autograd gives the total gradient at each entry.
    """
    edits, added = edits or {}, added or {}
    states, recalls, writes, state = [], [], [], initial

    def made(name, t, value):
        if name in edits:
            value = torch.where(edits[name][0][:, t], edits[name][1][:, t], value)
        return value + added[name][:, t] if name in added else value

    for t in range(terms[0].shape[1]):
        if isinstance(terms, DiagonalTerms):
            state = terms.decay[:, t] * state + made("write", t, terms.write[:, t])
        elif isinstance(terms, SelectiveTerms):
            decay = torch.exp(terms.dt[:, t, :, None] * terms.A)
            B = of_channels(terms.B[:, t], terms.A.shape[0])
            state = decay * state + terms.dt[:, t, :, None] * B * terms.x[:, t, :, None]
        else:
            decay = terms.decay[:, t, :, None, None] if terms.decay.ndim == 3 else terms.decay[:, t, :, None]
            put = terms.v[:, t]
            decayed = decay * state
            if isinstance(terms, DeltaTerms):
                recall = made("recall", t, torch.einsum("bsum,bsm->bsu", decayed, terms.k[:, t]))
                put = terms.beta[:, t, :, None] * (put - recall)
                recalls.append(recall)
            elif terms.dt is not None:
                put = terms.dt[:, t, :, None] * put
            writes.append(made("write", t, torch.einsum("bsu,bsm->bsum", put, terms.k[:, t])))
            state = decayed + writes[-1]
        state = made("state", t, state)
        states.append(state)
    states = torch.stack(states, 1)
    return states, [torch.stack(x, 1) if x else None for x in (recalls, writes)], read(states, terms)


def of_channels(x, channels):
    """[... c n] of directions [... n] that all channels share, or [... s n] that the channels of each head share."""
    return x[..., None, :] if x.ndim < 3 else x.repeat_interleave(channels // x.shape[-2], dim=-2)


def read(states, terms):
    if getattr(terms, "C", None) is not None and terms.C.ndim == 4:
        return (states * of_channels(terms.C, states.shape[2])).sum(-1)
    if isinstance(terms, SelectiveTerms) or (isinstance(terms, DiagonalTerms) and terms.C is not None):
        return torch.einsum("bpcn,bpn->bpc", states, terms.C)
    return states if isinstance(terms, DiagonalTerms) else torch.einsum("bpsum,bpsm->bpsu", states, terms.q)


def near(got, want, terms, dtype=None):
    """Whether they differ by rounding only: `terms` rounding errors of the largest value, in the dtype worked in.

    That is got's where `dtype` is None.
    """
    got, want = got.detach(), want.detach()
    assert got.shape == want.shape
    size = max(float(want.abs().max()), torch.finfo(torch.float32).tiny)
    off = float((got.double() - want.double()).abs().max()) / size
    allowed = terms * torch.finfo(dtype or got.dtype).eps
    assert off <= allowed, f"off by {off:.2e} of the largest value, {allowed:.2e} allowed"
