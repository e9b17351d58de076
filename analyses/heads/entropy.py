"""How spread out each head's attention is, in bits, and the heads ranked by it (equation 1 of the paper).

H(A) = −Σ_t a_t log2 a_t over the keys that a query may see: 0 when all weight lies on one key, log2 n when it
is spread evenly over n. Low entropy is what the paper takes for a head that retrieves.

`head_entropy` is the clean formula, in float32; `published_entropy` is what the authors' code computes: in
the model's dtype, with 1e-12 inside the logarithm, and of the opposite sign.

How it fails: entropy knows nothing of what a head looks at, so a head that rests on the first token is as
"focused" as one that retrieves; and in bfloat16 the published formula gives equal values to unequal heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from analyses.heads.ranking import HeadRanking
from hybridlens.at_once import rows_at_once
from hybridlens.boundary import Positive, public
from hybridlens.boundary_words import Among
from hybridlens.display import many
from hybridlens.errors import InputError
from hybridlens.hooks import HookPoint, by_query, reads_only
from hybridlens.model import HybridLens
from hybridlens.niah.prompt import SemanticsLike
from hybridlens.progress import counted
from hybridlens.shapes import Lengths, Pattern
from hybridlens.tokens import TokensLike

SEMANTICS = ("clean", "published")
QUERIES = ("all", "last")
Queries: TypeAlias = Annotated[str, Among(QUERIES)]
Entropies: TypeAlias = Float[Tensor, "batch head query"]
Rows: TypeAlias = Float[Tensor, "*row key"]

CHUNK = 2**18
"""Scores of which a CPU computes the entropy at a time, unless one query has more keys; a megabyte, which stays in its
cache, and is worth the call to a second thread."""

SCORE_BYTES = 12
"""What a score takes meanwhile, published semantics in bfloat16 the most."""

FARTHEST = -80.0
"""Scores farther below a query's highest count as this far below: their weights are under 2e-35, yet normal floats."""

NOTHING = 1e-24
"""Bits. What weights held at `FARTHEST` add up to is less."""

LOG2_E = 1 / math.log(2)

EPSILON = 1e-12
"""What the authors' code adds to every weight."""


@public
def head_entropy(pattern: Pattern) -> Entropies:
    """Entropy of each head's attention at each query, in bits (equation 1).

    Args:
        pattern: attention weights after softmax, 0 where the mask forbids.

    Returns:
        −Σ a log2 a over the keys, in float32 whatever the pattern's dtype, with 0·log2 0 = 0.
    """
    weights = pattern.float()
    # A weight below the smallest normal float contributes under 1e-35 bits; the bound only avoids log2 0.
    smallest = torch.finfo(torch.float32).tiny
    return -(weights * weights.clamp_min(smallest).log2()).sum(dim=-1)


@public
def published_entropy(pattern: Pattern) -> Entropies:
    """What the authors' code computes: Σ (a + 1e-12)·log2(a + 1e-12), in the pattern's own dtype.

    Its sign is that of −entropy, so the most focused head has the highest value; masked keys add −4e-11 each.

    Raises:
        InputError: for float16, where 1e-12 is 0 and the formula gives NaN.
    """
    return _published(pattern)


def _published(pattern: Rows) -> Float[Tensor, "*row"]:
    check_semantics("published", pattern.dtype)
    shifted = pattern + EPSILON
    return (shifted * shifted.log2()).sum(dim=-1)


def focus_key(scores: Pattern, semantics: str = "clean") -> Entropies:
    """What heads are sorted by, lowest first, computed from attention scores before softmax.

    Clean: the entropy of softmax(scores) in float32. Published: `published_entropy` of the pattern as the
    model holds it, with its sign turned. Queries are worked through in groups of a size that suits the device, so that
    little memory is needed beside the scores.

    Raises:
        InputError: for published semantics in float16.
    """
    clean = score_entropy if scores.device.type == "cpu" else launched_entropy
    formula = clean if semantics == "clean" else _published_key
    rows, width = scores.shape[:3].numel(), scores.shape[3]
    step = rows_at_once(rows, width, scores.device, on_cpu=CHUNK, each=SCORE_BYTES)
    if scores.requires_grad:
        scores = scores.detach()
    if rows <= step:
        return formula(scores)
    return torch.cat([formula(part) for part in scores.flatten(0, 2).split(step)]).view(scores.shape[:3])


