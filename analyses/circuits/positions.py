"""What heads prefer by distance alone: the attention pattern among tokens that are all the same.

The score of a query for a key `distance` tokens back is a sum over the pairs of dimensions that the rotary embedding
turns, a cos(f distance) + b sin(f distance), and a constant of the dimensions that it leaves alone. With query and key
made of the mean token nothing but distance is left, so that a previous-token head peaks at 1 and a head at the edge of
its window at window - 1.

How it fails: a head whose preference by distance depends on the token (its queries differ) shows only what the mean
token does. Without a rotary embedding the profile is flat, which says nothing: such heads may still learn where tokens
stand from what earlier layers write.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.errors import InputError
from hybridlens.weights import AttentionWeights


def profile(
    attention: AttentionWeights, mean_resid: Float[Tensor, "d_model"], distances: int
) -> Float[Tensor, "head distance"]:
    """Each head's attention to keys 0 … distances - 1 tokens back, all of the same content as the query; rows sum to 1.

    Biases and norms of queries and keys are included, and scores are scaled and capped as the layer does, so this is
    the pattern itself: of a query that sees fewer keys it is the part that it sees, made to sum to 1.

    Args:
        mean_resid: the content, as it leaves the norm before the norm's weight: `vocabulary.Products.mean`, or a mean
            over real activations of ``ln1.hook_normalized``, or of the stream where no norm is before the heads.
        distances: how many; the window has all that a head can see.

    Raises:
        InputError: `distances` is below 1 or more than the window.
    """
    window = attention.window
    if distances < 1 or (window is not None and distances > window):
        expected = "1 or more" if window is None else f"1..{window}, the window"
        raise InputError(f"{distances} distances given for layer {attention.layer}; expected {expected}")
    content = mean_resid.double()
    q = attention.normed(_read(content, attention.W_Q, attention.b_Q), attention.q_norm)
    k = attention.normed(_read(content, attention.W_K, attention.b_K), attention.k_norm)
    k = k.repeat_interleave(attention.n_shared, 0)
    q = q.expand(distances, -1, -1)
    if attention.rotary is not None:
        q = attention.rotary.turned(q, torch.arange(distances, device=q.device)[:, None, None])
    scores, cap = torch.einsum("bhe,he->hb", q, k) * attention.scale, attention.soft_cap
    return torch.softmax(scores if cap is None else torch.tanh(scores / cap) * cap, dim=-1).float()


def _read(
    content: Float[Tensor, "d_model"],
    weight: Float[Tensor, "some_head d_model d_head"],
    bias: Float[Tensor, "some_head d_head"] | None,
) -> Float[Tensor, "some_head d_head"]:
    """What every head makes of one content, in float64."""
    found = torch.einsum("d,hde->he", content, weight.double())
    return found if bias is None else found + bias.double()
