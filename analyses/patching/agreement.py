"""How well estimated effects of patches agree with measured ones.

How it fails: correlations over many places that do nothing (before the prompts' first difference) are carried by the
few that do something; where all values of one side are the same, there is no order and correlations are NaN.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from analyses.patching.results import PatchResult
from hybridlens.errors import InputError


class Agreement(NamedTuple):
    """Estimates against measured values of the same patches, both on the scale from 0 (corrupt) to 1 (clean)."""

    spearman: float
    """Correlation of ranks, equal values sharing their mean rank; NaN where all values of one side are the same."""
    pearson: float
    """Correlation of the values; NaN in the same case."""
    largest_error: float
    """Largest distance between an estimate and its measured value."""
    patches: int


def agreement(attributed: PatchResult, exact: PatchResult) -> Agreement:
    """Compare estimates with what patching gave.

    Args:
        attributed: what `gradients.attribution_patch` gave.
        exact: what `running.activation_patch` gave for the same arguments.

    Raises:
        InputError: the two are not of the same patches, prompts, direction, metric and model.
    """
    for what in ("axes", "hooks", "direction", "model", "clean_tokens", "corrupt_tokens"):
        ours, theirs = getattr(attributed, what), getattr(exact, what)
        if ours != theirs:
            raise InputError(
                f"the two results differ in their {what}: {_short(ours)} and {_short(theirs)}; give estimates and "
                "measured values of the same patches on the same prompts"
            )
    if not attributed.metric.startswith(exact.metric):
        raise InputError(
            f"the two results are of different metrics, '{attributed.metric}' and '{exact.metric}'; give both the same"
        )
    ours, theirs = attributed.normalised.flatten(), exact.normalised.flatten()
    return Agreement(
        spearman=correlation(ranks(ours), ranks(theirs)),
        pearson=correlation(ours, theirs),
        largest_error=float((ours - theirs).abs().max()) if ours.numel() else 0.0,
        patches=ours.numel(),
    )


def ranks(x: Float[Tensor, "place"]) -> Float[Tensor, "place"]:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, where, counts = x.unique(sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts + 1) / 2)[where]


def correlation(x: Float[Tensor, "place"], y: Float[Tensor, "place"]) -> float:
    """Pearson's correlation; NaN where one side does not vary."""
    if not (bool((x != x[:1]).any()) and bool((y != y[:1]).any())):
        return float("nan")
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return float((x * y).sum() / (x.norm() * y.norm()))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
