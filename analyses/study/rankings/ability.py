"""What a model can still do when only some heads speak, retrieval apart: loss on filler text, and the local tasks.

* `filler_loss`: the mean cross-entropy of the next token over held-out filler, in nats. Many conditions share a
  batch, each row with its own mask.
* `task_scores`: accuracy on the tasks of `analyses.study.benchmarks.local_tasks`, by lm-eval.

Heads are silent in prefill and in answering. Conditions with equal masks are computed once.

The filler is that of `analyses.experiment.filler`.

How it fails: the filler is easy and says nothing; a model that needs no attention to foretell it shows no loss, so
an unchanged loss does not mean that nothing else was lost. Sentences that training missed are the longer ones, so
the loss is above that of all filler. Two of the local tasks, tiny_retrieval and tiny_recite, are retrieval and fall
with it; they have to be asked for. Without a tokenizer, or for the tasks without lm-eval, one `InputError` says so.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.experiment.options.benchmarks import LOCAL_TASKS
from analyses.experiment.options.rankings import GENERAL_TASKS as TASKS
from analyses.heads.sparsification import keep_rows
from analyses.study.benchmarks.tasks import load_tasks, quiet, require, seeded
from analyses.study.rankings.masks import check_masks, distinct, keep_mask
from analyses.study.rankings.prompts import check_batch_size
from hybridlens.errors import InputError, UnknownNameError, closest
from hybridlens.hooks import Edit
from hybridlens.model import HybridLens

METRICS: Mapping[str, str] = {"tiny_recite": "exact_match,none"}
"""lm-eval's key of a task's accuracy, where it is not "acc,none"."""


@torch.no_grad()
def filler_loss(
    lens: HybridLens,
    kept: Sequence[Bool[Tensor, "attn_layer head"]],
    tokens: Int[Tensor, "batch pos"],
    batch_size: int = 16,
) -> Float[Tensor, "condition"]:
    """Mean cross-entropy of the next token when only some heads speak, in nats.

    Args:
        lens: the model.
        kept: for each condition, True for the heads that speak.
        tokens: full rows, no padding; every token but each row's first is foretold.
        batch_size: rows of a forward pass; a row is one text under one condition. Their logits at all positions are
            held at once.

    Raises:
        InputError: no condition, a mask that is not of this model's heads, rows of one token, a size below 1.
    """
    masks, of = distinct(check_masks(lens, kept))
    check_batch_size(batch_size)
    rows = lens.batch(tokens).tokens
    if rows.shape[1] < 2:
        raise InputError("rows of 1 token given, expected at least 2: the loss is of foretelling the next one")
    cells = [(mask, row) for row in range(rows.shape[0]) for mask in range(len(masks))]
    totals = torch.zeros(len(masks), dtype=torch.float64)
    for start in range(0, len(cells), batch_size):
        batch = cells[start : start + batch_size]
        which = torch.tensor([mask for mask, _ in batch])
        read = rows[[row for _, row in batch]]
        logits = lens.prefill(read, keep_rows(lens, masks[which])).logits
        losses = [_cross_entropy(row, ids) for row, ids in zip(logits, read, strict=True)]
        totals.index_add_(0, which, torch.stack(losses).double().cpu())
    return (totals / rows.shape[0]).float()[of]


def _cross_entropy(logits: Float[Tensor, "pos vocab"], ids: Int[Tensor, "pos"]) -> Float[Tensor, ""]:
    """Of one row: the mean over its tokens but the first, in nats, in float32."""
    return torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:].to(logits.device))


def task_scores(
    lens: HybridLens,
    kept: Sequence[Bool[Tensor, "attn_layer head"]],
    tasks: Sequence[str] = TASKS,
    limit: int | None = None,
    batch_size: int = 16,
) -> dict[str, Float[Tensor, "condition"]]:
    """Accuracy on the local tasks when only some heads speak, 0 … 1.

    Args:
        lens: the model, with its tokenizer.
        kept: for each condition, True for the heads that speak.
        tasks: of `LOCAL_TASKS`. The two that retrieve, tiny_retrieval and tiny_recite, read prompts
            of 160 to 220 tokens and take ten times as long.
        limit: so many items of each at most, drawn at random by the task's name (its first ones would be of one
            kind), the same for every condition; None for all (72 to 100).
        batch_size: contexts read together.

    Returns:
        by task; tiny_recite's is the share of sentences said word by word.

    Raises:
        InputError: lm-eval is not installed, no tokenizer that it can use, no condition, a mask that is not of this
            model's heads, a limit or size below 1, a task given twice.
        UnknownNameError: a task that is not local.
    """
    require()
    masks, of = distinct(check_masks(lens, kept))
    unknown = next((task for task in tasks if task not in LOCAL_TASKS), None)
    if unknown is not None:
        raise UnknownNameError(
            f"task {unknown!r} is no local task{closest(unknown, LOCAL_TASKS)}; "
            f"expected some of {', '.join(LOCAL_TASKS)}"
        )
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit} given, expected at least 1, or None for all items")
    check_batch_size(batch_size)
    loaded = load_tasks(tuple(tasks)).tasks
    chosen = {task: _items(task, len(loaded[task].eval_docs), limit) for task in tasks}
    found = [_scores(lens, keep_mask(lens, mask), loaded, chosen, batch_size) for mask in masks]
    return {task: torch.tensor([scores[task] for scores in found])[of] for task in tasks}


def _items(task: str, n: int, limit: int | None) -> list[int]:
    """Which of a task's `n` items are asked, ascending."""
    if limit is None or limit >= n:
        return list(range(n))
    return sorted(random.Random(f"items of {task}").sample(range(n), limit))


def _scores(
    lens: HybridLens,
    edits: Sequence[Edit],
    tasks: Mapping[str, Any],
    items: dict[str, list[int]],
    batch_size: int,
) -> dict[str, float]:
    """lm-eval's accuracy on some items of each task under some edits."""
    from lm_eval.evaluator import evaluate

    from analyses.study.benchmarks.harness import HarnessModel

    for task in tasks.values():
        task.set_fewshot_seed(seed=0)  # these tasks have no examples; lm-eval asks for a seed all the same
    with quiet(), seeded():
        model = HarnessModel(lens, edits, batch_size)
        asked: Any = {"tasks": dict(tasks)}
        found = evaluate(model, asked, samples=items, bootstrap_iters=0, log_samples=False)
    results = cast(Mapping[str, Any], found)["results"]  # it is None only for helpers of a distributed run
    return {task: float(results[task][METRICS.get(task, "acc,none")]) for task in tasks}
