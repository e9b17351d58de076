"""What a model can still do when only some heads speak, retrieval apart: loss on filler text, and the local tasks.

* `filler_loss`: the mean cross-entropy of the next token over held-out filler (`analyses.experiment.filler`), in nats.
  Many conditions share a batch, each row with its own mask.
* `task_scores`: accuracy on the tasks of `analyses.study.benchmarks.local_tasks`, by lm-eval.

`measure` takes both for every ranking of a comparison. Heads are silent in prefill and in answering. Conditions with
equal masks are computed once. With no head, RecurrentGemma still adds its output bias.

How it fails: the filler is easy and says nothing; a model that needs no attention to foretell it shows no loss, so
an unchanged loss does not mean that nothing else was lost. Sentences that training missed are the longer ones, so
the loss is above that of all filler. Two of the local tasks, tiny_retrieval and tiny_recite, are retrieval and fall
with it; they have to be asked for. Without a tokenizer, or for the tasks without lm-eval, one `InputError` says so.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from analyses.experiment.filler import filler_tokens
from analyses.experiment.options.benchmarks import LOCAL_TASKS
from analyses.experiment.options.rankings import GENERAL_TASKS, RankingsConfig
from analyses.heads.ranking import HeadRanking
from analyses.heads.sparsification import keep_rows
from analyses.study.benchmarks.tasks import load_tasks, quiet, require, seeded
from analyses.study.rankings.results import RANDOM, Ability, is_draw, rows_of
from hybridlens.boundary import Positive, public
from hybridlens.boundary_words import Among
from hybridlens.errors import InputError
from hybridlens.hooks import Edit
from hybridlens.model import HybridLens

Masks: TypeAlias = Sequence[Tensor]
"""Of each condition, [attn_layer, head]: True for the heads that speak."""

METRICS: Mapping[str, str] = {"tiny_recite": "exact_match,none"}
"""lm-eval's key of a task's accuracy, where it is not "acc,none"."""


def counts_of_tasks(config: RankingsConfig, most: int) -> tuple[int, ...]:
    """The numbers of heads kept at which tasks are run.

    Raises:
        InputError: one is above the heads there are.
    """
    counts = config.task_counts or tuple(sorted({0, round(most / 4), round(most / 2), most}))
    if not 0 <= min(counts) <= max(counts) <= most:
        raise InputError(f"task counts {list(counts)} given, expected 0..{most}")
    return counts


def measure(
    lens: HybridLens, rankings: Mapping[str, HeadRanking], counts: Sequence[int], config: RankingsConfig
) -> Ability:
    """General ability for the rows of a comparison.

    Args:
        lens: the model, with a tokenizer.
        rankings: those given and random draws, by name.
        counts: heads kept, ascending from none to all.
        config: what is measured.

    Raises:
        InputError: see `counts_of_tasks`, `filler_loss` and `task_scores`.
    """
    names = rows_of(rankings, config.run_time)
    static = {name: ranking for name, ranking in rankings.items() if not is_draw(name)}
    task_counts = counts_of_tasks(config, counts[-1])

    def masks(some: Mapping[str, HeadRanking], at: Sequence[int]) -> Masks:
        return [ranking.kept(n, config.scope) for ranking in some.values() for n in at]

    def table(found: Mapping[str, Tensor], width: int) -> Float[Tensor, "ranking count"]:
        nothing = torch.full((width,), float("nan"))
        return torch.stack([found.get(name, nothing) for name in names])

    losses: dict[str, Tensor] = {}
    if config.filler_rows and rankings:
        tokens = filler_tokens(lens, config.filler_length, config.filler_rows, config.seed)
        losses |= zip(rankings, filler_loss(lens, masks(rankings, counts), tokens).split(len(counts)), strict=True)
        draws = [loss for name, loss in losses.items() if is_draw(name)]
        losses |= {RANDOM: torch.stack(draws).mean(0)} if draws else {}
    scores: dict[str, Tensor] = {}
    if config.tasks and static:
        scores = task_scores(lens, masks(static, task_counts), config.tasks, config.task_limit)
    width = len(task_counts)
    tasks = {task: table(dict(zip(static, one.split(width), strict=True)), width) for task, one in scores.items()}
    return Ability(table(losses, len(counts)), task_counts, tasks)


@public
@torch.no_grad()
def filler_loss(
    lens: HybridLens, kept: Masks, tokens: Int[Tensor, "batch pos"], batch_size: Positive = 16
) -> Float[Tensor, "condition"]:
    """Mean cross-entropy of the next token when only some heads speak, in nats.

    Args:
        lens: the model.
        kept: the conditions.
        tokens: full rows, no padding; every token but each row's first is foretold.
        batch_size: rows of a forward pass; a row is one text under one condition. Their logits at all positions are
            held at once.

    Raises:
        InputError: no condition, a mask that is not of this model's heads, rows of one token, a size below 1.
    """
    masks, of = _distinct(lens, kept)
    rows = lens.batch(tokens).tokens
    if rows.shape[1] < 2:
        raise InputError("rows of 1 token given, expected at least 2: the loss is of foretelling the next one")
    totals = torch.zeros(len(masks), dtype=torch.float64)
    for cells in torch.cartesian_prod(torch.arange(len(rows)), torch.arange(len(masks))).split(batch_size):
        row, mask = cells.unbind(1)
        read = rows[row.to(rows.device)]
        logits = lens.prefill(read, keep_rows(lens, masks[mask])).logits
        # Row by row, so that logits of half precision are not held twice.
        losses = [
            cross_entropy(one[:-1].float(), ids[1:].to(one.device)) for one, ids in zip(logits, read, strict=True)
        ]
        totals.index_add_(0, mask, torch.stack(losses).double().cpu())
    return (totals / len(rows)).float()[of]


@public
def task_scores(
    lens: HybridLens,
    kept: Masks,
    tasks: Sequence[Annotated[str, Among(LOCAL_TASKS)]] = GENERAL_TASKS,
    limit: Positive | None = None,
    batch_size: Positive = 16,
) -> dict[str, Float[Tensor, "condition"]]:
    """Accuracy on the local tasks when only some heads speak, 0 … 1.

    Args:
        lens: the model, with its tokenizer.
        kept: the conditions.
        tasks: the two that retrieve, tiny_retrieval and tiny_recite, read prompts of 160 to 220 tokens and take ten
            times as long as the others.
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
    masks, of = _distinct(lens, kept)
    loaded = load_tasks(tasks).tasks
    chosen: dict[str, list[int]] = {}
    for task in tasks:
        n = len(loaded[task].eval_docs)
        chosen[task] = sorted(random.Random(f"items of {task}").sample(range(n), min(limit or n, n)))
    found = [_scores(lens, keep_rows(lens, mask), loaded, chosen, batch_size) for mask in masks]
    return {task: torch.tensor([scores[task] for scores in found])[of] for task in tasks}


def _distinct(lens: HybridLens, kept: Masks) -> tuple[Bool[Tensor, "mask attn_layer head"], Int[Tensor, "condition"]]:
    """The masks without repetitions, checked, and which of them each condition has."""
    lens.cfg.need_attention("ranking heads")
    shape = (len(lens.cfg.attention_layers), lens.cfg.n_heads)
    if not kept:
        raise InputError("no condition given, expected at least one mask of heads, such as HeadRanking.kept(8)")
    for index, mask in enumerate(kept):
        if mask.dtype != torch.bool or mask.shape != shape:
            raise InputError(
                f"condition {index} is a mask {list(mask.shape)} of {mask.dtype}, expected truth values "
                f"{list(shape)}: the model's attention layers and their heads"
            )
    masks, of = torch.stack([mask.cpu() for mask in kept]).unique(dim=0, return_inverse=True)
    return masks, of


def _scores(
    lens: HybridLens, edits: Sequence[Edit], tasks: Mapping[str, Any], items: dict[str, list[int]], batch_size: int
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
