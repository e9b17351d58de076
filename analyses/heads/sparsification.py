"""Keep some attention heads and silence the others: top-k by entropy at run time, or a fixed choice.

`top_k` (section 2.2 of the paper) keeps the heads of lowest entropy at each row and query and multiplies the
others' `z` by 0, before the output projection and, where there is one, before the gate, which leaves it 0. In a layer
with a recurrence beside its attention, that one goes on as it was. The entropy is read from the attention scores,
before softmax, so it is that of the unmanipulated pattern: edits of `hook_pattern` may be added in any order. k may
differ from row to row, which lets one batch decode under many k at once. Scores are taken in blocks of queries, so that
a long prompt is never held whole; what is kept of them is one truth value a head and query.

Heads compete inside their layer, or (scope "model") across all attention layers, where k per layer is kept on
average. For that, a pass ahead of each forward pass over the same tokens and state reads every layer's scores
before any head is dropped.

`keep_heads` keeps the same heads throughout, from a `HeadRanking`; `keep_each` does so for rows that each keep heads
of their own.

How it fails: an edit of `hook_attn_scores` that stands before these edits is seen by the ranking. k = 0
silences attention, but RecurrentGemma still adds the bias of its output projection. With scope "model" each pass
costs two, and other edits act in the second only: the ranking is of a pass that starts from the edited state
but in which nothing is edited.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from analyses.heads.entropy import check_semantics, focus_key
from analyses.heads.ranking import HeadRanking, Scope
from analyses.heads.selection import Kept, QueryBlocks, across_layers, lowest
from hybridlens.boundary import Natural, public
from hybridlens.errors import HookFunctionError, InputError
from hybridlens.hooks import Edit, HookFunction, HookPoint, Phase, by_query, reads_only
from hybridlens.model import HybridLens
from hybridlens.niah.prompt import SemanticsLike
from hybridlens.shapes import Pattern, Queries

Heads: TypeAlias = tuple[tuple[int, int], ...]
"""Heads as (layer, head) pairs."""

HeadsKept: TypeAlias = Natural | Sequence[Natural] | Int[Tensor, "*rows"]
"""k: one number, or one for each row of the batch."""


@public
def top_k(
    lens: HybridLens,
    k: HeadsKept,
    phase: Phase = "decode",
    scope: Scope = "layer",
    semantics: SemanticsLike = "clean",
) -> list[Edit]:
    """Edits that keep the most focused heads, k of each layer, chosen anew at every query.

    Args:
        lens: the model.
        k: heads kept, 0 … n_heads; a sequence or an integer tensor [batch] gives each row its own.
            k = n_heads leaves a row as it is, bit for bit; k = 0 silences its attention.
        phase: "decode" is the paper's generation version, "both" its prefill version.
        scope: "layer": heads compete inside their layer, and k of each stay. "model": all attention layers' heads
            compete, and k × (number of attention layers) stay, so that either scope keeps equally many; entropies
            come from a pass ahead in which nothing is dropped. `trace` takes no such edits.
        semantics: "clean" or "published" entropy.

    Returns:
        edits to give to `generate`, `prefill`, `extend` or `trace`. Ties break by layer, then head index, on every
        device. Runs of other batch sizes raise `HookFunctionError` where `k` has one entry a row.

    Raises:
        InputError: k outside 0 … n_heads; published semantics in float16; a model without attention.
        UnknownNameError: a phase, scope or semantics that does not exist.
    """
    check_semantics(semantics, lens.dtype)
    lens.cfg.need_attention("keeping the top k heads")
    n_heads, layers = lens.cfg.n_heads, lens.cfg.attention_layers
    rows = heads_kept(k, n_heads)
    if bool((rows == n_heads).all()):
        return []
    if bool(((rows == 0) | (rows == n_heads)).all()):  # no row needs an entropy
        return [Edit(f"blocks.{layer}.attn.hook_z", _all_or_none(rows, n_heads), phase) for layer in layers]
    if scope == "model":
        return _model_edits(layers, rows, phase, semantics)
    return [edit for layer in layers for edit in _layer_edits(layer, rows, phase, semantics)]


def heads_kept(k: HeadsKept, n_heads: int) -> Int[Tensor, "rows"]:
    """`k` as a tensor, of one entry when it is one number.

    Raises:
        InputError: an entry is outside 0 … n_heads, or there is none.
    """
    rows = torch.as_tensor(k if isinstance(k, Tensor) else [k] if isinstance(k, int) else list(k)).cpu()
    if rows.numel() == 0 or rows.ndim > 1:
        raise InputError(f"k = {k} given, expected a whole number, or one for each row of the batch")
    rows = rows.reshape(-1).long()
    wrong = rows[(rows < 0) | (rows > n_heads)]
    if wrong.numel():
        raise InputError(
            f"k = {int(wrong[0])} given, expected 0..{n_heads}: the model has {n_heads} heads in each layer"
        )
    return rows


def _layer_edits(layer: int, rows: Tensor, phase: Phase, semantics: str) -> list[Edit]:
    """The edits of one layer: read the scores, then silence heads."""
    kept = QueryBlocks()

    @by_query
    @reads_only
    def read(scores: Pattern, hook: HookPoint) -> None:
        kept.add(lowest(focus_key(scores, semantics), _rows_for(rows, scores.shape[0], hook)), hook)

    @reads_only
    def silence(z: Queries, hook: HookPoint) -> Queries:
        return silenced(z, kept.whole())

    name = f"blocks.{layer}.attn"
    return [Edit(f"{name}.hook_attn_scores", read, phase), Edit(f"{name}.hook_z", silence, phase)]


def _model_edits(layers: Sequence[int], rows: Tensor, phase: Phase, semantics: str) -> list[Edit]:
    """The edits of all layers: read every layer's scores in a pass ahead, then silence heads."""
    keys = [QueryBlocks() for _ in layers]
    kept: list[Kept] = []

    def reader(at: int) -> HookFunction:
        @by_query
        @reads_only
        def read(scores: Pattern, hook: HookPoint) -> None:
            _rows_for(rows, scores.shape[0], hook)
            kept.clear()
            keys[at].add(focus_key(scores, semantics), hook)

        return read

    def silencer(at: int) -> HookFunction:
        @reads_only
        def silence(z: Queries, hook: HookPoint) -> Queries:
            if not kept:
                kept.extend(across_layers([layer.whole() for layer in keys], rows))
            return silenced(z, kept[at])

        return silence

    edits: list[Edit] = []
    for at, layer in enumerate(layers):
        name = f"blocks.{layer}.attn"
        edits.append(Edit(f"{name}.hook_attn_scores", reader(at), phase, ahead=True))
        edits.append(Edit(f"{name}.hook_z", silencer(at), phase))
    return edits


