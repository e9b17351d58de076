"""General ability under every ranking and count: held-out loss, and the local tasks at a few counts.

The measures are those of `analyses.study.rankings.ability`; equal choices of heads are measured once.

How it fails: see `analyses.study.rankings.ability`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.filler import filler_tokens
from analyses.experiment.options.rankings import RankingsConfig
from analyses.heads.ranking import HeadRanking
from analyses.study.rankings.ability import filler_loss, task_scores
from analyses.study.rankings.results import RANDOM, RUN_TIME, Ability, is_draw, rows_of
from hybridlens.errors import InputError
from hybridlens.model import HybridLens


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
    task_counts = counts_of_tasks(config, counts[-1])
    loss = _losses(lens, rankings, counts, config)
    return Ability(loss, task_counts, _tasks(lens, rankings, task_counts, config))


def _losses(
    lens: HybridLens, rankings: Mapping[str, HeadRanking], counts: Sequence[int], config: RankingsConfig
) -> Float[Tensor, "ranking count"]:
    names = rows_of(rankings, config.run_time)
    losses = torch.full((len(names), len(counts)), float("nan"))
    if not config.filler_rows or not rankings:
        return losses
    tokens = filler_tokens(lens, config.filler_length, config.filler_rows, config.seed)
    masks = [ranking.kept(n, config.scope) for ranking in rankings.values() for n in counts]
    found = dict(zip(rankings, filler_loss(lens, masks, tokens).view(len(rankings), -1), strict=True))
    for row, name in enumerate(names):
        if name == RANDOM:
            losses[row] = torch.stack([loss for draw, loss in found.items() if is_draw(draw)]).mean(0)
        elif name != RUN_TIME:
            losses[row] = found[name]
    return losses


def _tasks(
    lens: HybridLens, rankings: Mapping[str, HeadRanking], task_counts: Sequence[int], config: RankingsConfig
) -> dict[str, Float[Tensor, "ranking task_count"]]:
    names = rows_of(rankings, config.run_time)
    ranked = [name for name in names if name not in (RUN_TIME, RANDOM)]
    if not config.tasks or not ranked:
        return {}
    masks = [rankings[name].kept(n, config.scope) for name in ranked for n in task_counts]
    scores = task_scores(lens, masks, config.tasks, config.task_limit)
    tasks: dict[str, Tensor] = {}
    for task, found in scores.items():
        tasks[task] = torch.full((len(names), len(task_counts)), float("nan"))
        tasks[task][[names.index(name) for name in ranked]] = found.view(len(ranked), -1).float()
    return tasks
