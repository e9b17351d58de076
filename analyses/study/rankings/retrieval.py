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
from jaxtyping import Float, Int
from torch import Tensor

from analyses.heads.ranking import HeadRanking
from analyses.study.rankings.prompts import Needle, in_words, needles_of
from hybridlens.boundary import Positive, public
from hybridlens.display import Grid, Piece, Table, many, number
from hybridlens.hooks import Edit, HookPoint, reads_only
from hybridlens.model import HybridLens
from hybridlens.niah import Prompt
from hybridlens.shapes import Pattern
from hybridlens.viz.plotted import Plotted


class _Looks(NamedTuple):
    """Fields of `Looks`."""

    answers: list[tuple[int, ...]]
    """The untouched model's own answers: token ids, end-of-text left out; may be empty."""
    copied: Float[Tensor, "prompt attn_layer head"]
    """Retrieval score, 0 … 1: the share of the needle's distinct tokens that the head copied."""
    mass: Float[Tensor, "prompt attn_layer head"]
    """Mean attention weight on the needle, 0 … 1, from the queries that chose the answer. Where the answer is empty,
    from the one that chose end-of-text."""


class Looks(Plotted, _Looks):
    """What every head did while each prompt was answered."""

    __slots__ = ()

    def summary(self) -> str:
        """How many prompts were answered, and how much was copied."""
        prompts, layers, heads = self.copied.shape
        best = number(float(self.copied.mean(dim=0).max()), 2)
        return f"{many(prompts, 'prompt')} × {many(layers * heads, 'head')}; the best retrieval score {best}"

    def table(self) -> Table:
        """A row for each prompt and head; attention layers by their places."""
        meanings = {"copied": "share of the needle's tokens that the head copied", "mass": "attention to the needle"}
        axes: dict[str, None] = dict.fromkeys(("prompt", "attn_layer", "head"))
        return Table.of({"copied": self.copied, "mass": self.mass}, axes, meanings)

    def view(self) -> tuple[Piece, ...]:
        """Both scores of every head, mean over prompts."""
        sizes = zip("LH", self.mass[0].shape, strict=True)
        layers, heads = ([f"{letter}{i}" for i in range(n)] for letter, n in sizes)
        words = "attention layers, by their places", "heads"
        named = (("retrieval score", self.copied), ("attention to the needle", self.mass))
        return tuple(Grid(values.mean(dim=0), layers, heads, *words, name) for name, values in named)


@public
def looks(
    lens: HybridLens, prompts: Sequence[Prompt], batch_size: Positive = 16, max_new_tokens: Positive | None = None
) -> Looks:
    """Answer every prompt with all heads on, and note what they looked at.

    Args:
        lens: the model.
        prompts: with a needle each; of any lengths.
        batch_size: prompts answered together.
        max_new_tokens: tokens of an answer at most; None for as many as the prompt's needle has.

    Raises:
        InputError: no prompt, one without a needle, no attention, a number below 1, or an answer beyond the context.
    """
    needles = needles_of(lens, prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].tokens))
    found: dict[int, tuple[tuple[int, ...], Tensor, Tensor]] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        most = [max_new_tokens or len(needles[index].tokens) for index in chosen]
        asked = [(prompts[index], needles[index]) for index in chosen]
        found |= zip(chosen, _answered(lens, asked, most), strict=True)
    answers, copied, mass = zip(*(found[index] for index in range(len(prompts))), strict=True)
    return Looks(list(answers), torch.stack(copied), torch.stack(mass))


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


def _answered(
    lens: HybridLens, asked: Sequence[tuple[Prompt, Needle]], most: Sequence[int]
) -> list[tuple[tuple[int, ...], Float[Tensor, "attn_layer head"], Float[Tensor, "attn_layer head"]]]:
    """What `Looks` holds of each prompt of one batch, whose answers have at most so many tokens."""
    prompts = [list(prompt.tokens) for prompt, _ in asked]
    held = torch.zeros(len(asked), max(map(len, prompts)) + max(most), dtype=torch.bool, device=lens.device)
    for row, (_, needle) in enumerate(asked):
        held[row, list(needle.positions)] = True
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in lens.cfg.attention_layers]
    tops: list[Tensor] = []  # the position of the most attended key, layer by layer of each step
    masses: list[Tensor] = []  # weight on the needle

    @reads_only
    def look(pattern: Pattern, hook: HookPoint) -> None:
        assert hook.slots is not None  # it is there while a hook of the pattern runs
        weights = pattern[:, :, 0].float()
        positions = hook.slots.key_positions.to(weights.device)
        inside = held.to(weights.device).gather(1, positions.clamp(min=0)) & (positions >= 0)
        tops.append(positions.gather(1, weights.argmax(-1)).cpu())
        masses.append((weights * inside[:, None]).sum(-1).cpu())

    out = lens.generate(prompts, max(most), [Edit(name, look, "decode") for name in names])
    top, mass = (torch.stack(part).unflatten(0, (-1, len(names))) for part in (tops, masses))  # step layer batch head
    found: list[tuple[tuple[int, ...], Tensor, Tensor]] = []
    for row, (said, length, limit) in enumerate(zip(out.tokens.tolist(), out.lengths.tolist(), most, strict=True)):
        answer = tuple(token for token in said[: min(length, limit)] if token not in lens.cfg.eos_token_ids)
        queries = max(1, len(answer))
        found.append((answer, copied_share(top[:queries, :, row], answer, *asked[row]), mass[:queries, :, row].mean(0)))
    return found


def retrieval_rankings(lens: HybridLens, prompts: Sequence[Prompt], batch_size: int = 16) -> dict[str, HeadRanking]:
    """The "retrieval score" and "needle mass", both averaged over prompts, from one pass over them."""
    seen = looks(lens, prompts, batch_size)
    layers, words = lens.cfg.attention_layers, in_words(prompts)
    said = "the untouched model's own greedy answer"
    score = f"retrieval score (share of the needle's distinct tokens copied, 0..1) in {said}, mean over {words}"
    mass = f"attention weight on the needle (0..1) from the queries that choose {said}, mean over {words}"
    return {
        "retrieval score": HeadRanking(seen.copied.mean(0), layers, score, lower_is_better=False),
        "needle mass": HeadRanking(seen.mass.mean(0), layers, mass, lower_is_better=False),
    }