def score_entropy(scores: Rows) -> Float[Tensor, "*row"]:
    """Entropy of softmax(scores), in bits, with one exponential and no logarithm a score.

    With d the distance of a score from its row's highest and Z = Σ exp d, the weights are exp(d) / Z, so that
    H = (ln Z − Σ exp(d)·d / Z) / ln 2. Entropies below 1e-24 bits come out as exactly 0.

    Args:
        scores: before softmax, −inf where the mask forbids.
    """
    wide = scores.float()
    distance = (wide - wide.amax(dim=-1, keepdim=True)).clamp_min_(FARTHEST)
    weights = distance.exp()
    total = weights.sum(dim=-1)
    bits = (total.log() - weights.mul_(distance).sum(dim=-1) / total) * LOG2_E
    return bits.masked_fill_(bits < NOTHING, 0.0)


def launched_entropy(scores: Rows) -> Float[Tensor, "*row"]:
    """What `score_entropy` gives, in a third of the operations and of the passes over memory.

    A logarithm a score costs a GPU nothing, and softmax is one launch there; on a CPU this takes twice as long.

    Args:
        scores: before softmax, −inf where the mask forbids.
    """
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
    bits = torch.special.entr(weights, out=weights).sum(dim=-1).mul_(LOG2_E)
    return F.threshold(bits, NOTHING, 0.0)


def _published_key(scores: Rows) -> Float[Tensor, "*row"]:
    return -_published(torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype))


@public
def check_semantics(semantics: SemanticsLike, dtype: torch.dtype) -> None:
    """Refuse semantics that do not exist, or that a dtype cannot carry: published ones in float16."""
    if semantics == "published" and dtype == torch.float16:
        raise InputError(
            "published semantics in float16 are not defined: 1e-12 underflows to 0 and the entropy is NaN; "
            "use bfloat16, as the authors did, or float32"
        )


@public
def rank_heads(
    lens: HybridLens,
    tokens: TokensLike,
    *,
    lengths: Sequence[Positive] | Lengths | None = None,
    queries: Queries = "all",
    semantics: SemanticsLike = "clean",
    batch_size: Positive = 8,
) -> HeadRanking:
    """Every head by its mean entropy over the queries of some prompts, the most focused first.

    Args:
        lens: the model.
        tokens: prompts, as the lens takes them; of any lengths when they are lists or text.
        lengths: real tokens of each row of a tensor padded on the right.
        queries: which query positions are averaged. "all": every token of every prompt, each counted once,
            padding never (the first token, whose entropy is 0 for every head, takes part but changes no
            order); "last": only the last token of each prompt, which reads the question's end.
        semantics: the formula; the published one is averaged with its sign turned, so that low is focused.
        batch_size: rows run at a time.

    Returns:
        scores in bits, lower is better.

    Raises:
        InputError: for prompts that cannot be run, or a model without attention.
        UnknownNameError: for queries or semantics that do not exist.
    """
    check_semantics(semantics, lens.dtype)
    lens.cfg.need_attention("ranking heads")
    layers = lens.cfg.attention_layers
    names = [f"blocks.{layer}.attn.hook_attn_scores" for layer in layers]
    batch = lens.batch(tokens, lengths)
    n, width = batch.tokens.shape
    ends = torch.full((n,), width, device=batch.tokens.device) if batch.lengths is None else batch.lengths
    at = torch.arange(width, device=ends.device)
    averaged = at == ends[:, None] - 1 if queries == "last" else at < ends[:, None]
    totals: dict[str, Tensor] = {}  # each where its layer computes, so that no batch waits for the one before
    batches = (part.split(batch_size) for part in (batch.tokens, ends, averaged))
    with counted(n, "prompts") as done:
        for rows, real, chosen in zip(*batches, strict=True):

            @by_query
            @reads_only
            def add(scores: Tensor, hook: HookPoint, chosen: Tensor = chosen) -> None:
                keys = focus_key(scores, semantics).double()
                first = 0 if hook.slots is None else hook.slots.first
                counts = chosen[:, first : first + keys.shape[2]].to(keys.device)
                masked = keys.masked_fill(~counts[:, None], 0.0)
                name, here = str(hook.name), masked.sum(dim=(0, 2))
                totals[name] = totals[name] + here if name in totals else here

            with torch.no_grad():
                lens.run_with_hooks(rows, [(names, add)], lengths=real, return_type=None)
            done(len(rows))
    words = "all tokens" if queries == "all" else "the last token"
    source = f"mean attention entropy in bits ({semantics}) over {words} of {many(n, 'prompt')}"
    means = torch.stack([totals[name].cpu() for name in names]) / averaged.sum().item()
    return HeadRanking(means.float(), layers, source, lower_is_better=True)
