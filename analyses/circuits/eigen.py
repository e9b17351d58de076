"""What heads do to tokens, from their weights: whether they copy what they see, and whether they look at their equals.

Over the vocabulary a head's OV circuit is ``E W_V W_O U^T`` and its QK circuit ``E W_Q (E W_K)^T``, with the mean row
taken off U, and off the keys, which softmax cannot see (`vocabulary`). Neither is formed: A B and B A have the same
non-zero eigenvalues, so those of a matrix over the vocabulary are those of a d_head × d_head product, made of the
head's weights and of the sums in `vocabulary.Products`. Where most of the spectrum is positive, a head that sees a
token raises that same token's logit, or one that holds a token looks for the same token (Elhage et al. 2021, "A
mathematical framework for transformer circuits").

Rotary embeddings turn the query dimensions by an angle for each token of distance, which is a rotation inside the
small product, so distances cost next to nothing beyond it.

Queries and keys are taken as scores compare them: where they are normalised, with the weights of these norms. An output
gate is at rest. What is left of a norm is its scale, positive and of a token's own,
and takes no part.

How it fails: a spectrum says what a matrix does on the whole, and no more than a sum over tokens; the shares, on a
sample, say for how many tokens. Biases take no part, and every token counts with its embedding's own length, as it
does not behind a norm. The eigenvalues of a product that is nilpotent but for rounding are rounding.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from hybridlens.errors import CheckpointError, InputError, UnknownNameError
from hybridlens.weights import AttentionWeights

PARTS = ("all", "rotary", "free")
"""Of a head's query and key dimensions: all, those that the rotary embedding turns, those that it leaves alone."""

ROWS = 1024
"""Tokens of a sample that are compared with all others at once."""


def ov_eigenvalues(attention: AttentionWeights, UE: Float[Tensor, "d_model d_model"]) -> Complex[Tensor, "head d_head"]:
    """The non-zero eigenvalues of each head's ``E W_V W_O U^T``, and zeros up to d_head; complex64, in no order.

    Args:
        UE: U^T E, of `vocabulary.products`.

    Raises:
        CheckpointError: some weights are infinite or not a number.
    """
    return eigenvalues(_product(attention, attention.W_O_at_rest, UE, attention.W_V))


def qk_eigenvalues(
    attention: AttentionWeights, EE: Float[Tensor, "d_model d_model"], distance: int | None = None, part: str = "all"
) -> Complex[Tensor, "head value"]:
    """The non-zero eigenvalues of each head's ``E W_Q (E W_K)^T``, and zeros up to the part's size; complex64.

    Args:
        EE: E^T E, of `vocabulary.products`.
        distance: tokens from the key to the query, which turn the rotary dimensions and no other; None for 0.
        part: "all" dimensions of a head, its "rotary" ones, or the "free" ones, which no distance changes. Without
            a rotary embedding "free" is everything.

    Raises:
        InputError: the distance is not in the window, or the heads have no such part.
        UnknownNameError: there is no such part.
        CheckpointError: some weights are infinite or not a number.
    """
    attention, chosen = attention.compared, _dimensions(attention, part)
    found = _product(attention, attention.W_Q.transpose(1, 2), EE, attention.W_K).transpose(1, 2)
    return eigenvalues(_turned(attention, found, distance)[:, chosen, chosen])  # [key dimension, query dimension]


def positivity(eigenvalues: Complex[Tensor, "*head value"]) -> Float[Tensor, "*head"]:
    """Σλ ÷ Σ|λ|, -1 … 1: 1 where all eigenvalues are positive, 0 where they cancel or are all 0.

    Of the OV circuit it is the copying score of Elhage et al. (2021); of the QK circuit the matching score. Real,
    because complex eigenvalues of a real matrix come in conjugate pairs.
    """
    size = eigenvalues.abs().sum(-1)
    return torch.where(size > 0, eigenvalues.real.sum(-1) / size, 0.0)


def copying_share(
    attention: AttentionWeights, E: Float[Tensor, "token d_model"], U: Float[Tensor, "token d_model"]
) -> Float[Tensor, "head"]:
    """The share of tokens whose own logit a head that sees them raises most, among those of a sample.

    The sample's size decides the score: a head that ranks every token's own logit tenth of all finds many of them
    first in a small sample, and at chance the share is 1 ÷ its size. Compare shares of one sample only. A tie for
    the highest does not count.

    Args:
        U: unembedding rows of the same tokens as `E`, the sample, in their order.

    Raises:
        InputError: the sample has less than two tokens.
    """
    values = E @ attention.W_V
    written = enumerate(attention.W_O_at_rest)
    return torch.stack([_own_highest(values[attention.kv_head(head)], U @ W_O.T) for head, W_O in written])


