"""Attribution patching: what every patch would do, estimated from gradients in a few passes, however many patches.

To first order a patch changes the metric by gradient · (other run's value - own value), summed over the entries that it
replaces (Nanda 2023, "Attribution Patching"; Syed et al. 2023). One pass forward and backward over the run that is
patched and one pass forward over the other give this for all patches at once. The results are `PatchResult`s of the
same patches as `running.activation_patch` gives, so that the two can be compared (`analyses.patching.agreement`).

With `steps`, gradients are averaged over runs whose `hook_embed` is on the way from one prompt's to the other's
(integrated gradients along the input, Sundararajan et al. 2017; Hanna et al. 2024), at the middles of `steps` equal
parts. What is then estimated for the whole of `hook_embed` tends to the whole difference between the prompts.

Recurrent states: the gradient at `ssm.hook_state` is the total one, through the entry and all later states that
continue from it, which is what a patch of one position changes. A patch of several positions cuts each off from the
one before it, so that an entry counts with what the patch changes there beyond what its predecessor would have
handed on. So do recalls and writes of a delta rule, which are made of the state before them. How it is handed on, the
mixer says (`hybridlens.mixers.recurring.Trajectory`).

How it fails:
* It is a straight line through a curved function: large activations (residual streams, the embedding), saturated
  softmaxes and experts that change hands are estimated badly. A metric at its optimum in the patched run (divergence
  from that very run) has no slope there, and all estimates are 0; give `steps`, or patch in the other direction.
* Hook points of one patch are added up, as if none lay downstream of another.
* RG-LRU's gradient is bounded where its decay comes near 1, as in the reference, and lies below the slope there.
* The passes hold everything that was asked for at once, and the graph behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from analyses.experiment.per_prompt import PerPrompt, Prompts, per_prompt
from analyses.patching.alignment import Sides
from analyses.patching.metrics import MetricLike
from analyses.patching.over import Over
from analyses.patching.results import Direction, PatchResult
from analyses.patching.running import laid_out
from analyses.patching.slopes import Runs, Slopes, compare, wide
from analyses.patching.sweeps import sweep_of
from analyses.patching.targets import Located, Patch, as_patch, locate
from hybridlens.boundary import Positive, public
from hybridlens.hooks import NameFilter
from hybridlens.mixers.recurring import HasTrajectories, Trajectory
from hybridlens.model import HybridLens
from hybridlens.tokens import TokensLike


@per_prompt("clean", each=["corrupt"], shared={"metric": 1})
@public
def attribution_patch(
    lens: HybridLens,
    clean: TokensLike,
    corrupt: TokensLike,
    metric: MetricLike,
    hooks: NameFilter = None,
    over: Over = (),
    *,
    targets: Sequence[Patch] | None = None,
    direction: Direction = "denoise",
    steps: Positive | None = None,
) -> PatchResult:
    """Estimate by gradients what `activation_patch` measures for the same arguments.

    Args:
        metric: one with a gradient.
        steps: so many runs between the two inputs for integrated gradients; None for the patched run's gradient.

    Returns:
        the estimates, as the metric of the patched run plus the estimated change; `metric` says how they were made.

    Raises:
        InputError: what `activation_patch` refuses, or a metric or hook point without a gradient.
        UnknownNameError: a hook point or direction that does not exist.
    """
    sides = Sides.of(lens, clean, corrupt, metric, direction)
    grid = laid_out(lens, hooks, over, targets, sides.labels)
    length = sides.clean.shape[1]
    parts = [_by_point([locate(lens, target, length) for target in as_patch(patch)]) for patch in grid.patches]
    going_on = {name: found for name in grid.hooks if (found := _trajectory(lens, name)) is not None}
    several = {name for part in parts for name, found in part.items() if _at_several(found, length)}
    needed = [point for name in going_on if name in several for point in going_on[name].points]
    runs = compare(sides, (*grid.hooks, *needed), steps)
    total = torch.zeros(len(parts), dtype=torch.float64)
    for here in runs.passes:
        products: dict[str, Tensor] = {}
        for name in grid.hooks:  # 0 where nothing changes, whatever the gradient there
            change = runs.change(name)
            products[name] = torch.where(change == 0, 0.0, change * wide(here.gradients[name][0]))
        effects = [
            sum(_effect(name, found, products[name], runs, here, going_on.get(name)) for name, found in part.items())
            for part in parts
        ]
        total += torch.tensor(effects, dtype=torch.float64)
    raw = (runs.value + total / runs.count).view(grid.shape)
    return PatchResult(raw=raw, axes=grid.axes, hooks=grid.hooks, **runs.said)


@overload
def attribution_sweep(
    lens: HybridLens, name: str, clean: Prompts, corrupt: Any, metric: Any, **options: Any
) -> PerPrompt[PatchResult]: ...


@overload
def attribution_sweep(
    lens: HybridLens, name: str, clean: TokensLike, corrupt: TokensLike, metric: MetricLike, **options: Any
) -> PatchResult: ...


def attribution_sweep(
    lens: HybridLens, name: str, clean: Any, corrupt: Any, metric: Any, **options: Any
) -> PatchResult | PerPrompt[PatchResult]:
    """Estimate a ready sweep: arguments as in `sweeps.sweep`, options `direction` and `steps` of `attribution_patch`.

    Raises:
        UnknownNameError: there is no such sweep, or the model has nothing of the kind.
        InputError: what `attribution_patch` refuses.
    """
    wanted = sweep_of(lens, name)
    return attribution_patch(lens, clean, corrupt, metric, wanted.hooks(lens), wanted.over, **options)


def _by_point(parts: Sequence[Located]) -> dict[str, list[Located]]:
    found: dict[str, list[Located]] = {}
    for part in parts:
        found.setdefault(part.name, []).append(part)
    return found


def _trajectory(lens: HybridLens, name: str) -> Trajectory | None:
    """How a hook point's values go on from token to token, its points named in full; None where they do not."""
    owner, _, point = name.rpartition(".")
    mixer = lens.network.get_submodule(owner)
    found = mixer.trajectories.get(point) if isinstance(mixer, HasTrajectories) else None
    return None if found is None else found._replace(points=tuple(f"{owner}.{point}" for point in found.points))


def _at_several(parts: Sequence[Located], length: int) -> bool:
    """Whether a patch replaces values at several positions, so that what the first hands on reaches the next."""
    touched = [part for part in parts if part.first < length]
    return bool(touched) and min(p.first for p in touched) < max(p.last for p in touched)


def _effect(
    name: str, parts: Sequence[Located], product: Tensor, runs: Runs, here: Slopes, going_on: Trajectory | None
) -> float:
    """What patching these parts of one hook point changes; entries named twice count once."""
    handing_on = going_on is not None and _at_several(parts, product.shape[0])
    if len(parts) == 1 and not handing_on:
        return float(product[parts[0].selectors({})[1]].sum(dtype=torch.float64))
    mask = torch.zeros_like(product, dtype=torch.bool)
    for part in parts:
        mask[part.selectors({})[1]] = True
    if going_on is None or not handing_on:
        return float(product[mask].sum(dtype=torch.float64))
    seen = {point.rpartition(".")[2]: here.values[point] for point in going_on.points}
    change, gradient = runs.change(name)[None], wide(here.gradients[name])
    with torch.no_grad():
        return float(going_on.first_order(seen, mask[None], change, gradient)[0])
