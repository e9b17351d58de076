"""Directions of tokens, and what each entry of a stack adds to their logits.

A logit before any soft cap is linear in what the last norm gives: the product with the token's row of the unembedding,
times the family's multiplier. Terms of the stream, taken through the last norm with its scale held, so have a share in
it each, and the shares add up to it (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").

How it fails: a text that is not one token, tokens outside the vocabulary, and shapes that do not fit raise
`InputError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlens.boundary_words import Unchecked, shown
from hybridlens.errors import InputError
from hybridlens.text import TokenFront
from hybridlens.weights import Weights

TokenChoice: TypeAlias = Annotated[Any, Unchecked("tokens")]
"""A text that is one token, an id, or several of either."""


def token_ids(lens: TokenFront, tokens: Any, named: str) -> Int[Tensor, "*tokens"]:
    """Ids of tokens, in the shape they were given in.

    Raises:
        InputError: what was given is no token, or not of the vocabulary.
    """
    if isinstance(tokens, str):
        return torch.tensor(lens.to_single_token(tokens))
    if isinstance(tokens, Sequence) and tokens and all(isinstance(token, str) for token in tokens):
        return torch.tensor([lens.to_single_token(token) for token in cast(Sequence[str], tokens)])
    try:
        found = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{named} = {shown(tokens)} given, expected a token, its id, or a tensor of ids") from error
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool or not found.numel():
        raise InputError(
            f"{named} have dtype {found.dtype} and shape {list(found.shape)}, expected whole numbers, one at least"
        )
    size = lens.network.cfg.d_vocab
    if int(found.min()) < 0 or int(found.max()) >= size:
        raise InputError(f"{named} {int(found.min())}..{int(found.max())} given, expected 0..{size - 1}")
    return found.long()


def token_directions(lens: TokenFront, tokens: Int[Tensor, "*tokens"]) -> Float[Tensor, "*tokens d_model"]:
    """Of each token, the gradient of its logit, before any soft cap, by what the last norm gives; float32.

    Raises:
        CheckpointError: the unembedding is quantised, or not in memory.
    """
    found, place = tokens.flatten().unique(return_inverse=True)
    rows = Weights.of_model(lens).readout(found)
    return rows[place.to(rows.device)].unflatten(0, tokens.shape) if tokens.ndim else rows[0]


def fitted(
    directions: Float[Tensor, "*tokens d_model"], lead: Sequence[int], named: str
) -> Float[Tensor, "*lead d_model"]:
    """Directions beside the rows and positions of a stack.

    Several tokens in one axis are one a row, or, where there are not as many rows, one a position.

    Args:
        directions: of tokens.
        lead: sizes of the stack's axes of rows and positions, as far as it has them.
        named: what the tokens' user calls them.

    Raises:
        InputError: there are other numbers of tokens than rows or positions.
    """
    shape = directions.shape[:-1]
    if len(shape) == 1 and len(lead) == 2 and shape[0] == lead[0]:
        return directions[:, None]
    fits = len(shape) <= len(lead) and all(
        a in (b, 1) for a, b in zip(reversed(shape), reversed(list(lead)), strict=False)
    )
    if not fits:
        raise InputError(
            f"{named} have shape {list(shape)}, but the stack's rows and positions have {list(lead)}; give one token, "
            "one a row, one a position, or [batch, pos]"
        )
    return directions


def attributed(
    stack: Float[Tensor, "entry *lead d_model"], directions: Float[Tensor, "*tokens d_model"]
) -> Float[Tensor, "entry *lead"]:
    """What each entry, taken through the last norm, adds along directions."""
    return (stack.float() * directions.to(stack.device)).sum(dim=-1)
