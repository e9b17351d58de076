"""What is lost when one head is silent: the log-probability of the needle's own words.

The model reads a prompt and is given the needle as its answer (teacher forcing: the tokens that stand in the prompt,
whatever the model itself would say). The effect of a head is by how much the mean log-probability of these tokens
falls when its `z` is 0 throughout, in reading and in answering, all other heads as they were. Every row of a batch
carries its own silent head, so all heads of all prompts take few forward passes. Logits are computed for the answer
only.

How it fails: heads that stand in for each other each have a small effect alone. A head can have a large effect
without retrieving, by upsetting what the others rest on. Where a tokenizer writes the needle's first word otherwise
at the start of an answer than in the context, that token is unlikely under every ablation; its share of the drop
is small, but it is there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from analyses.heads.ranking import HeadRanking
from analyses.heads.sparsification import keep_rows
from analyses.study.rankings.prompts import Needle, in_words, needles_of
from hybridlens.boundary import Positive, public
from hybridlens.model import HybridLens
from hybridlens.niah import Prompt


@public
def ablation_effects(
    lens: HybridLens, prompts: Sequence[Prompt], batch_size: Positive = 16
) -> Float[Tensor, "prompt attn_layer head"]:
    """By how much silencing each head alone lowers the needle's mean log-probability, in nats per token.

    Args:
        lens: the model.
        prompts: with a needle each; of any lengths.
        batch_size: rows of a forward pass; a row is one prompt with one silent head.

    Returns:
        positive where the head helps.

    Raises:
        InputError: no prompt, one without a needle, no attention, a size below 1, or an answer beyond the context.
    """
    needles = needles_of(lens, prompts)
    masks = one_silent(len(lens.cfg.attention_layers), lens.cfg.n_heads)
    means = torch.zeros(len(prompts), len(masks))
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].tokens))  # rows are about equally long
    for cells in torch.cartesian_prod(torch.tensor(order), torch.arange(len(masks))).split(batch_size):
        index, mask = cells.unbind(1)
        chosen = [(prompts[at], needles[at]) for at in index.tolist()]
        means[index, mask] = needle_log_probability(lens, chosen, masks[mask])
    return (means[:, :1] - means[:, 1:]).view(-1, *masks.shape[1:])


def one_silent(layers: int, heads: int) -> Bool[Tensor, "mask attn_layer head"]:
    """The mask that keeps all heads, then for each head the one that keeps all others."""
    return ~torch.eye(layers * heads + 1, dtype=torch.bool)[:, 1:].reshape(-1, layers, heads)


@torch.no_grad()
def needle_log_probability(
    lens: HybridLens, rows: Sequence[tuple[Prompt, Needle]], masks: Bool[Tensor, "batch attn_layer head"]
) -> Float[Tensor, "batch"]:
    """Mean log-probability of each row's needle as its answer, in nats per token, when only the mask's heads speak.

    Raises:
        InputError: a prompt with its needle exceeds the context.
    """
    edits = keep_rows(lens, masks)
    state = lens.prefill([list(prompt.tokens[:-1]) for prompt, _ in rows], edits, last_only=True).state
    given = [[prompt.tokens[-1], *needle.tokens[:-1]] for prompt, needle in rows]
    logits = lens.extend(state, given, edits, phase="decode").logits
    wanted = [torch.tensor(needle.tokens, device=logits.device) for _, needle in rows]
    losses = [cross_entropy(row[: len(ids)].float(), ids) for row, ids in zip(logits, wanted, strict=True)]
    return -torch.stack(losses).cpu()


def ablation_ranking(lens: HybridLens, prompts: Sequence[Prompt], batch_size: int = 16) -> HeadRanking:
    """Heads by the effect of silencing each alone, averaged over prompts; the largest drop first."""
    effects = ablation_effects(lens, prompts, batch_size).mean(0)
    source = (
        "drop of the mean log-probability of the needle given as the answer, in nats per token, when this head alone "
        f"is silent in reading and answering, mean over {in_words(prompts)}"
    )
    return HeadRanking(effects, lens.cfg.attention_layers, source, lower_is_better=False)