def matching_share(
    attention: AttentionWeights, E: Float[Tensor, "token d_model"], distance: int | None = None
) -> Float[Tensor, "head"]:
    """The share of tokens whose query finds their own key the highest, among the keys of a sample.

    The sample's size decides the score, as in `copying_share`, and a tie does not count. So do the lengths of the
    rows: a key is as long as its row makes it. Rows divided by their rms are what the first norm lets through.

    Args:
        distance: tokens from every key to the query; None for 0.

    Raises:
        InputError: the sample has less than two tokens, or the distance is not in the window.
    """
    attention = attention.compared
    keys, queries = E @ attention.W_K, (_turned(attention, E @ W_Q, distance) for W_Q in attention.W_Q)
    return torch.stack([_own_highest(x, keys[attention.kv_head(head)]) for head, x in enumerate(queries)])


def _product(
    attention: AttentionWeights,
    left: Float[Tensor, "head d_head d_model"],
    middle: Float[Tensor, "d_model d_model"],
    right: Float[Tensor, "kv_head d_model d_head"],
) -> Float[Tensor, "head d_head d_head"]:
    """left @ middle @ right of every head; heads of a group are rows against the one matrix that they share."""
    groups, shared = right.shape[0], attention.n_shared
    rows = left.unflatten(0, (groups, shared)).flatten(1, 2)
    return (rows @ (middle @ right)).unflatten(1, (shared, -1)).flatten(0, 1)


def eigenvalues(matrices: Float[Tensor, "matrix n n"]) -> Complex[Tensor, "matrix n"]:
    """Of each matrix; complex64, in no order.

    Computed in float64, because a matrix far from normal multiplies the rounding of its entries, and one matrix a
    thread: several threads on one so small wait for each other, on a busy machine for most of the time.
    """
    wide = matrices.to("cpu", torch.float64)
    if not bool(wide.isfinite().all()):
        raise CheckpointError("the weights, or the sums over the vocabulary, are not all finite; nothing can be scored")
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        found = torch.stack(list(threads.map(torch.linalg.eigvals, wide)))
    return found.to(matrices.device, torch.complex64)


def _own_highest(sources: Float[Tensor, "token d_head"], targets: Float[Tensor, "token d_head"]) -> Float[Tensor, ""]:
    """The share of rows of sources @ targets^T whose entry on the diagonal is higher than all others."""
    n = len(sources)
    if n < 2:
        raise InputError(f"a sample of {n} tokens given; a token can be the highest only among 2 or more")
    highest = 0
    for start in range(0, n, ROWS):
        scores = sources[start : start + ROWS] @ targets.T
        own = scores.diagonal(start).clone()
        scores.diagonal(start).fill_(float("-inf"))
        highest += int((own > scores.amax(1)).sum())
    return torch.tensor(highest / n, device=sources.device)


def _dimensions(attention: AttentionWeights, part: str) -> slice:
    """A part's place among a head's dimensions."""
    if part not in PARTS:
        raise UnknownNameError(f"part {part!r} does not exist; expected one of {', '.join(PARTS)}")
    turning = 0 if attention.rotary is None else attention.rotary.dims
    d_head = attention.W_Q.shape[2]
    start, stop = {"all": (0, d_head), "rotary": (0, turning), "free": (turning, d_head)}[part]
    if start == stop:
        why = (
            "has no rotary embedding; use part 'free'"
            if stop == 0
            else f"turns all {d_head} dimensions; use part 'rotary'"
        )
        raise InputError(f"part {part!r} given, but layer {attention.layer} {why} or 'all'")
    return slice(start, stop)


def _turned(
    attention: AttentionWeights, queries: Float[Tensor, "*batch d_head"], distance: int | None
) -> Float[Tensor, "*batch d_head"]:
    """Queries so far from their keys, if they can see so far; None for 0."""
    window = attention.window
    if distance is not None and (distance < 0 or (window is not None and distance >= window)):
        expected = "0 or more" if window is None else f"0..{window - 1}, the window"
        raise InputError(f"distance {distance} given, but layer {attention.layer} looks back by {expected}")
    return attention.rotary.turned(queries, distance) if attention.rotary is not None and distance else queries
