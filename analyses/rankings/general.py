"""General ability under every ranking and count: held-out loss, and the local tasks at a few counts.

The measures are those of `analyses.rankings.ability`; equal choices of heads are measured once. What was measured is
kept in `ability.json`, with a digest of all that it depends on, so that a run that was stopped, or one whose cells
are done, does not measure again.

How it fails: see `analyses.rankings.ability`; a file that is damaged, or of other values, is measured anew and
written over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.ranking import HeadRanking
from analyses.rankings.ability import filler_loss, filler_tokens, task_scores
from analyses.rankings.config import RankingsConfig
from analyses.rankings.results import RANDOM, RUN_TIME, Ability, is_draw, rows_of
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.results import hash_json, write_json

FILE = "ability.json"


def measure(
    lens: HybridLens,
    rankings: Mapping[str, HeadRanking],
    counts: Sequence[int],
    config: RankingsConfig,
    folder: Path | None = None,
    weights_hash: str = "",
) -> Ability:
    """General ability for the rows of a comparison.

    Args:
        lens: the model, with a tokenizer.
        rankings: those given and random draws, by name.
        counts: heads kept, ascending from none to all.
        config: what is measured.
        folder: where it is kept; None to keep nothing.
        weights_hash: digest of the model's weights, of which what is kept depends.

    Raises:
        InputError: a task count above the heads there are; see `filler_loss` and `task_scores`.
    """
    most = counts[-1]
    task_counts = config.task_counts or tuple(sorted({0, round(most / 4), round(most / 2), most}))
    if not 0 <= min(task_counts) <= max(task_counts) <= most:
        raise InputError(f"task counts {list(task_counts)} given, expected 0..{most}")
    names = rows_of(rankings, config.run_time)
    orders = {name: ranking.order for name, ranking in rankings.items()}
    depends: list[Any] = [weights_hash, str(lens.dtype), config.scope, config.seed, list(counts), list(task_counts)]
    depends += [orders, config.filler_rows, config.filler_length, list(config.tasks), config.task_limit, list(names)]
    key = hash_json(depends)
    if folder is not None and (kept := _read(folder / FILE, key)) is not None:
        return kept
    loss = _losses(lens, rankings, counts, config)
    tasks = _tasks(lens, rankings, task_counts, config)
    if folder is not None:
        values = {
            "loss": _plain(loss),
            "task_counts": list(task_counts),
            "tasks": {n: _plain(t) for n, t in tasks.items()},
        }
        write_json(folder / FILE, {"depends": key, "rows": list(names), "counts": list(counts), **values})
    return Ability(loss, task_counts, tasks)


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


def _plain(values: Tensor) -> list[list[float | None]]:
    """Rows of numbers as JSON has them, None for NaN."""
    rows: list[list[float]] = values.tolist()
    return [[None if value != value else value for value in row] for row in rows]


def _tensor(rows: list[list[float | None]]) -> Tensor:
    return torch.tensor([[float("nan") if value is None else value for value in row] for row in rows])


def _read(path: Path, key: str) -> Ability | None:
    """What a file holds, where it is of the same values."""
    try:
        held = json.loads(path.read_bytes())
        if held["depends"] != key:
            return None
        tasks = {name: _tensor(rows) for name, rows in held["tasks"].items()}
        return Ability(_tensor(held["loss"]), tuple(held["task_counts"]), tasks)
    except (OSError, ValueError, KeyError, TypeError):
        return None
