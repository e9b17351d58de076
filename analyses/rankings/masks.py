"""Which heads speak in each row of a batch, as edits: many conditions in one forward pass.

A mask says of every head whether it speaks. A silent head's `z` is 0 before the output projection, in prefill and
in every decode step, as in `sparsification.keep_heads`; here every row of the batch has a mask of its own.

How it fails: masks of another shape than the model's heads raise `InputError`; a batch of another number of rows
than there are masks raises `HookFunctionError`. With no head, RecurrentGemma still adds its output bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from analyses.ranking import HeadRanking
from analyses.rankings.prompts import check_heads
from analyses.sparsification import keep_heads
from hybridlens.errors import HookFunctionError, InputError
from hybridlens.hooks import Edit, HookFunction, HookPoint, reads_only
from hybridlens.model import HybridLens
from hybridlens.shapes import Queries


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


def keep_rows(lens: HybridLens, masks: Bool[Tensor, "batch attn_layer head"]) -> list[Edit]:
    """Edits for runs of exactly this batch: in row i only the heads of ``masks[i]`` speak, in both phases.

    Returns:
        none for a layer in which every row keeps all heads.
    """
    edits: list[Edit] = []
    for at, layer in enumerate(lens.cfg.attention_layers):
        silent = ~masks[:, at]
        if bool(silent.any()):
            edits.append(Edit(f"blocks.{layer}.attn.hook_z", _silencer(silent)))
    return edits


def _silencer(silent: Bool[Tensor, "batch head"]) -> HookFunction:
    """A hook function that sets z to 0 where a row's head is silent."""

    @reads_only
    def silence(z: Queries, hook: HookPoint) -> Queries:
        if z.shape[0] != silent.shape[0]:
            raise HookFunctionError(
                f"heads kept at '{hook.name}': masks were given for {silent.shape[0]} rows, but the batch has "
                f"{z.shape[0]}; give one for each row"
            )
        return z.masked_fill(silent.to(z.device)[:, None, :, None], 0.0)

    return silence


def keep_mask(lens: HybridLens, mask: Bool[Tensor, "attn_layer head"]) -> list[Edit]:
    """Edits for runs of any batch size: in every row only these heads speak."""
    ranking = HeadRanking(mask.float(), lens.cfg.attention_layers, "heads kept", lower_is_better=False)
    return keep_heads(lens, ranking, int(mask.sum()))
