"""How well estimated effects of patches, or of paths, agree with measured ones.

How it fails: correlations over many places that do nothing (before the prompts' first difference) are carried by the
few that do something; where all values of one side are the same, there is no order and correlations are NaN.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from analyses.patching.results import Compared, EdgeResult, PatchResult
from hybridlens.boundary_words import shown
from hybridlens.display import Displayed
from hybridlens.errors import InputError


class _Agreement(NamedTuple):
    """Fields of `Agreement`."""

    spearman: float
    """Correlation of ranks, equal values sharing their mean rank; NaN where all values of one side are the same."""
    pearson: float
    """Correlation of the values; NaN in the same case."""
    largest_error: float
    """Largest distance between an estimate and its measured value."""
    patches: int


class Agreement(Displayed, _Agreement):
    """Estimates against measured values of the same patches, both on the scale from 0 (corrupt) to 1 (clean)."""

    __slots__ = ()


def agreement(attributed: PatchResult, exact: PatchResult) -> Agreement:
    """Compare estimates with what patching gave.

    Args:
        attributed: what `gradients.attribution_patch` gave.
        exact: what `running.activation_patch` gave for the same arguments.

    Raises:
        InputError: the two are not of the same patches, prompts, direction, metric and model.
    """
    _check_same(attributed, exact, "axes", "hooks")
    return compared(attributed.normalised.flatten(), exact.normalised.flatten())


def edge_agreement(edges: EdgeResult, exact: PatchResult) -> Agreement:
    """Compare estimated edges with what path patching gave; pairs without an edge are left out.

    Args:
        edges: what `edges.edge_attribution` gave.
        exact: what `paths.path_patch` gave for single writers and readers, in the same order.

    Raises:
        InputError: the two are not of the same paths, prompts, direction, metric and model.
    """
    _check_same(edges, exact)
    ours = tuple(tuple(end.words for end in ends) for ends in (edges.writers, edges.readers))
    theirs = tuple(axis.labels for axis in exact.axes)
    if ours != theirs:
        raise InputError(f"the two results are of different edges, {shown(ours)} and {shown(theirs)}; give the same")
    there = ~edges.scores.isnan()
    change = exact.change / (edges.clean - edges.corrupt)
    return compared(edges.normalised[there], change[there])


def compared(ours: Float[Tensor, "place"], theirs: Float[Tensor, "place"]) -> Agreement:
    """Estimates against measured values."""
    from scipy.stats import pearsonr, spearmanr

    x, y = ours.double().numpy(), theirs.double().numpy()
    rank: Any = spearmanr
    linear: Any = pearsonr
    varied = min(len(ours.unique()), len(theirs.unique())) > 1
    return Agreement(
        spearman=float(rank(x, y).statistic) if varied else math.nan,
        pearson=float(linear(x, y).statistic) if varied else math.nan,
        largest_error=float((ours - theirs).abs().max()) if ours.numel() else 0.0,
        patches=ours.numel(),
    )


def _check_same(ours: Compared, theirs: Compared, *fields: str) -> None:
    for what in ("direction", "model", "clean_tokens", "corrupt_tokens", *fields):
        mine, its = getattr(ours, what), getattr(theirs, what)
        if mine != its:
            raise InputError(
                f"the two results differ in their {what}: {shown(mine)} and {shown(its)}; give estimates and "
                "measured values of the same patches on the same prompts"
            )
    if not ours.metric.startswith(theirs.metric):
        raise InputError(
            f"the two results are of different metrics, '{ours.metric}' and '{theirs.metric}'; give both the same"
        )
