"""How far rankings agree: rank correlations, ties included.

Spearman's rho is Pearson's correlation of ranks, where equal scores share the mean of their ranks; Kendall's tau-b
is scipy's (Kendall, "The treatment of ties in ranking problems", Biometrika 33, 1945). Both are 1 for the same order,
-1 for the reverse, and do not depend on the scores' scale.

How it fails: a ranking in which all heads are equal agrees with none: its correlations are NaN, with itself too.
Few heads give coarse values: no interval is given, since heads are no sample of anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.heads.ranking import HeadRanking
from hybridlens.errors import InputError


def goodness(rankings: Sequence[HeadRanking]) -> Float[Tensor, "ranking heads"]:
    """The scores of each ranking, all heads in a row, with the sign that makes the best head's the highest.

    Raises:
        InputError: no ranking, or rankings of other heads.
    """
    if not rankings:
        raise InputError("no ranking given, expected at least one")
    for ranking in rankings[1:]:
        if ranking.layers != rankings[0].layers or ranking.scores.shape != rankings[0].scores.shape:
            raise InputError(
                f"rankings of layers {list(rankings[0].layers)} and {list(ranking.layers)}, with scores "
                f"{list(rankings[0].scores.shape)} and {list(ranking.scores.shape)}, given together; "
                "give rankings of one model's heads"
            )
    return torch.stack([(-r.scores if r.lower_is_better else r.scores).flatten() for r in rankings])


def spearman(rankings: Sequence[HeadRanking]) -> Float[Tensor, "ranking ranking"]:
    """Spearman's rho of every ranking with every other, -1 … 1.

    Raises:
        InputError: see `goodness`.
    """
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(goodness(rankings).numpy(), axis=-1))
    return torch.corrcoef(ranks).reshape(len(ranks), len(ranks)).float()


def kendall(rankings: Sequence[HeadRanking]) -> Float[Tensor, "ranking ranking"]:
    """Kendall's tau-b of every ranking with every other, -1 … 1.

    Raises:
        InputError: see `goodness`.
    """
    from scipy.stats import kendalltau

    tau: Any = kendalltau
    scores = goodness(rankings).numpy()
    return torch.tensor([[float(tau(x, y).statistic) for y in scores] for x in scores])
