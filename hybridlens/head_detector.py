"""TransformerLens' `detect_head` on layers of any kind: its patterns and measures, over the layers that have heads.

``from hybridlens.head_detector import detect_head`` stands in the place of the import from
``transformer_lens.head_detector``: the same arguments and scores. That one takes every layer for one of attention, and
a context for limited; this one has NaN for layers without heads. `analyses.heads.scores` scores heads on repeated
random tokens, recurrent ones too.

How it fails: a model without attention, heads that are none, and a pattern that does not fit raise `InputError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.boundary import public
from hybridlens.boundary_words import Among, Unchecked, shown
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.peers import head_detector as theirs
from hybridlens.tokens import TokensLike

DETECTED = {
    "previous_token_head": theirs.get_previous_token_head_detection_pattern,
    "duplicate_token_head": theirs.get_duplicate_token_head_detection_pattern,
    "induction_head": theirs.get_induction_head_detection_pattern,
}
"""Name of a kind of head -> what its pattern is of tokens [1, pos]."""

Pattern: TypeAlias = Annotated[Any, Unchecked("a name or a pattern")]
Heads: TypeAlias = Annotated[Any, Unchecked("heads")]


@public
def detect_head(
    lens: HybridLens,
    seq: TokensLike,
    detection_pattern: Pattern,
    heads: Heads = None,
    cache: Annotated[Any, Unchecked("a cache")] = None,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: Annotated[str, Among(("mul", "abs"))] = "mul",
) -> Float[Tensor, "layer head"]:
    """How well each head's pattern is that of a kind of head.

    Args:
        lens: the model.
        seq: a text or several, or ids; each prompt is scored by itself, and the mean taken.
        detection_pattern: "previous_token_head", "duplicate_token_head", "induction_head", or a lower triangular
            tensor [pos, pos].
        heads: (layer, head) of those that are scored, or heads by layer; others get -1. None for all.
        cache: of a run of the one prompt, with or without its batch axis, that has ``attn.hook_pattern``.
        exclude_bos: leave attention to the first token out.
        exclude_current_token: leave attention to the query's own token out.
        error_measure: "mul" for the share of a head's attention that lies on the pattern, of zeros and ones; "abs"
            for 1 − the mean over queries of Σ |attention − pattern|, as TransformerLens rounds it.

    Returns:
        a score for each head, NaN for layers without attention and heads that a layer has not.

    Raises:
        InputError: see the module.
    """
    cfg = lens.cfg
    cfg.need_attention("detecting heads")
    batch = lens.batch(seq)
    counts = [batch.tokens.shape[1]] * len(batch.tokens) if batch.lengths is None else batch.lengths.tolist()
    if cache is not None and len(counts) != 1:
        raise InputError(f"one cache was given for {len(counts)} prompts; give them one by one, or leave cache= out")
    chosen = _chosen(lens, heads)
    found: list[Tensor] = []
    for row, count in zip(batch.tokens, counts, strict=True):
        tokens = row[None, :count]
        wanted = _wanted(detection_pattern, tokens)
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in chosen]
        held = cache if cache is not None else lens.run_with_cache(tokens, names, return_type=None)[1]
        scores = torch.full((cfg.n_layers, cfg.n_heads), torch.nan)
        for layer, name in zip(chosen, names, strict=True):
            scores[layer, : cfg.attention(layer).n_heads] = -1.0
            patterns = held[name].detach().float()
            patterns = patterns[0] if patterns.ndim == 4 else patterns
            if patterns.shape[-2:] != wanted.shape:
                raise InputError(
                    f"the cache's patterns of layer {layer} are {list(patterns.shape)}, but the prompt has {count} "
                    "tokens"
                )
            for head in chosen[layer]:
                scores[layer, head] = theirs.compute_head_attention_similarity_score(
                    patterns[head].clone(),  # TransformerLens 3 writes to it
                    wanted.to(patterns.device),
                    exclude_bos=exclude_bos,
                    exclude_current_token=exclude_current_token,
                    error_measure=_measure(error_measure),
                )
        found.append(scores)
    return torch.stack(found).mean(dim=0)


def _measure(name: str) -> Literal["abs", "mul"]:
    return "abs" if name == "abs" else "mul"


def _wanted(pattern: Any, tokens: Tensor) -> Float[Tensor, "query key"]:
    """The pattern that heads are compared with, of one prompt [1, pos]."""
    count = tokens.shape[1]
    if count < 2:
        raise InputError("a prompt of 1 token was given, expected two at least, since heads are told by what they see")
    if isinstance(pattern, str):
        if pattern not in DETECTED:
            raise InputError(
                f"detection_pattern {shown(pattern)} does not exist, expected one of {', '.join(DETECTED)}"
            )
        return DETECTED[pattern](tokens.cpu())
    if not isinstance(pattern, Tensor) or pattern.shape != (count, count):
        given = list(pattern.shape) if isinstance(pattern, Tensor) else shown(pattern)
        raise InputError(f"detection_pattern {given} given, expected a name or a tensor [{count}, {count}]")
    if bool(pattern.triu(1).any()):
        raise InputError("detection_pattern has something above its diagonal, where no token can look")
    return pattern.float()


def _chosen(lens: HybridLens, heads: Any) -> dict[int, list[int]]:
    """The heads that are scored, by layer; every layer that has any is in it."""
    cfg = lens.cfg
    sizes = {layer: cfg.attention(layer).n_heads for layer in cfg.attention_layers}
    if heads is None:
        return {layer: list(range(size)) for layer, size in sizes.items()}
    chosen: dict[int, list[int]] = {layer: [] for layer in sizes}
    for layer, head in _pairs(heads):
        if layer not in sizes:
            raise InputError(f"a head of layer {shown(layer)} was given, but layers with attention are {list(sizes)}")
        if not 0 <= head < sizes[layer]:
            raise InputError(f"head {head} of layer {layer} was given, which has heads 0 to {sizes[layer] - 1}")
        chosen[layer].append(head)
    return chosen


def _pairs(heads: Any) -> list[tuple[int, int]]:
    """(layer, head) of what was given either way."""
    try:
        if isinstance(heads, Mapping):
            given: Mapping[Any, Sequence[Any]] = heads
            return [(int(layer), int(head)) for layer, several in given.items() for head in several]
        return [(int(layer), int(head)) for layer, head in heads]
    except (TypeError, ValueError) as error:
        raise InputError(f"heads = {shown(heads)} given, expected (layer, head) pairs, or heads by layer") from error
