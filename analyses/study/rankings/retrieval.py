"""What heads look at while the model gives the needle: the retrieval score, and attention to the needle.

Each prompt is read and answered greedily by the untouched model, and the attention of every decode step is looked
at as it happens: the query that chooses a token is the one before it (the prompt's last token chooses the answer's
first), as in the code of Wu et al. Only these queries' weights are ever formed, and no pattern of a whole prompt.

* Retrieval score (Wu et al. 2024, "Retrieval Head Mechanistically Explains Long-Context Factuality"): a head copies
  the token being chosen when its most attended key lies in the needle and holds that very token. The score is
  |g ∩ k| / |k|, with k the set of the needle's tokens and g the set of those that the head copied. It is the paper's
  formula, in which a token that the needle holds twice counts once; the authors' code counts steps instead, over
  the needle's length. It also leaves out prompts that the model fails; here they count with what was copied.
* Needle mass: the attention weight on the needle's tokens, averaged over the queries that choose the answer.

The answer is what the model says, at most as many tokens as the needle has unless a number is given, without its
end-of-text token. Where it says something else, few heads copy and scores are low: the model's failures show.

How it fails: a head that reads the needle one token off, its neighbour having brought the word along through a
recurrent layer's convolution, copies nothing by this score although it may retrieve. The mass says nothing of what
the head writes. In a sliding window that the needle has left, both are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.heads.ranking import HeadRanking
from analyses.study.rankings.prompts import Needle, check_batch_size, in_words, needles_of
from hybridlens.errors import InputError
from hybridlens.hooks import Edit, HookPoint, reads_only
from hybridlens.model import HybridLens
from hybridlens.niah import Prompt
from hybridlens.shapes import Pattern


class Looks(NamedTuple):
    """What every head did while each prompt was answered."""

    answers: list[tuple[int, ...]]
    """The untouched model's own answers: token ids, end-of-text left out; may be empty."""
    copied: Float[Tensor, "prompt attn_layer head"]
    """Retrieval score, 0 … 1: the share of the needle's distinct tokens that the head copied."""
    mass: Float[Tensor, "prompt attn_layer head"]
    """Mean attention weight on the needle, 0 … 1, from the queries that chose the answer. Where the answer is empty,
    from the one that chose end-of-text."""


class Step(NamedTuple):
    """What the heads of one layer looked at in one decode step."""

    top: Int[Tensor, "batch head"]
    """Position in the text of the most attended key; of equals, the first."""
    mass: Float[Tensor, "batch head"]
    """Weight on the needle."""


def looks(
    lens: HybridLens, prompts: Sequence[Prompt], batch_size: int = 16, max_new_tokens: int | None = None
) -> Looks:
    """Answer every prompt with all heads on, and note what they looked at.

    Args:
        lens: the model.
        prompts: with a needle each; of any lengths.
        batch_size: prompts answered together.
        max_new_tokens: tokens of an answer at most; None for as many as the prompt's needle has.

    Raises:
        InputError: no prompt, one without a needle, no attention, a size below 1, or an answer beyond the context.
    """
    needles = needles_of(lens, prompts)
    check_batch_size(batch_size)
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"max_new_tokens {max_new_tokens} given, expected at least 1")
    answers: list[tuple[int, ...]] = [()] * len(prompts)
    shape = len(prompts), len(lens.cfg.attention_layers), lens.cfg.n_heads
    copied, mass = torch.zeros(shape), torch.zeros(shape)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].tokens))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        most = [max_new_tokens or len(needles[index].tokens) for index in chosen]
        rows, steps = _answer(lens, [prompts[index] for index in chosen], [needles[index] for index in chosen], most)
        for row, index in enumerate(chosen):
            answers[index] = rows[row]
            queries = max(1, len(rows[row]))
            top = torch.stack([torch.stack([step.top[row] for step in layer[:queries]]) for layer in steps], dim=1)
            copied[index] = copied_share(top, rows[row], prompts[index], needles[index])
            weights = [torch.stack([step.mass[row] for step in layer[:queries]]).mean(0) for layer in steps]
            mass[index] = torch.stack(weights)
    return Looks(answers, copied, mass)


