"""What a model loses: the cross entropy of each next token, in nats.

For logits z over the vocabulary at a position, and the token t that comes next, −log softmax(z)_t: TransformerLens'
`lm_cross_entropy_loss`, but in float32 at least, and with padding left out: a position of padding, and the last token
of a row, have no next token.

How it fails: rows without a next token to predict raise `InputError`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hybridlens.errors import InputError
from hybridlens.shapes import Logits, Tokens


class Losses(NamedTuple):
    """Losses of a batch."""

    each: Float[Tensor, "batch next"]
    """Of each position's next token, [batch, pos − 1]; NaN where there is none."""
    predicted: Bool[Tensor, "batch next"] | None
    """Where there is one; None for everywhere."""

    def mean(self) -> Float[Tensor, ""]:
        """Over the tokens that were predicted.

        Raises:
            InputError: there are none.
        """
        read = self.each if self.predicted is None else self.each[self.predicted]
        if not read.numel():
            raise InputError("a loss was asked for, and no row has a next token; give rows of at least two tokens")
        return read.mean()


def next_token_losses(logits: Logits, tokens: Tokens, real: Bool[Tensor, "batch pos"] | None = None) -> Losses:
    """The loss of every next token.

    Args:
        logits: at every position; what stands at padding does not matter.
        tokens: at the same positions.
        real: False at padding; None where all rows are full.
    """
    logits, following = logits[:, :-1], tokens.to(logits.device)[:, 1:]
    if real is None:
        return Losses(_losses(logits, following), None)
    real = real.to(logits.device)
    predicted = real[:, :-1] & real[:, 1:]
    nats = _losses(logits[predicted], following[predicted])
    return Losses(nats.new_full(following.shape, torch.nan).masked_scatter(predicted, nats), predicted)


def _losses(logits: Float[Tensor, "*at vocab"], tokens: Int[Tensor, "*at"]) -> Float[Tensor, "*at"]:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return -torch.log_softmax(wide, dim=-1).gather(-1, tokens[..., None])[..., 0]
