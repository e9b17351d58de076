"""Attention weights rewritten around a needle, after softmax and without renormalisation (section 2.5 of the paper).

With N the needle's key positions, a mode says what becomes of each weight:

=======  ==========================================  ==========================================
mode     at keys in N                                at all other keys, the query's own too
=======  ==========================================  ==========================================
keep     as it is                                    as it is
omit     0                                           as it is
only     as it is                                    0
binary   the mean over N                             0
null     0                                           0
=======  ==========================================  ==========================================

N holds absolute positions and is matched with those of the key slots, so that sliding windows, states that are
continued, prompts read in pieces and rows of other lengths need no care. Every row of a batch may have its own mode
and needle: what a weight becomes is looked up in tables [row, position] made beforehand.

**clean** The mean of `binary` is each head's and query's own, over those needle keys that the query may see: not
after it, and inside its window. A query that sees none has no weight left, as with `only`.

**published** is what the authors' code did; it differs in two ways.

* While answering (phase "decode"), a query that sees no needle key is left as it is in every mode; so is a row
  without a needle. While reading, the columns are rewritten for every query.
* `binary` writes one number for all heads of a row: their weights on N, summed, ÷ n_heads ÷ |N|. While reading, the
  sum runs over the queries too and is not divided by their number, and the number is written for every query, also
  where the mask forbids: before the needle, and where it has left the window. While answering, every query has its
  own number, also where several tokens are read in one pass.

|N| counts the needle positions that are held: while answering those that the query sees, so that it shrinks as the
needle leaves the window; while reading those among the prompt's tokens. With none the number is 0. Padding is in no
sum. Published spans that are one too low are the prompt builder's (`Prompt.needle_spans`): spans are used as given.

How it fails: published `binary` of a whole prompt needs the pass that reads it to begin at its first token, and all
of its scores at once; continuing from a state raises `HookFunctionError`. In a batch where any row is rewritten all
rows' attention follows the explicit formula, so that untouched rows may differ from the fused kernel's in the last
bits. An edit of `hook_pattern` that stands before these is rewritten with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import torch

from analyses.heads.needle_slots import Needle, NeedleTables, look_up, needle_tables
from hybridlens.boundary import public
from hybridlens.boundary_words import Among
from hybridlens.errors import HookFunctionError, InputError
from hybridlens.hooks import Edit, HookFunction, HookPoint, Phase, by_query, capturable, reads_only
from hybridlens.model import HybridLens
from hybridlens.niah.prompt import SemanticsLike
from hybridlens.shapes import Pattern

KEPT = {
    "keep": (True, True),
    "omit": (False, True),
    "only": (True, False),
    "binary": (True, False),
    "null": (False, False),
}
"""Of each mode: whether weights stay (or, in `binary`, are replaced) at needle keys, and at all others."""

MODES = tuple(KEPT)

Mode: TypeAlias = Annotated[str, Among(MODES)]


@public
def manipulate(
    lens: HybridLens,
    mode: Mode | Sequence[Mode],
    span: Needle,
    phase: Phase = "decode",
    semantics: SemanticsLike = "clean",
) -> list[Edit]:
    """Edits that rewrite the attention weights of every layer around one needle, the same in all rows.

    Args:
        lens: the model.
        mode: one of `MODES`, or one for each row of the batch.
        span: the needle's positions.
        phase: "prefill" while reading, "decode" while answering.
        semantics: "clean" or "published".

    Returns:
        edits to give to `generate`, `prefill`, `extend` or `trace`; none where every mode is "keep".

    Raises:
        UnknownNameError: a mode, phase or semantics that does not exist.
        InputError: no mode, or positions that are none.
    """
    modes = [mode] if isinstance(mode, str) else list(mode)
    return manipulate_rows(lens, modes, [span] * len(modes), phase, semantics)


@public
def manipulate_rows(
    lens: HybridLens,
    modes: Sequence[Mode],
    needles: Sequence[Needle],
    phase: Phase = "decode",
    semantics: SemanticsLike = "clean",
) -> list[Edit]:
    """`manipulate` with a mode and a needle for each row of the batch; ``()`` where there is none.

    Runs of other batch sizes raise `HookFunctionError`, but where there is one mode and one needle, which are then
    every row's.

    Raises:
        UnknownNameError: as `manipulate`.
        InputError: likewise; or not one needle for each row, or a model without attention.
    """
    lens.cfg.need_attention("manipulating attention weights")
    if not modes or len(modes) != len(needles):
        raise InputError(
            f"{len(modes)} modes and {len(needles)} needles given; expected one mode and one needle for each row"
        )
    tables = needle_tables(needles, [KEPT[mode] for mode in modes], [mode == "binary" for mode in modes], lens.device)
    if all(mode == "keep" for mode in modes):
        return []
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in lens.cfg.attention_layers]
    functions: list[tuple[Phase, HookFunction]] = [(phase, _clean(tables))]
    if semantics == "published":
        functions = []
        if phase != "decode":
            functions.append(("prefill", _published_reading(tables) if "binary" in modes else _clean(tables)))
        if phase != "prefill":
            functions.append(("decode", _published_answering(tables)))
    return [Edit(name, fn, when) for when, fn in functions for name in names]


@public
def is_causal(mode: Mode, semantics: SemanticsLike) -> bool:
    """Whether, while reading, what each query gets depends only on itself and what came before it.

    Then prompts that begin alike, with needle positions that are alike there, may share what was read of it.

    Raises:
        UnknownNameError: a mode or semantics that does not exist.
    """
    return not (mode == "binary" and semantics == "published")


def _clean(tables: NeedleTables) -> HookFunction:
    @capturable
    @by_query
    @reads_only
    def rewrite(pattern: Pattern, hook: HookPoint) -> Pattern:
        here = look_up(tables, pattern, hook)
        rows, out = here.binary, pattern.masked_fill(~here.kept, 0.0)
        if not tables.binary.numel():
            return out
        seen = here.needle[rows] & here.slots.select(rows).dense(pattern.device)
        total = pattern[rows].masked_fill(~seen, 0.0).sum(dim=-1, keepdim=True, dtype=torch.float32)
        mean = total / seen.sum(dim=-1, keepdim=True).clamp(min=1)
        return out.index_copy_(0, rows, (mean * seen).to(pattern.dtype))

    return rewrite


def _published_answering(tables: NeedleTables) -> HookFunction:
    @capturable
    @by_query
    @reads_only
    def rewrite(pattern: Pattern, hook: HookPoint) -> Pattern:
        here = look_up(tables, pattern, hook)
        rows, n_heads = here.binary, pattern.shape[1]
        seen = here.needle & here.slots.dense(pattern.device)
        blind = ~seen.any(dim=-1, keepdim=True)
        out = pattern.masked_fill(~(here.kept | blind), 0.0)
        if not tables.binary.numel():
            return out
        before, seen = pattern[rows], seen[rows]
        total = before.masked_fill(~seen, 0.0).sum(dim=(1, 3), keepdim=True, dtype=torch.float32)
        number = total / n_heads / seen.sum(dim=-1, keepdim=True).clamp(min=1)
        return out.index_copy_(0, rows, torch.where(blind[rows], before, (number * seen).to(before.dtype)))

    return rewrite


def _published_reading(tables: NeedleTables) -> HookFunction:
    """`binary` beside other modes; its sum runs over all queries, so this takes no blocks of them."""

    @reads_only
    def rewrite(pattern: Pattern, hook: HookPoint) -> Pattern:
        here = look_up(tables, pattern, hook)
        rows, (n_heads, queries) = here.binary, pattern.shape[1:3]
        if pattern.shape[3] != queries:
            raise HookFunctionError(
                f"published binary at '{hook.name}' needs the whole prompt in one pass, but {queries} tokens were read "
                f"after {pattern.shape[3] - queries} held ones; read the prompt at once, or use clean semantics"
            )
        needle, real = here.needle[rows], (here.slots.key_positions >= 0)[rows, :, None]
        paid = pattern[rows].sum(dim=1, dtype=torch.float32).masked_fill(~(needle[:, 0] & real), 0.0)  # over heads
        number = paid.sum(dim=(1, 2))[:, None, None, None] / n_heads / needle.sum(dim=-1, keepdim=True).clamp(min=1)
        same = (number * needle).to(pattern.dtype).expand(-1, n_heads, queries, -1)
        return pattern.masked_fill(~here.kept, 0.0).index_copy_(0, rows, same)

    return rewrite
