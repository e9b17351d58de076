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
from typing import NamedTuple, cast

import torch
from torch import Tensor

from analyses.patching.metrics import Metric, NeedleScore, Rank, measured
from analyses.patching.results import check_ends
from analyses.patching.running import ENDS, captured
from hybridlens.errors import InputError
from hybridlens.hooks import HookPoint, reads_only
from hybridlens.model import HybridLens
from hybridlens.network import Output
from hybridlens.shapes import Resid, Tokens

INPUT = "hook_embed"
"""Where runs are moved from one prompt to the other."""

IN_STEPS = (Rank, NeedleScore)
"""Metrics that move in steps, and so have no gradient."""


def estimated(words: str, steps: int | None) -> str:
    """A metric's words where its change is estimated."""
    return f"{words}, estimated by " + ("gradients" if steps is None else f"integrated gradients in {steps} steps")


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
    clean: float
    corrupt: float
    passes: Iterator[Slopes]
    """The differentiated runs, each made when it is asked for."""
    count: int
    """How many these are."""
    forwards: int
    """Forward passes in all."""

    def change(self, name: str) -> Tensor:
        """What a patch adds to an activation, without the batch axis; 0 where both are infinite."""
        base, source = (wide(run[name][0]) for run in (self.base, self.source))
        return torch.where(source == base, 0.0, source - base)


def compare(
    lens: HybridLens, pair: tuple[Tokens, Tokens], direction: str, metric: Metric, names: Sequence[str],
    steps: int | None,
) -> Runs:  # fmt: skip
    """Two runs side by side, and the gradients of a metric between them.

    Args:
        lens: the model.
        pair: the clean and the corrupt prompt [1 p].
        direction: one of `DIRECTIONS`.
        metric: what is differentiated.
        names: hook points whose activations and gradients are wanted.
        steps: runs between the two inputs; None for the patched run alone.

    Raises:
        InputError: steps below 1, a metric or hook point without a gradient, or a metric that does not tell the two
            prompts apart.
    """
    if steps is not None and steps < 1:
        raise InputError(f"steps = {steps} given, expected at least 1, or None for the patched run's gradient alone")
    if isinstance(metric, IN_STEPS):
        raise _no_gradient(metric)
    which = 1 if direction == "denoise" else 0
    base, source = pair[which], pair[1 - which]
    last_only = metric.last_only and "hook_logits" not in names
    wanted = list(dict.fromkeys(names if steps is None else (*names, INPUT)))
    ends = [0.0, 0.0]
    there, output = captured(lens, source, wanted, last_only)
    ends[1 - which] = _value(lens, metric, output, ENDS[1 - which])
    if steps is None:
        start = slopes(lens, base, metric, wanted, last_only)
        here, passes = start.values, iter([start])
        ends[which] = start.metric
    else:
        here, output = captured(lens, base, wanted, last_only)
        ends[which] = _value(lens, metric, output, ENDS[which])
        passes = (
            slopes(lens, base, metric, names, last_only, here[INPUT].lerp(there[INPUT], (step + 0.5) / steps))
            for step in range(steps)
        )
    check_ends(ends[0], ends[1], metric.words)
    return Runs(here, there, ends[0], ends[1], passes, steps or 1, 2 if steps is None else 2 + steps)


def _value(lens: HybridLens, metric: Metric, output: Output, what: str) -> float:
    with torch.no_grad():
        return float(measured(metric, lens, output, [what])[0])


def slopes(
    lens: HybridLens, tokens: Tokens, metric: Metric, names: Sequence[str], last_only: bool,
    embedded: Resid | None = None,
) -> Slopes:  # fmt: skip
    """The gradient of a metric by the activations of one run; no gradient is left on the model.

    Args:
        lens: the model.
        tokens: the prompt [1 p].
        metric: what is differentiated.
        names: hook points.
        last_only: unembed only the last position.
        embedded: what enters block 0 instead of the prompt's embedding.

    Raises:
        InputError: a metric or hook point without a gradient, or a value that is no finite number.
    """
    kept: dict[str, Tensor] = {}

    def enter(tensor: Tensor, hook: HookPoint) -> Tensor:
        """The input as a leaf, so that nothing before it, and no weight, is differentiated."""
        return (tensor if embedded is None else embedded).detach().requires_grad_()

    @reads_only
    def keep(tensor: Tensor, hook: HookPoint) -> None:
        kept[cast(str, hook.name)] = tensor

    holder = _Held(metric)
    with torch.enable_grad():
        with lens.hooks([(INPUT, enter), *((name, keep) for name in names)]):
            output = lens.network(tokens, None, None, last_only)
        for name in names:
            if not kept[name].is_floating_point():
                raise InputError(f"'{name}' holds {kept[name].dtype}, which has no gradient; patch it exactly instead")
        value = measured(holder, lens, output, ["the prompt"])
        if not holder.values[-1].requires_grad:
            raise _no_gradient(metric)
        value_of = holder.values[-1].sum()
        found = torch.autograd.grad(value_of, [kept[name] for name in names], materialize_grads=True)
    values = {name: kept[name].detach() for name in names}
    return Slopes(values, dict(zip(names, found, strict=True)), float(value[0]))


class _Held(Metric):
    """A metric whose values are kept, with their graph."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.values: list[Tensor] = []

    @property
    def words(self) -> str:
        """The metric's."""
        return self.metric.words

    def of(self, lens: HybridLens, output: Output) -> Tensor:
        """The metric's."""
        self.values.append(self.metric.of(lens, output))
        return self.values[-1]


def _no_gradient(metric: Metric) -> InputError:
    return InputError(
        f"metric '{metric.words}' has no gradient (it moves in steps, or was detached); give LogitDifference, "
        "LogProbability, KullbackLeibler or a differentiable function of the logits, or patch exactly"
    )


def wide(x: Tensor) -> Tensor:
    """`x` in float32 or float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
