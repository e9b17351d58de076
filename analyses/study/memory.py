"""Budgets that are too small for one prompt, refused as soon as a model's sizes are known."""

from __future__ import annotations

from analyses.experiment.options.needles import PromptOptions
from hybridlens.config import LensConfig
from hybridlens.engine import Budget, costs_of
from hybridlens.loading import resolve_dtype


def check_budget(options: PromptOptions, cfg: LensConfig, dtype: str) -> None:
    """Refuse a budget too small for a row; of default lengths at least one token is known.

    Args:
        options: budget and lengths.
        cfg: the model's sizes.
        dtype: as typed.

    Raises:
        InputError: saying how much is needed.
    """
    costs = costs_of(cfg, resolve_dtype(dtype))
    Budget(costs, options.memory).check(max(options.lengths or (1,)) + options.max_new_tokens)
