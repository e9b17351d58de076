"""Keep some attention heads and silence the others: top-k by entropy at run time, or a fixed choice.

`top_k` (section 2.2 of the paper) keeps, per layer, row and query, the k heads of lowest entropy and
multiplies the others' `z` by 0, before the output projection. The entropy is read from the attention
scores, before softmax, so it is that of the unmanipulated pattern: edits of `hook_pattern` may be added in
any order. k may differ from row to row, which lets one batch decode under many k at once.

`keep_heads` keeps the same heads throughout, from a `HeadRanking`.

How it fails: an edit of `hook_attn_scores` that stands before these edits is seen by the ranking. k = 0
silences attention, but RecurrentGemma still adds the bias of its output projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from analyses.entropy import Entropies, check_semantics, focus_key
from analyses.ranking import SCOPES, HeadRanking
from hybridlens.errors import HookFunctionError, InputError, UnknownNameError
from hybridlens.hooks import Edit, HookFunction, HookPoint, Phase, reads_only
from hybridlens.model import HybridLens
from hybridlens.shapes import Pattern, Queries

HeadsKept: TypeAlias = int | Sequence[int] | Tensor
"""k: one number, or one for each row of the batch."""


def top_k(
    lens: HybridLens,
    k: HeadsKept,
    phase: Phase = "decode",
    scope: str = "layer",
    semantics: str = "clean",
) -> list[Edit]:
    """Edits that keep the k most focused heads of each layer, chosen anew at every query.

    Args:
        lens: the model.
        k: heads kept, 0 … n_heads; a sequence or an integer tensor [batch] gives each row its own.
            k = n_heads leaves a row as it is, bit for bit; k = 0 silences its attention.
        phase: "decode" is the paper's generation version, "both" its prefill version.
        scope: "layer", where heads compete inside their layer.
        semantics: "clean" or "published" entropy.

    Returns:
        edits to give to `generate`, `prefill`, `extend` or `trace`. Ties break by head index, on every
        device. Runs of other batch sizes raise `HookFunctionError` where `k` has one entry a row.

    Raises:
        InputError: k outside 0 … n_heads; scope "model"; published semantics in float16.
        UnknownNameError: a phase, scope or semantics that does not exist.
    """
    check_semantics(semantics, lens.dtype)
    if scope not in SCOPES:
        raise UnknownNameError(f"scope {scope!r} does not exist; expected one of {', '.join(SCOPES)}")
    if scope != "layer":
        raise InputError(
            f"scope {scope!r} given, but entropies of later layers are not known when an earlier one writes; "
            "expected scope 'layer'"
        )
    n_heads = lens.cfg.n_heads
    rows = heads_kept(k, n_heads)
    edits: list[Edit] = []
    if bool((rows == n_heads).all()):
        return edits
    for layer in lens.cfg.attention_layers:
        edits += _layer_edits(layer, rows, n_heads, phase, semantics)
    return edits


def heads_kept(k: HeadsKept, n_heads: int) -> Int[Tensor, "rows"]:
    """`k` as a tensor, of one entry when it is one number.

    Raises:
        InputError: an entry is no whole number, or outside 0 … n_heads, or there is none.
    """
    rows = torch.as_tensor(k if isinstance(k, Tensor) else [k] if isinstance(k, int) else list(k)).cpu()
    if rows.numel() == 0 or rows.ndim > 1 or rows.is_floating_point() or rows.dtype == torch.bool:
        raise InputError(f"k = {k} given, expected a whole number, or one for each row of the batch")
    rows = rows.reshape(-1).long()
    wrong = rows[(rows < 0) | (rows > n_heads)]
    if wrong.numel():
        raise InputError(
            f"k = {int(wrong[0])} given, expected 0..{n_heads}: the model has {n_heads} heads in each layer"
        )
    return rows


def lowest(keys: Entropies, k: Int[Tensor, "rows"]) -> Bool[Tensor, "batch head query"]:
    """True for the k heads of lowest key at each row and query; ties by head index.

    Args:
        keys: what to sort by.
        k: heads kept, one for all rows or one for each.
    """
    ranks = keys.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return ranks < k.to(keys.device)[:, None, None]


def _layer_edits(layer: int, rows: Tensor, n_heads: int, phase: Phase, semantics: str) -> list[Edit]:
    """The edits of one layer: read the scores, then silence heads."""
    found: dict[str, Tensor] = {}

    @reads_only
    def read(scores: Pattern, hook: HookPoint) -> None:
        found["kept"] = lowest(focus_key(scores, semantics), _rows_for(rows, scores.shape[0], hook))

    @reads_only
    def silence(z: Queries, hook: HookPoint) -> Queries:
        return z.masked_fill(~found["kept"].transpose(1, 2)[..., None], 0.0)

    @reads_only
    def silence_all(z: Queries, hook: HookPoint) -> Queries:
        kept = (_rows_for(rows, z.shape[0], hook) == n_heads).to(z.device)
        return z.masked_fill(~kept[:, None, None, None], 0.0)

    name = f"blocks.{layer}.attn"
    if bool(((rows == 0) | (rows == n_heads)).all()):  # no row needs an entropy
        return [Edit(f"{name}.hook_z", silence_all, phase)]
    return [Edit(f"{name}.hook_attn_scores", read, phase), Edit(f"{name}.hook_z", silence, phase)]


def _rows_for(rows: Tensor, batch: int, hook: HookPoint) -> Tensor:
    if rows.numel() not in (1, batch):
        raise HookFunctionError(
            f"top-k at '{hook.name}': k was given for {rows.numel()} rows, but the batch has {batch}; "
            "give one number, or one for each row"
        )
    return rows


def keep_heads(
    lens: HybridLens, ranking: HeadRanking, n: int, phase: Phase = "both", scope: str = "model"
) -> list[Edit]:
    """Edits that keep the best `n` heads of a ranking and silence the others, the same throughout.

    Args:
        lens: the model.
        ranking: of this model's heads.
        n: how many heads stay.
        phase: when the others are silent.
        scope: "model": n of all heads; "layer": n of each layer.

    Raises:
        InputError: the ranking is of another model's heads, or n is more than there are.
        UnknownNameError: a phase or scope that does not exist.
    """
    layers, n_heads = lens.cfg.attention_layers, lens.cfg.n_heads
    if ranking.layers != layers or ranking.scores.shape[1] != n_heads:
        raise InputError(
            f"the ranking has layers {list(ranking.layers)} with {ranking.scores.shape[1]} heads, but the "
            f"model has attention layers {list(layers)} with {n_heads} heads; rank this model's heads"
        )
    edits: list[Edit] = []
    for layer, row in zip(layers, ranking.kept(n, scope), strict=True):
        dropped = cast(list[int], (~row).nonzero()[:, 0].tolist())
        if dropped:
            edits.append(Edit(f"blocks.{layer}.attn.hook_z", _silencer(dropped), phase))
    return edits


def _silencer(heads: Sequence[int]) -> HookFunction:
    """A hook function that sets some heads' z to 0."""

    @reads_only
    def silence(z: Queries, hook: HookPoint) -> Queries:
        return z.index_fill(2, torch.as_tensor(list(heads), device=z.device), 0.0)

    return silence


if __name__ == "__main__":
    import sys

    from analyses.cli import main

    sys.exit(main(["niah", *sys.argv[1:]]))
