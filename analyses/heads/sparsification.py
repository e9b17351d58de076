"""Keep some attention heads and silence the others: top-k by entropy at run time, or a fixed choice.

`top_k` (section 2.2 of the paper) keeps the heads of lowest entropy at each row and query and multiplies the
others' `z` by 0, before the output projection and, where there is one, before the gate, which leaves it 0. In a layer
with a recurrence beside its attention, that one goes on as it was. The entropy is read from the attention scores,
before softmax, so it is that of the unmanipulated pattern: edits of `hook_pattern` may be added in any order. k may
differ from row to row, which lets one batch decode under many k at once. Scores are taken in blocks of queries, so that
a long prompt is never held whole; what is kept of them is one number a head and query.

Heads compete inside their layer, or (scope "model") across all attention layers, where k per layer is kept on
average. For that, a pass ahead of each forward pass over the same tokens and state reads every layer's scores
before any head is dropped.

`keep_rows` keeps the same heads throughout, `keep_heads` those of a `HeadRanking`; `silence_heads` silences those.

How it fails: an edit of `hook_attn_scores` that stands before these edits is seen by the ranking. k = 0
silences attention, but RecurrentGemma still adds the bias of its output projection. With scope "model" each pass
costs two, and other edits act in the second only: the ranking is of a pass that starts from the edited state
but in which nothing is edited.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from analyses.heads.entropy import check_semantics, focus_key
from analyses.heads.ranking import HeadRanking, Scope
from analyses.heads.selection import AtHand, Kept, QueryBlocks, across_layers, check_rows
from hybridlens.boundary import Natural, public
from hybridlens.errors import HookFunctionError, InputError
from hybridlens.hooks import Edit, HookFunction, HookPoint, Phase, by_query, capturable, reads_only
from hybridlens.model import HybridLens
from hybridlens.niah.prompt import SemanticsLike
from hybridlens.shapes import Pattern, Queries

Heads: TypeAlias = tuple[tuple[int, int], ...]
"""Heads as (layer, head) pairs."""

HeadsKept: TypeAlias = Natural | Sequence[Natural] | Int[Tensor, "*rows"]
"""k: one number, or one for each row of the batch."""


@public
def top_k(
    lens: HybridLens, k: HeadsKept, phase: Phase = "decode", scope: Scope = "layer", semantics: SemanticsLike = "clean"
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
    if bool((rows % n_heads == 0).all()):  # all heads or none: no row needs an entropy
        kept = (rows == n_heads)[:, None, None].expand(-1, len(layers), n_heads)
        return keep_rows(lens, kept if len(rows) > 1 else kept[0], phase)
    if scope == "model":
        return _contest(layers, rows, phase, semantics, ahead=True)
    return [edit for layer in layers for edit in _contest([layer], rows, phase, semantics, ahead=False)]


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


class _Found(threading.local):
    """What the pass of a thread has found so far; threads may run under the same edits.

    Args:
        layers: how many compete.
    """

    def __init__(self, layers: int) -> None:
        self.keys = [QueryBlocks() for _ in range(layers)]
        self.kept: list[Kept] = []
        """Of each layer, once all have been read."""


def _contest(layers: Sequence[int], rows: Tensor, phase: Phase, semantics: str, ahead: bool) -> list[Edit]:
    """The edits of layers whose heads compete: read their scores, in a pass ahead or not, then silence heads."""
    together, found = AtHand(rows * len(layers)), _Found(len(layers))

    def reader(at: int) -> HookFunction:
        @capturable
        @by_query
        @reads_only
        def read(scores: Pattern, hook: HookPoint) -> None:
            check_rows("numbers of heads", rows.numel(), scores.shape[0], hook)
            found.kept.clear()
            found.keys[at].add(focus_key(scores, semantics), hook)

        return read

    def silencer(at: int) -> HookFunction:
        @capturable
        @reads_only
        def silence(z: Queries, hook: HookPoint) -> Queries:
            if not found.kept:
                keys = [layer.whole() for layer in found.keys]
                found.kept.extend(across_layers(keys, together.on(keys[0].device)))
            return _silenced(z, ~found.kept[at])

        return silence

    edits: list[Edit] = []
    for at, layer in enumerate(layers):
        name = f"blocks.{layer}.attn"
        edits.append(Edit(f"{name}.hook_attn_scores", reader(at), phase, ahead=ahead))
        edits.append(Edit(f"{name}.hook_z", silencer(at), phase))
    return edits


def _silenced(z: Queries, dropped: Bool[Tensor, "*batch head query"]) -> Queries:
    """z with 0 where a head is dropped; without the first axis the same in every row, of one query at every one."""
    return z.masked_fill(dropped.to(z.device).mT[..., None], 0.0)


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
    return keep_rows(lens, ranking.kept(n, scope), phase)


@public
def silence_heads(
    lens: HybridLens, ranking: HeadRanking, n: Natural, phase: Phase = "both", scope: Scope = "model"
) -> list[Edit]:
    """Edits that silence the best `n` heads of a ranking and keep the others: what `keep_heads` does, the other way.

    Args:
        lens: the model.
        ranking: of this model's heads.
        n: how many heads are silent.
        phase: when they are.
        scope: "model": n of all heads; "layer": n of each layer.

    Raises:
        InputError: the ranking is of another model's heads, or n is more than there are.
        UnknownNameError: a phase or scope that does not exist.
    """
    check_ranking(lens, ranking)
    return keep_rows(lens, ~ranking.kept(n, scope), phase)


@public
def keep_each(lens: HybridLens, heads: Sequence[Heads | None], phase: Phase = "both") -> list[Edit]:
    """`keep_rows` for (layer, head) pairs: row i of a batch keeps only ``heads[i]``.

    Args:
        lens: the model.
        heads: for each row its pairs, () to silence attention; None leaves a row as it is.
        phase: when the others are silent.

    Raises:
        InputError: no row, a head that the model does not have, or a model without attention.
        UnknownNameError: a phase that does not exist.
    """
    lens.cfg.need_attention("keeping heads")
    layers, n_heads = lens.cfg.attention_layers, lens.cfg.n_heads
    if not heads:
        raise InputError("the heads of no row were given, expected those of every row of the batch")
    pairs = list(itertools.product(layers, range(n_heads)))
    chosen = [set(pairs if own is None else own) for own in heads]
    for row, own in enumerate(chosen):
        unknown = min(own.difference(pairs), default=None)
        if unknown is not None:
            raise InputError(
                f"layer {unknown[0]}, head {unknown[1]} is to be kept in row {row}, but the model has attention layers "
                f"{list(layers)} with heads 0..{n_heads - 1}"
            )
    kept = torch.tensor([[pair in own for pair in pairs] for own in chosen])
    return keep_rows(lens, kept.view(-1, len(layers), n_heads), phase)


@public
def keep_rows(lens: HybridLens, kept: Bool[Tensor, "*batch attn_layer head"], phase: Phase = "both") -> list[Edit]:
    """Edits that keep the heads of a mask, or those of ``kept[i]`` in row i of a batch, the same throughout.

    Args:
        lens: the model.
        kept: True for the heads that speak.
        phase: when the others are silent.

    Returns:
        an edit for each attention layer in which any row drops a head; of several masks, for runs of exactly that
        batch.

    Raises:
        InputError: for other layers or heads than the model's.
        UnknownNameError: a phase that does not exist.
    """
    layers, n_heads = len(lens.cfg.attention_layers), lens.cfg.n_heads
    if kept.shape[-2:] != (layers, n_heads) or kept.ndim > 3:
        raise InputError(f"kept heads have shape {list(kept.shape)}, expected [batch, {layers}, {n_heads}] or one mask")
    return [
        Edit(f"blocks.{layer}.attn.hook_z", _silencer(own), phase)
        for layer, own in zip(lens.cfg.attention_layers, kept.unbind(-2), strict=True)
        if not bool(own.all())
    ]


def _silencer(kept: Bool[Tensor, "*batch head"]) -> HookFunction:
    """A hook function that sets z to 0 where a head is not kept, in the row that does not keep it or in all."""
    dropped = AtHand(~kept[..., None])

    @capturable
    @reads_only
    def silence(z: Queries, hook: HookPoint) -> Queries:
        if kept.ndim > 1 and len(kept) != len(z):
            raise HookFunctionError(
                f"kept heads at '{hook.name}' were given for {len(kept)} rows, but the batch has {len(z)}; "
                "give those of every row"
            )
        return _silenced(z, dropped.on(z.device))

    return silence


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
