"""Ablation: zeros, means or another prompt's values put in, at the same targets and by the same machinery as patching.

=========  =================================================================================================
zero       0
mean       the mean over the prompt's positions, over a set of prompts at each position, or over both
resample   the values of a prompt drawn, with a seed, from a set, one draw for each patch
=========  =================================================================================================

Mean and resample leave the model nearer to what it is used to than zero does: zeros do not tell a component that always
writes the same from one that the prompt needs.

How it fails: a mean over positions is refused at points with a key axis, whose keys differ from query to query, and
zeros at attention scores, where they would open keys that are masked; so are zeros and means of expert indices. What is
drawn from one prompt only is that prompt's effect as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from analyses.experiment.per_prompt import per_prompt
from analyses.patching.alignment import Sides, check_lengths, one_prompt
from analyses.patching.metrics import MetricLike
from analyses.patching.over import Over
from analyses.patching.results import ABLATIONS, PatchResult
from analyses.patching.running import BATCH, MEMORY, Prepared, Source, laid_out
from analyses.patching.targets import Patch
from hybridlens.boundary import Positive, Seed, public
from hybridlens.boundary_words import Among
from hybridlens.errors import InputError
from hybridlens.hooks import NameFilter
from hybridlens.model import HybridLens
from hybridlens.shapes import Tokens
from hybridlens.tokens import TokensLike

MEANS = ("positions", "prompts", "both")
"""What a mean is taken over."""


@per_prompt("clean", each=["corrupt"], shared={"metric": 1})
@public
def ablate(
    lens: HybridLens,
    clean: TokensLike,
    metric: MetricLike,
    hooks: NameFilter = None,
    over: Over = (),
    *,
    targets: Sequence[Patch] | None = None,
    kind: Annotated[str, Among(ABLATIONS)] = "mean",
    prompts: Sequence[TokensLike] = (),
    mean_over: Annotated[str, Among(MEANS)] = "positions",
    seed: Seed = 0,
    corrupt: TokensLike | None = None,
    batch_size: Positive = BATCH,
    memory: Annotated[int, Ge(1)] = MEMORY,
    skip_positions: bool = True,
    progress: Callable[[int], None] | None = None,
) -> PatchResult:
    """Take one place after the other out of a run, and measure what that does.

    Args not named here are those of `running.activation_patch`.

    Args:
        clean: the prompt, or a list of them.
        kind: "zero", "mean" or "resample".
        prompts: what means are taken over, and values drawn from; for a mean over positions the prompt itself by
            default. Of the prompt's length, but for means over positions and both.
        mean_over: "positions", "prompts" (at each position its own mean) or "both".
        seed: of the draws.
        corrupt: a prompt that gives the result a scale from 1 to 0; without one `PatchResult.change` tells the effect.

    Raises:
        InputError: no prompts where some are needed, prompts of unequal length, or what `activation_patch` refuses.
        UnknownNameError: a kind, a hook point or something to take means over that does not exist.
    """
    sides = Sides.of(lens, clean, corrupt, metric, kind)
    others = [one_prompt(lens, prompt, "ablation") for prompt in prompts]
    width = max(1, len(others)) if kind == "resample" else 1
    grid = laid_out(lens, hooks, over, targets, sides.labels)
    sweep = Prepared(sides, grid, 0, batch_size, max(1, memory // width), skip_positions)
    source = _source(sides, others, mean_over, seed, sweep.last_only)
    floor = None if corrupt is None else sides.value(source.run(sides.corrupt)[1], sides.corrupt)
    return sweep.result(source, (sweep.value, floor), progress)


def _source(sides: Sides, others: Sequence[Tokens], mean_over: str, seed: int, last_only: bool) -> Source:
    lens, kind, length = sides.lens, sides.direction, sides.clean.shape[1]
    if kind == "zero":
        return Zeros(lens, [sides.clean], last_only)
    if kind == "mean" and mean_over == "positions":
        others = others or [sides.clean]
    if not others:
        what = "a mean over prompts needs" if kind == "mean" else "resampling needs"
        raise InputError(f"{what} prompts to take values from; give prompts=[...], of the clean prompt's length")
    if kind == "resample" or mean_over == "prompts":
        for other in others:
            check_lengths(sides.clean[0].tolist(), other[0].tolist(), lens.tokenizer, "an ablation")
    if kind == "mean":
        return Means(lens, others, last_only, length if mean_over != "prompts" else None)
    return Draws(lens, others, last_only, seed)


class Zeros(Source):
    """0 everywhere."""

    def values(self, names: Sequence[str]) -> Mapping[str, Tensor]:
        """Zeros of the points' shapes, which take no memory."""
        masked = next((name for name in names if name.endswith("hook_attn_scores")), None)
        if masked is not None:
            raise InputError(f"zeros at '{masked}' would open keys that are masked; ablate hook_pattern instead")
        zero, length = torch.zeros((), device=self.lens.device), self.prompts[0].shape[1]
        shapes = {name: self.lens.hook_points[name].sizes[1:] for name in names}
        return {
            name: zero.expand(1, *(length if size is None else size for size in sizes))
            for name, sizes in shapes.items()
        }


@dataclass
class Means(Source):
    """The mean over prompts; with a `length`, over their positions too, put in at so many."""

    length: int | None

    def values(self, names: Sequence[str]) -> Mapping[str, Tensor]:
        """The means, one at each position; pooled ones are the same at all."""
        axes = {name: self.lens.hook_points[name].axes for name in names}
        mixed = next((name for name in names if "k" in axes[name]), None)
        if self.length is not None and mixed is not None:
            raise InputError(f"a mean over positions of '{mixed}' would mix keys; take mean_over='prompts'")
        sums: dict[str, Tensor] = {}
        count = 0
        for prompt in self.prompts:
            count += 1 if self.length is None else prompt.shape[1]
            for name, value in self.run(prompt, names)[0].items():
                if not value.is_floating_point():
                    raise InputError(f"'{name}' holds {value.dtype}, of which no mean can be put in")
                wide = value.double()
                if self.length is not None:
                    wide = wide.sum(dim=axes[name].index("p"), keepdim=True)
                sums[name] = sums[name] + wide if name in sums else wide
        means = {name: (total / count).float() for name, total in sums.items()}
        if self.length is None:
            return means
        return {
            name: mean.expand(*(self.length if axis == "p" else -1 for axis in axes[name]))
            for name, mean in means.items()
        }


@dataclass
class Draws(Source):
    """The values of one of several prompts, drawn with a seed for each patch."""

    seed: int

    def values(self, names: Sequence[str]) -> Mapping[str, Tensor]:
        """What the runs of all prompts hold, one after the other."""
        runs = [self.run(prompt, names)[0] for prompt in self.prompts]
        return {name: torch.cat([run[name] for run in runs]) for name in names}

    def pick(self, patch: int) -> int:
        """The draw of a patch, the same however patches are gathered into batches."""
        return random.Random(f"{self.seed} {patch}").randrange(len(self.prompts))
