"""The prompts of an experiment, made of its options for one needle.

How it fails: what depends on the model raises `InputError`: a tokenizer without offsets, too small a context, k above
its heads, semantics that its dtype cannot have, a budget of memory below one prompt. That there is a tokenizer is for
the experiment to see to (`analyses.experiment.running`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analyses.experiment.checkpoints import checkpoint_dtype
from analyses.experiment.options.needles import AnswerOptions, PromptOptions
from analyses.heads.entropy import check_semantics
from hybridlens import niah
from hybridlens.config import LensConfig
from hybridlens.engine import Budget, costs_of
from hybridlens.errors import InputError
from hybridlens.loading import resolve_dtype
from hybridlens.model import HybridLens
from hybridlens.niah.lengths import PAPER_MAX_LENGTH
from hybridlens.tokens import check_context


def prompts_of(
    lens: HybridLens,
    options: PromptOptions,
    needle: niah.Needle,
    *,
    lengths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    control: bool = False,
    jrt: bool = False,
    semantics: str = "clean",
    haystack: niah.Haystack | None = None,
) -> list[niah.Prompt]:
    """One needle's prompts, length by length, the control of a length after its depths.

    Args:
        lens: the model, with a tokenizer.
        options: filler, template, seed and lengths of answers are theirs.
        needle: what is hidden.
        lengths: tokens of the prompts; None for those of the options, or ten up to the model's context.
        depths: in percent; None for those of the options.
        control: whether there are prompts with the needle left out too, one a length.
        jrt: whether context and question are given twice.
        semantics: of the builder.
        haystack: another than that of the options.

    Raises:
        InputError: see the module, and `hybridlens.niah.grid`.
    """
    check_semantics(semantics, lens.dtype)
    how: dict[str, Any] = {
        "depths": options.depths if depths is None else depths,
        "haystack": options.haystack if haystack is None else haystack,
        "needle": needle,
        "template": options.template,
        "jrt": jrt,
        "semantics": semantics,
        "seed": options.seed,
    }
    lengths = options.lengths if lengths is None else lengths
    if lengths is None:
        lengths = niah.default_lengths(longest(lens, options), niah.shortest_length(lens.tokenizer, **how))
    prompts = niah.grid(lens.tokenizer, lengths, **how)
    if control:
        prompts += niah.controls(lens.tokenizer, lengths, **how)
    for prompt in prompts:  # the published builder's lengths are only near those asked for
        check_context(len(prompt.tokens) + options.max_new_tokens, lens.cfg.n_ctx)
    order = {length: index for index, length in enumerate(lengths)}
    prompts.sort(key=lambda prompt: order[prompt.length])
    return prompts


def longest(lens: HybridLens, options: PromptOptions) -> int:
    """Tokens of the longest prompt by default: the paper's, or what tokenizer, context and answer leave."""
    limits = [PAPER_MAX_LENGTH, int(lens.tokenizer.model_max_length)]
    return min(limits if lens.cfg.n_ctx is None else [*limits, lens.cfg.n_ctx - options.max_new_tokens])


def check_heads(heads: tuple[int, ...] | None, n_heads: int, model: str) -> tuple[int, ...]:
    """The k's to run: those given, or 0 … n_heads.

    Raises:
        InputError: one is above the model's heads.
    """
    if heads is None:
        return tuple(range(n_heads + 1))
    if max(heads) > n_heads:
        has = f"{n_heads} heads in each layer" if n_heads else "no attention, so that there is nothing to silence"
        raise InputError(f"--heads {max(heads)} given, expected 0..{n_heads}: {model} has {has}")
    return heads


def check_budget(options: PromptOptions, cfg: LensConfig, dtype: str) -> None:
    """Refuse a budget too small for a row; of default lengths at least one token is known.

    Args:
        options: budget and lengths.
        cfg: the model's sizes.
        dtype: as typed.

    Raises:
        InputError: saying how much is needed.
    """
    check_budget_of(options, cfg, dtype, max(options.lengths or (1,)))


def check_budget_of(options: AnswerOptions, cfg: LensConfig, dtype: str, length: int) -> None:
    """Refuse a budget too small for a prompt of `length` tokens and its answer; see `check_budget`."""
    if options.memory is None:
        return
    costs = costs_of(
        cfg, checkpoint_dtype(options.model, options.revision) if dtype == "auto" else resolve_dtype(dtype)
    )
    Budget(costs, options.memory).check(length + options.max_new_tokens)