def silenced(z: Queries, kept: Kept) -> Queries:
    """z with 0 where a head is not kept."""
    return z.masked_fill(~kept.to(z.device).transpose(1, 2)[..., None], 0.0)


def _all_or_none(rows: Tensor, n_heads: int) -> HookFunction:
    """A hook function that silences the rows of k = 0 and leaves those of k = n_heads."""

    @reads_only
    def silence(z: Queries, hook: HookPoint) -> Queries:
        kept = _rows_for(rows, z.shape[0], hook) == n_heads
        return z.masked_fill(~kept.to(z.device)[:, None, None, None], 0.0)

    return silence


def _rows_for(rows: Tensor, batch: int, hook: HookPoint) -> Tensor:
    if rows.numel() not in (1, batch):
        raise HookFunctionError(
            f"top-k at '{hook.name}': k was given for {rows.numel()} rows, but the batch has {batch}; "
            "give one number, or one for each row"
        )
    return rows


@public
def keep_heads(
    lens: HybridLens, ranking: HeadRanking, n: Natural, phase: Phase = "both", scope: Scope = "model"
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
    check_ranking(lens, ranking)
    edits: list[Edit] = []
    for layer, row in zip(ranking.layers, ranking.kept(n, scope), strict=True):
        dropped = cast(list[int], (~row).nonzero()[:, 0].tolist())
        if dropped:
            edits.append(Edit(f"blocks.{layer}.attn.hook_z", _silencer(dropped), phase))
    return edits


@public
def keep_each(lens: HybridLens, heads: Sequence[Heads | None], phase: Phase = "both") -> list[Edit]:
    """Edits that let row i of a batch keep only ``heads[i]``, the same throughout.

    Args:
        lens: the model.
        heads: for each row its (layer, head) pairs, () to silence attention; None leaves a row as it is.
        phase: when the others are silent.

    Returns:
        an edit for each attention layer in which any row drops a head, for runs of exactly that batch. Each row's
        z is what `keep_heads` gives it, to the bit.

    Raises:
        InputError: no row, a head that the model does not have, or a model without attention.
        UnknownNameError: a phase that does not exist.
    """
    lens.cfg.need_attention("keeping heads")
    layers, n_heads = lens.cfg.attention_layers, lens.cfg.n_heads
    if not heads:
        raise InputError("the heads of no row were given, expected those of every row of the batch")
    known = {(layer, head): place for place, layer in enumerate(layers) for head in range(n_heads)}
    wanted = [(row, pair) for row, own in enumerate(heads) if own is not None for pair in own]
    for row, pair in wanted:
        if pair not in known:
            raise InputError(
                f"layer {pair[0]}, head {pair[1]} is to be kept in row {row}, but the model has attention layers "
                f"{list(layers)} with heads 0..{n_heads - 1}"
            )
    kept = torch.tensor([own is None for own in heads])[None, :, None].repeat(len(layers), 1, n_heads)
    if wanted:
        places, rows, numbers = zip(*((known[pair], row, pair[1]) for row, pair in wanted), strict=True)
        kept[list(places), list(rows), list(numbers)] = True
    return keep_rows(lens, kept.transpose(0, 1), phase)


@public
def keep_rows(lens: HybridLens, kept: Bool[Tensor, "batch attn_layer head"], phase: Phase = "both") -> list[Edit]:
    """Edits that let row i of a batch keep only the heads of ``kept[i]``, the same throughout.

    Args:
        lens: the model.
        kept: True for the heads that speak.
        phase: when the others are silent.

    Returns:
        an edit for each attention layer in which any row drops a head, for runs of exactly that batch.

    Raises:
        InputError: for other layers or heads than the model's.
        UnknownNameError: a phase that does not exist.
    """
    layers, n_heads = len(lens.cfg.attention_layers), lens.cfg.n_heads
    if kept.shape[1:] != (layers, n_heads):
        raise InputError(f"kept heads have shape {list(kept.shape)}, expected [batch, {layers}, {n_heads}]")
    return [
        Edit(f"blocks.{layer}.attn.hook_z", _row_silencer(kept[:, at]), phase)
        for at, layer in enumerate(lens.cfg.attention_layers)
        if not bool(kept[:, at].all())
    ]


def check_ranking(lens: HybridLens, ranking: HeadRanking) -> None:
    """Refuse a ranking of other heads than the model's.

    Raises:
        InputError: it has other layers, or another number of heads; or the model has no attention.
    """
    lens.cfg.need_attention("keeping the heads of a ranking")
    layers, n_heads = lens.cfg.attention_layers, lens.cfg.n_heads
    if ranking.layers != layers or ranking.scores.shape[1] != n_heads:
        raise InputError(
            f"the ranking has layers {list(ranking.layers)} with {ranking.scores.shape[1]} heads, but the "
            f"model has attention layers {list(layers)} with {n_heads} heads; rank this model's heads"
        )


def _row_silencer(kept: Bool[Tensor, "batch head"]) -> HookFunction:
    """A hook function that sets z to 0 where a row does not keep a head."""

    @reads_only
    def silence(z: Queries, hook: HookPoint) -> Queries:
        if z.shape[0] != kept.shape[0]:
            raise HookFunctionError(
                f"kept heads at '{hook.name}' were given for {kept.shape[0]} rows, but the batch has {z.shape[0]}; "
                "give those of every row"
            )
        return z.masked_fill(~kept.to(z.device)[:, None, :, None], 0.0)

    return silence


def _silencer(heads: Sequence[int]) -> HookFunction:
    """A hook function that sets some heads' z to 0."""

    @reads_only
    def silence(z: Queries, hook: HookPoint) -> Queries:
        return z.index_fill(2, torch.as_tensor(list(heads), device=z.device), 0.0)

    return silence
