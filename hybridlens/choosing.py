"""Which token comes next: the likeliest or one that is drawn, and how close the choice was.

A `Chooser` picks a token for each row of logits. What the logits leave open is said beside it: the gap between the
two best (`two_best`), and that there is none to choose from (`check_finite`).

How it fails: impossible settings of `Sampling` raise `InputError`. Logits with NaN in them, or with nothing finite
at their top, would still give a token, which looks like an answer: they raise `HybridLensError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import torch
from annotated_types import Gt, Le
from jaxtyping import Float, Int
from torch import Tensor

from hybridlens.boundary import Positive, Seed, public
from hybridlens.errors import HybridLensError

Chooser: TypeAlias = Callable[[Tensor], Tensor]
"""Picks the next token of each row from its logits [b v]."""


@public
@dataclass(frozen=True)
class Sampling:
    """How to draw tokens; the same seed gives the same draws for the same batch.

    Args:
        seed: of the generator of this run alone.
        temperature: divides the logits; above 0.
        top_k: draw among so many of the likeliest; None for all.
        top_p: draw among the likeliest that together hold this probability; None for all.
    """

    seed: Seed
    temperature: Annotated[float, Gt(0)] = 1.0
    top_k: Positive | None = None
    top_p: Annotated[float, Gt(0), Le(1)] | None = None


def greedy(logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, "batch"]:
    """The likeliest token of each row; of equals, the lowest id."""
    return logits.argmax(dim=-1)


def sampler(sampling: Sampling) -> Chooser:
    """A chooser that draws from softmax(logits / temperature), restricted as `sampling` says."""
    generator = torch.Generator().manual_seed(sampling.seed)

    def draw(logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, "batch"]:
        scaled = logits.detach().float().cpu() / sampling.temperature
        ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(dim=-1)
        if sampling.top_k is not None:
            probabilities[:, sampling.top_k :] = 0
        if sampling.top_p is not None:
            reached = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
            probabilities = probabilities.masked_fill(reached, 0)
        picked = torch.multinomial(probabilities, 1, generator=generator)
        return order.gather(1, picked)[:, 0].to(logits.device)

    return draw


def two_best(logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch 2"]:
    """The two highest logits of each row, on the CPU, in float32; NaN comes before any number."""
    return logits.float().topk(2, dim=-1).values.cpu()


def check_finite(highest: Float[Tensor, "row"], rows: Sequence[int], tokens: Sequence[int]) -> None:
    """Refuse to choose where there is nothing to choose from.

    Args:
        highest: the highest logit of each choice, NaN where any of its logits is.
        rows: of the batch, for the message.
        tokens: which new token each choice makes, counted from 0.

    Raises:
        HybridLensError: naming the first row whose highest logit is not finite. Single logits of minus infinity,
            by which edits forbid tokens, are fine.
    """
    if bool(highest.isfinite().all()):
        return
    worst = int((~highest.isfinite()).nonzero()[0, 0])
    raise HybridLensError(
        f"row {rows[worst]}, new token {tokens[worst]}: the model's logits are not finite; check its weights, and "
        "what edits write"
    )
