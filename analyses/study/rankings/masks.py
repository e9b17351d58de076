"""Which heads speak, as masks over all of a model's heads: checked, and each distinct one once.

`sparsification.keep_rows` gives every row of a batch its own.

How it fails: masks of another shape than the model's heads raise `InputError`. With no head, RecurrentGemma still adds
its output bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from analyses.heads.ranking import HeadRanking
from analyses.heads.sparsification import keep_heads
from analyses.study.rankings.prompts import check_heads
from hybridlens.errors import InputError
from hybridlens.hooks import Edit
from hybridlens.model import HybridLens


def check_masks(lens: HybridLens, kept: Sequence[Tensor]) -> Bool[Tensor, "condition attn_layer head"]:
    """The masks as one tensor on the CPU.

    Raises:
        InputError: there is none, one is not of truth values, or not of the model's attention layers and heads; or
            the model has no attention.
    """
    check_heads(lens)
    layers, heads = len(lens.cfg.attention_layers), lens.cfg.n_heads
    if not kept:
        raise InputError("no condition given, expected at least one mask of heads, such as HeadRanking.kept(8)")
    for index, mask in enumerate(kept):
        if mask.dtype != torch.bool or mask.shape != (layers, heads):
            raise InputError(
                f"condition {index} is a mask {list(mask.shape)} of {mask.dtype}, expected truth values "
                f"[{layers}, {heads}]: the model's attention layers and their heads"
            )
    return torch.stack([mask.cpu() for mask in kept])


def distinct(
    masks: Bool[Tensor, "condition attn_layer head"],
) -> tuple[Bool[Tensor, "mask attn_layer head"], Int[Tensor, "condition"]]:
    """The masks without repetitions, in order of first use, and which of them each condition has."""
    places: dict[tuple[bool, ...], int] = {}
    of = [places.setdefault(tuple(mask.flatten().tolist()), len(places)) for mask in masks]
    firsts = [of.index(place) for place in range(len(places))]
    return masks[firsts], torch.tensor(of)


def keep_mask(lens: HybridLens, mask: Bool[Tensor, "attn_layer head"]) -> list[Edit]:
    """Edits for runs of any batch size: in every row only these heads speak."""
    ranking = HeadRanking(mask.float(), lens.cfg.attention_layers, "heads kept", lower_is_better=False)
    return keep_heads(lens, ranking, int(mask.sum()))