def copied_share(
    top: Int[Tensor, "step attn_layer head"], answer: Sequence[int], prompt: Prompt, needle: Needle
) -> Float[Tensor, "attn_layer head"]:
    """The retrieval score of one prompt: the share of the needle's distinct tokens that each head copied.

    Args:
        top: the most attended position of the query that chose each of the answer's tokens.
        answer: those tokens.
        prompt: what was answered.
        needle: where it is.
    """
    wanted = set(needle.tokens)
    share = torch.zeros(top.shape[1:])
    for token in wanted & set(answer):
        places = torch.tensor([at for at in needle.positions if prompt.tokens[at] == token])
        steps = [step for step, said in enumerate(answer) if said == token]
        share += torch.isin(top[steps], places).any(0)
    return share / len(wanted)


def _answer(
    lens: HybridLens, prompts: Sequence[Prompt], needles: Sequence[Needle], most: Sequence[int]
) -> tuple[list[tuple[int, ...]], list[list[Step]]]:
    """The answers of one batch, at most so many tokens each, and what was looked at: [attention layer][step]."""
    layers = lens.cfg.attention_layers
    held = _positions(prompts, needles, max(most)).to(lens.device)
    steps: dict[str, list[Step]] = {f"blocks.{layer}.attn.hook_pattern": [] for layer in layers}

    @reads_only
    def look(pattern: Pattern, hook: HookPoint) -> None:
        assert hook.slots is not None  # it is there while a hook of the pattern runs
        weights = pattern[:, :, 0].float()
        positions = hook.slots.key_positions.to(weights.device)
        inside = held.to(weights.device).gather(1, positions.clamp(min=0)) & (positions >= 0)
        top = positions.gather(1, weights.argmax(-1))
        mass = (weights * inside[:, None]).sum(-1)
        steps[str(hook.name)].append(Step(top.cpu(), mass.cpu()))

    out = lens.generate(
        [list(prompt.tokens) for prompt in prompts], max(most), [Edit(name, look, "decode") for name in steps]
    )
    ends = set(lens.cfg.eos_token_ids)
    said: list[tuple[int, ...]] = []
    for row, length, limit in zip(out.tokens.tolist(), out.lengths.tolist(), most, strict=True):
        said.append(tuple(token for token in row[: min(length, limit)] if token not in ends))
    return said, [*steps.values()]


def _positions(prompts: Sequence[Prompt], needles: Sequence[Needle], new: int) -> Bool[Tensor, "batch pos"]:
    """True at the needle's positions, for prompts and what follows them."""
    held = torch.zeros(len(prompts), max(len(prompt.tokens) for prompt in prompts) + new, dtype=torch.bool)
    for row, needle in enumerate(needles):
        held[row, sorted(needle.positions)] = True
    return held


def retrieval_rankings(
    lens: HybridLens, prompts: Sequence[Prompt], batch_size: int = 16, max_new_tokens: int | None = None
) -> dict[str, HeadRanking]:
    """The "retrieval score" and "needle mass", both averaged over prompts, from one pass over them.

    Raises:
        InputError: as `looks`.
    """
    seen = looks(lens, prompts, batch_size, max_new_tokens)
    layers, words = lens.cfg.attention_layers, in_words(prompts)
    said = "the untouched model's own greedy answer"
    score = f"retrieval score (share of the needle's distinct tokens copied, 0..1) in {said}, mean over {words}"
    mass = f"attention weight on the needle (0..1) from the queries that choose {said}, mean over {words}"
    return {
        "retrieval score": HeadRanking(seen.copied.mean(0), layers, score, lower_is_better=False),
        "needle mass": HeadRanking(seen.mass.mean(0), layers, mass, lower_is_better=False),
    }
