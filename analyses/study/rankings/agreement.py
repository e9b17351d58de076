"""How far rankings agree: rank correlations, ties included.

Spearman's rho is Pearson's correlation of ranks, where equal scores share the mean of their ranks. Kendall's tau-b
(Kendall, "The treatment of ties in ranking problems", Biometrika 33, 1945) is Σ s_ij t_ij / sqrt(Σ s_ij² Σ t_ij²)
over pairs of heads, s and t being the signs of the differences of the two scores. Both are 1 for the same order, -1
for the reverse, and do not depend on the scores' scale.

How it fails: a ranking in which all heads are equal agrees with none: its correlations are NaN, with itself too.
Few heads give coarse values: no interval is given, since heads are no sample of anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.heads.ranking import HeadRanking
from hybridlens.errors import InputError


def spearman(rankings: Sequence[HeadRanking]) -> Float[Tensor, "ranking ranking"]:
    """Spearman's rho of every ranking with every other, -1 … 1.

    Raises:
        InputError: see `signs`.
    """
    return _cosines(signs(rankings).sum(-1))  # twice a head's rank, less the mean rank


def kendall(rankings: Sequence[HeadRanking]) -> Float[Tensor, "ranking ranking"]:
    """Kendall's tau-b of every ranking with every other, -1 … 1.

    Raises:
        InputError: see `signs`.
    """
    return _cosines(signs(rankings).flatten(1))


def signs(rankings: Sequence[HeadRanking]) -> Float[Tensor, "ranking heads heads"]:
    """For every two heads of each ranking 1 where the first is better, -1 where it is worse, and 0 for a tie.

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
    scores = torch.stack([(-r.scores if r.lower_is_better else r.scores).flatten() for r in rankings])
    first, second = scores[:, :, None], scores[:, None, :]
    return (first > second).double() - (first < second).double()


def _cosines(rows: Float[Tensor, "ranking part"]) -> Float[Tensor, "ranking ranking"]:
    """The cosine of the angle between every two rows; NaN where a row is 0."""
    products = rows @ rows.T
    norms = products.diagonal().sqrt()
    return (products / torch.outer(norms, norms)).clamp(-1.0, 1.0).float()
