"""Strengths that combine circuits: induction, and retrieval.

An induction head finds the token after an earlier occurrence of the current one and copies it (Olsson et al. 2022,
"In-context learning and induction heads"). Its keys have to say what stood one token before them, which an earlier
writer must have put there: in a transformer a previous-token head, in a hybrid also the lag-1 tap of a recurrent
layer's convolution. So:

* a writer's lag-1 weight is, for a head, what its profile puts on distance 1 beyond an even spread, and for a
  recurrent layer the share of its linear path's squared norm at lag 1;
* induction strength is the largest lag-1 weight × K-composition beyond a level over all earlier writers, × copying;
* induction matching asks whether the keys made by that writer match the token itself: Σλ ÷ Σ|λ| of
  W_E W_Q W_Kᵀ W_wᵀ W_Eᵀ, with W_w the writer's map, mean over distances;
* retrieval strength combines these with copying.

Two levels are offered (`LEVELS`). "random" subtracts what random directions would have, a level for a stream whose
directions are used alike, which those of real models are not: in Gemma 3 270M nearly all pairs of heads lie below it,
and no head inducts. "writers" asks which of its own earlier writers a head's keys single out, as a ratio to their mean,
and takes nothing for granted; a writer that its rivals equal, or an only one, counts for nothing.

How it fails: all of it looks at one writer at a time, and at the direct path from the embedding; a signal that
several writers make together, or that an MLP makes, is not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.circuits.eigen import eigenvalues, positivity
from analyses.circuits.paths import LinearPath
from hybridlens.weights import AttentionWeights, RecurrentWeights, Weights

LEVELS: Mapping[str, str] = {
    "random": "what random directions would have",
    "writers": "the mean over the head's earlier writers, of which it is a multiple",
}
"""What K-composition has to exceed -> that in words."""


class Induction(NamedTuple):
    """The best lag-1 writer of each head, and what it makes of the head."""

    strength: Float[Tensor, "attn_layer head"]
    """Lag-1 weight × K-composition beyond the level × copying, each where above 0."""
    writer: Int[Tensor, "attn_layer head"]
    """Recurrent layers first, then heads in order; -1 for none."""


def induction(
    heads: Float[Tensor, "attn_layer head writer_layer writer_head"],
    recurrent: Float[Tensor, "attn_layer head ssm_layer"],
    profile: Float[Tensor, "attn_layer head back"],
    lag_share: Float[Tensor, "ssm_layer lag"],
    copying: Float[Tensor, "attn_layer head"],
) -> Induction:
    """Induction strength of every head.

    Args:
        heads: K-composition with earlier heads beyond the level; NaN where not earlier.
        recurrent: the same with recurrent layers at lag 1.
        lag_share: of each recurrent layer's linear path.
    """
    beyond = (profile[..., 1] - 1 / profile.shape[-1]).clamp(min=0)
    one_back = lag_share[:, 1] if lag_share.shape[1] > 1 else lag_share.new_zeros(lag_share.shape[0])
    weighted = torch.cat([recurrent * one_back, (heads * beyond).flatten(2)], dim=2)
    best, writer = weighted.nan_to_num(nan=0.0).clamp(min=0).max(dim=2)
    return Induction(best * copying.clamp(min=0), writer.masked_fill(best == 0, -1))


def beyond_writers(
    heads: Float[Tensor, "attn_layer head writer_layer writer_head"],
    recurrent: Float[Tensor, "attn_layer head ssm_layer"],
) -> tuple[Float[Tensor, "attn_layer head writer_layer writer_head"], Float[Tensor, "attn_layer head ssm_layer"]]:
    """By how much composition with each writer exceeds its mean over the reader's earlier writers, as a share of it.

    Both have NaN where a writer is not earlier; 0 where all writers compose alike, or none does.

    Args:
        heads: K-composition with earlier heads.
        recurrent: the same with recurrent layers at lag 1.
    """
    mean = torch.cat([recurrent, heads.flatten(2)], dim=2).nanmean(dim=2)

    def beyond(scores: Tensor) -> Tensor:
        level = mean.view(*mean.shape, *[1] * (scores.ndim - 2)).expand_as(scores)
        return torch.where(level == 0, scores, scores / level - 1)

    return beyond(heads), beyond(recurrent)


def induction_matching(
    weights: Weights,
    layer: AttentionWeights,
    writers: Int[Tensor, "head"],
    paths: Sequence[LinearPath],
    EE: Float[Tensor, "d_model d_model"],
    distances: Sequence[int],
) -> Float[Tensor, "head"]:
    """Σλ ÷ Σ|λ| of the matching of tokens through each head's lag-1 writer, mean over distances; 0 without a writer.

    Args:
        writers: as `Induction.writer` has them, for this layer.
        paths: of all recurrent layers, in order.
        EE: W_Eᵀ W_E.
    """
    layer = layer.compared
    found = torch.zeros(layer.n_heads, device=EE.device)
    read: dict[tuple[int, int], Tensor] = {}
    for head, writer in enumerate(writers.tolist()):
        if writer == -1:
            continue
        pair = (writer, layer.kv_head(head))
        if pair not in read:  # the keys that the writer makes of the vocabulary, and back to it
            read[pair] = EE @ _written(weights, writer, paths, layer.W_K[pair[1]])
        # With the spectrum of E W_Q R Kᵀ, for queries turned to each distance; one where nothing turns.
        product = read[pair].T @ layer.W_Q[head]
        turn = None if layer.rotary is None else layer.rotary.turned
        products = [product] if turn is None else [turn(product, distance) for distance in distances]
        found[head] = positivity(eigenvalues(torch.stack(products))).mean()
    return found


def _written(weights: Weights, writer: int, paths: Sequence[LinearPath], W_K: Tensor) -> Tensor:
    """W_w W_K: the keys that a writer's output makes, [d_model d_head]."""
    if writer < len(paths):
        path = paths[writer]
        recurrent: RecurrentWeights = weights.recurrent(path.layer)
        return recurrent.parts.W_in @ (path.channels[:, 1:2] * (recurrent.parts.W_out @ W_K))
    at, head = divmod(writer - len(paths), weights.cfg.n_heads)
    attention = weights.attention(weights.cfg.attention_layers[at])
    return attention.head(head).W_V @ (attention.W_O_at_rest[head] @ W_K)


RETRIEVAL = "induction matching × copying"
"""Of what was tried, what kept tiny-jamba's retrieval with the fewest heads; tested on tiny-recurrentgemma.
``python -m tests.benchmarks.choosing`` makes the choice and the test again."""


def retrieval(
    induction_match: Float[Tensor, "attn_layer head"], copying: Float[Tensor, "attn_layer head"]
) -> Float[Tensor, "attn_layer head"]:
    """Retrieval strength: a head that finds what stood before the current token earlier on, and copies it.

    Either counts where above 0.
    """
    return induction_match.clamp(min=0) * copying.clamp(min=0)
