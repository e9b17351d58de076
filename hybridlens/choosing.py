"""Which token comes next: the likeliest or one that is drawn, and how close the choice was.

A `Chooser` picks a token for each row of logits. What the logits leave open is said beside it: the gap between the
two best (`two_best`), and that there is none to choose from (`check_finite`).

`drawn` reads the same from TransformerLens' words (``do_sample``, ``temperature``, …).

How it fails: impossible settings of `Sampling`, and words that contradict each other, raise `InputError`. Logits with
NaN in them, or with nothing finite at their top, would still give a token, which looks like an answer: they raise
`HybridLensError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float, Int
from torch import Tensor

from hybridlens.boundary import Positive, Seed, public
from hybridlens.errors import HybridLensError, InputError

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
        freq_penalty: taken off a token's logit, once it is divided by the temperature, for each time that its row has
            read or said it; as in TransformerLens' `sample_logits`.
    """

    seed: Seed
    temperature: Annotated[float, Gt(0)] = 1.0
    top_k: Positive | None = None
    top_p: Annotated[float, Gt(0), Le(1)] | None = None
    freq_penalty: Annotated[float, Ge(0)] = 0.0


def drawn(
    sampling: Sampling | None = None,
    *,
    do_sample: bool | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    freq_penalty: float | None = None,
    seed: int | None = None,
) -> Sampling | None:
    """How to draw, said by a `Sampling` or in TransformerLens' words; None for the likeliest token.

    Args:
        sampling: the whole of it; no word may stand beside it.
        do_sample: True to draw, False for the likeliest token. None draws if any word below is given.
        temperature: as in `Sampling`; 0 is the likeliest token.
        top_k: as in `Sampling`, as are those that follow.
        top_p: likewise; beside `top_k` both restrict, where TransformerLens forgets this one.
        freq_penalty: likewise.
        seed: likewise; None takes one from torch's global generator, which ``torch.manual_seed`` sets.

    Raises:
        InputError: words that contradict each other, or a setting that cannot be.
    """
    words = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "freq_penalty": freq_penalty, "seed": seed}
    given = {name: value for name, value in words.items() if value is not None}
    if sampling is not None:
        if given or do_sample is False:
            beside = ", ".join([*given, *(["do_sample=False"] if do_sample is False else [])])
            raise InputError(f"sampling was given, and {beside} beside it; say all of it in Sampling(...)")
        return sampling
    if do_sample is False or temperature == 0:
        why = "do_sample=False" if do_sample is False else "temperature=0"
        neutral = {"temperature": (0, 1), "top_p": (1,), "freq_penalty": (0,), "seed": (seed,)}
        if do_sample is not False:
            neutral |= {"top_k": (top_k,), "top_p": (top_p,)}  # the likeliest is among them whatever they say
        idle = [f"{name}={value}" for name, value in given.items() if value not in neutral.get(name, ())]
        if idle:
            raise InputError(f"{why} takes the likeliest token, so {', '.join(idle)} would do nothing; leave one out")
        return None
    if not given and not do_sample:
        return None
    if seed is None:
        seed = int(torch.randint(2**63 - 1, ()))
    scale = 1.0 if temperature is None else temperature
    return Sampling(seed, scale, top_k, top_p, 0.0 if freq_penalty is None else freq_penalty)


def greedy(logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, "batch"]:
    """The likeliest token of each row; of equals, the lowest id."""
    return logits.argmax(dim=-1)


def sampler(sampling: Sampling, read: Sequence[Sequence[int]] = ()) -> Chooser:
    """A chooser that draws from softmax(logits / temperature), restricted as `sampling` says.

    Args:
        sampling: how.
        read: what each row has read, for `Sampling.freq_penalty`, which then needs the same rows at every call.
    """
    generator = torch.Generator().manual_seed(sampling.seed)
    counts: list[Tensor] = []

    def draw(logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, "batch"]:
        scaled = logits.detach().float().cpu() / sampling.temperature
        if sampling.freq_penalty:
            if not counts:
                counts.append(torch.zeros_like(scaled))
                for row, tokens in enumerate(read):
                    counts[0][row] = torch.bincount(torch.tensor(tokens, dtype=torch.long), minlength=scaled.shape[1])
            scaled -= sampling.freq_penalty * counts[0]
        ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(dim=-1)
        if sampling.top_k is not None:
            probabilities[:, sampling.top_k :] = 0
        if sampling.top_p is not None:
            reached = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
            probabilities = probabilities.masked_fill(reached, 0)
        picked = torch.multinomial(probabilities, 1, generator=generator)
        chosen = order.gather(1, picked)
        for count in counts:
            count.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=count.dtype))
        return chosen[:, 0].to(logits.device)

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
