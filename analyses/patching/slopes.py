"""Gradients of a metric by the activations of a run, or of runs between two prompts.

One pass forward and one backward give the gradient at any hook points. `compare` sets two untouched runs side by side
and says in which runs gradients are taken: the one that is patched, or, for integrated gradients, several whose
`hook_embed` is on the way from its prompt's to the other's, at the middles of equal parts.

How it fails: metrics that move in steps (ranks, needle scores) and points that hold whole numbers have no gradient, and
are refused. All activations asked for are held at once, and the graph behind them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from analyses.patching.alignment import Sides
from analyses.patching.metrics import Metric, NeedleScore, Rank, checked
from analyses.patching.snapshot import captured, keeping
from hybridlens.errors import InputError
from hybridlens.hooks import HookPoint
from hybridlens.model import HybridLens
from hybridlens.shapes import Resid, Tokens

INPUT = "hook_embed"
"""Where runs are moved from one prompt to the other."""


class Slopes(NamedTuple):
    """One run, differentiated."""

    values: Mapping[str, Tensor]
    """Activations by hook point [1 …]."""
    gradients: Mapping[str, Tensor]
    """How the metric changes with each of their entries."""
    metric: float


@dataclass(frozen=True)
class Runs:
    """The two untouched runs, and the runs in which gradients are taken."""

    base: Mapping[str, Tensor]
    """The activations of the run that is patched [1 …]."""
    source: Mapping[str, Tensor]
    """Those of the other run."""
    value: float
    """The metric of the run that is patched."""
    passes: Iterator[Slopes]
    """The differentiated runs, each made when it is asked for."""
    count: int
    """How many these are."""
    said: Mapping[str, Any]
    """What a result says of both runs: see `Sides.said`."""

    def change(self, name: str) -> Tensor:
        """What a patch adds to an activation, without the batch axis; 0 where both are infinite."""
        base, source = (wide(run[name][0]) for run in (self.base, self.source))
        return torch.where(source == base, 0.0, source - base)


def compare(sides: Sides, names: Sequence[str], steps: int | None) -> Runs:
    """Two runs side by side, and the gradients of a metric at some hook points, in `steps` runs between them.

    Raises:
        InputError: a metric or hook point without a gradient, or a metric that does not tell the two prompts apart.
    """
    lens, metric = sides.lens, sides.metric
    if isinstance(metric, Rank | NeedleScore):
        raise _no_gradient(metric)
    names = list(dict.fromkeys(names))
    last_only = metric.last_only and "hook_logits" not in names
    wanted = names if steps is None else list(dict.fromkeys((*names, INPUT)))
    there, output = captured(lens, sides.source, wanted, last_only)
    other = sides.value(output, sides.source)
    if steps is None:
        start = slopes(lens, sides.base, metric, wanted, last_only)
        here, value, passes = start.values, start.metric, iter([start])
        words = f"{metric.words}, estimated by gradients"
    else:
        here, output = captured(lens, sides.base, wanted, last_only)
        value = sides.value(output, sides.base)
        moved = (here[INPUT].lerp(there[INPUT], (step + 0.5) / steps) for step in range(steps))
        passes = (slopes(lens, sides.base, metric, names, last_only, embedded) for embedded in moved)
        words = f"{metric.words}, estimated by integrated gradients in {steps} steps"
    said = sides.said(sides.ends(value, other), 2 + (steps or 0)) | {"metric": words}
    return Runs(here, there, value, passes, steps or 1, said)


def slopes(
    lens: HybridLens, tokens: Tokens, metric: Metric, names: Sequence[str], last_only: bool,
    embedded: Resid | None = None,
) -> Slopes:  # fmt: skip
    """The gradient of a metric by the activations of one run; no gradient is left on the model.

    `embedded` enters block 0 instead of the prompt's embedding. A metric or hook point without a gradient is refused,
    and so is a value that is no finite number.
    """
    kept: dict[str, Tensor] = {}

    def enter(tensor: Tensor, hook: HookPoint) -> Tensor:
        """The input as a leaf, so that nothing before it, and no weight, is differentiated."""
        return (tensor if embedded is None else embedded).detach().requires_grad_()

    with torch.enable_grad():
        with lens.hooks([(INPUT, enter), *((name, keeping(kept)) for name in names)]):
            output = lens.network(tokens, None, None, last_only)
        for name in names:
            if not kept[name].is_floating_point():
                raise InputError(f"'{name}' holds {kept[name].dtype}, which has no gradient; patch it exactly instead")
        value = metric.of(lens, output)
        number = float(checked(metric, value, output, ["the prompt"])[0])
        if not value.requires_grad:
            raise _no_gradient(metric)
        found = torch.autograd.grad(value.sum(), [kept[name] for name in names], materialize_grads=True)
    held = {name: kept[name].detach() for name in names}
    return Slopes(held, dict(zip(names, found, strict=True)), number)


def _no_gradient(metric: Metric) -> InputError:
    return InputError(
        f"metric '{metric.words}' has no gradient (it moves in steps, or was detached); give LogitDifference, "
        "LogProbability, KullbackLeibler or a differentiable function of the logits, or patch exactly"
    )


def wide(x: Tensor) -> Tensor:
    """`x` in float32 or float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
