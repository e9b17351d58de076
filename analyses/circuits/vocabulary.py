"""The vocabulary as circuits need it: two products over all tokens, the mean token, and a sample.

A head's circuits are matrices over the vocabulary, far too large to form. Their spectra need no more than the
products of embedding and unembedding summed over the tokens, d_model × d_model, which all heads share and which one
pass over the vocabulary gives, a block of tokens at a time.

Both are centred: what all tokens have in common is taken off. Softmax does not see it. A query's scores for all keys
may grow by one number, and a head may raise all logits by one number, without any weight or probability changing;
so subtracting the mean token from the keys, or the mean row from the unembedding, as TransformerLens does when it
folds weights, is exact. Left in, one eigenvalue made of that common direction decides the spectrum of a head that
looks at no token's content at all.

How it fails: `CheckpointError` where the embedding cannot be read, `InputError` for a sample of no token. A token that
was never trained counts as much as any other, so a vocabulary that is mostly padding says little.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlens.effort import pieces
from hybridlens.errors import InputError
from hybridlens.weights import Weights
from hybridlens.weights.vocabulary import BLOCK

TILE = 512
"""Columns of the symmetric product that are computed at once, from the diagonal on."""


class Products(NamedTuple):
    """Sums over the whole vocabulary, float32, where the weights are."""

    UE: Float[Tensor, "d_model d_model"]
    """U^T E, with the mean row of either taken off: entry (i, j) is the sum over tokens of unembedding entry i times
    embedding entry j, less what all tokens share."""
    EE: Float[Tensor, "d_model d_model"]
    """E^T E, likewise; exactly symmetric."""
    mean: Float[Tensor, "d_model"]
    """Mean over tokens of the embedding divided by its rms: the mean content that the first norm lets through."""


def products(weights: Weights, block: int = BLOCK) -> Products:
    """The products that all heads share, in one pass over the vocabulary.

    Takes 2 · d_vocab · d_model² floating-point operations for U^T E and half of that for E^T E; of tied weights only
    the latter is computed, since U is E / embed_scale · final norm. Memory: two d_model² matrices and a few
    block × d_model. In `mean` the norm's epsilon is left out, and a token whose embedding is zero adds nothing.

    Raises:
        InputError: `block`, tokens at once, is below 1.
        CheckpointError: the embedding or unembedding is missing or cannot be read.
    """
    if block < 1:
        raise InputError(f"blocks of {block} tokens given; expected 1 or more")
    d = weights.cfg.d_model
    EE = torch.zeros(d, d, device=weights.cfg.device)
    UE = torch.zeros_like(EE)
    total, sum_E, sum_U = (torch.zeros(d, device=weights.cfg.device) for _ in range(3))
    done = pieces(-(-weights.cfg.d_vocab // block))
    for _, E, U in weights.vocabulary(block):
        for start in range(0, d, TILE):  # on and above the diagonal
            EE[start : start + TILE, start:].addmm_(E[:, start : start + TILE].T, E[:, start:])
        if not weights.tied:
            UE.addmm_(U.T, E)
        sum_E += E.sum(0)
        sum_U += U.sum(0)
        rms = torch.linalg.vector_norm(E, dim=1) / d**0.5
        total += torch.where(rms > 0, 1 / rms, 0.0) @ E
        done()
    n = weights.cfg.d_vocab
    EE.addr_(sum_E, sum_E, alpha=-1 / n)
    above = EE.triu(1)
    EE = EE.triu_().add_(above.T)
    if weights.tied:
        torch.mul(EE, (weights.final_norm / weights.embed_scale)[:, None], out=UE)
    else:
        UE.addr_(sum_U, sum_E, alpha=-1 / n)
    return Products(UE, EE, total / n)


def sample(weights: Weights, n: int, seed: int) -> Int[Tensor, "token"]:
    """`n` distinct tokens drawn at random, ascending, on the CPU; the whole vocabulary where it has no more than that.

    Raises:
        InputError: `n` is below 1.
    """
    if n < 1:
        raise InputError(f"a sample of {n} tokens given; expected 1 or more")
    size = weights.cfg.d_vocab
    if n >= size:
        return torch.arange(size)
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:n].sort().values
