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
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from analyses.patching.alignment import aligned, check_lengths, one_prompt, token_strings
from analyses.patching.metrics import MetricLike, as_metric, measured
from analyses.patching.over import Over
from analyses.patching.results import ABLATIONS, PatchResult
from analyses.patching.running import (
    BATCH,
    MEMORY,
    Source,
    captured,
    laid_out,
    run_groups,
    snapshot,
    wants_last_only,
)
from analyses.patching.schedule import groups_of
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

    Args:
        lens: the model.
        clean: the prompt.
        metric: a `Metric`, or a function from logits [b p v] to [b].
        hooks: the hook points: a name, names or a predicate.
        over: the axes to go over, by letter (see `analyses.patching.over`).
        targets: patches of any kind instead of `hooks` and `over`.
        kind: "zero", "mean" or "resample".
        prompts: what means are taken over, and values drawn from; for a mean over positions the prompt itself by
            default. Of the prompt's length, but for means over positions and both.
        mean_over: "positions", "prompts" (at each position its own mean) or "both".
        seed: of the draws.
        corrupt: a prompt that gives the result a scale from 1 to 0; without one `PatchResult.change` tells the effect.
        batch_size: patches in one forward pass.
        memory: bytes of captured activations held at once.
        skip_positions: as in `activation_patch`.
        progress: called with the number of patches done after each forward pass.

    Raises:
        InputError: no prompts where some are needed, prompts of unequal length, or what `activation_patch` refuses.
        UnknownNameError: a kind, a hook point or something to take means over that does not exist.
    """
    tokens = one_prompt(lens, clean, "clean")
    others = [one_prompt(lens, prompt, "ablation") for prompt in prompts]
    strings = token_strings(tokens[0].tolist(), lens.tokenizer)
    patches, axes, names = laid_out(lens, hooks, over, targets, strings)
    measure = as_metric(metric)
    width = max(1, len(others)) if kind == "resample" else 1
    length = tokens.shape[1]
    groups = groups_of(lens, patches, length, 0, batch_size, max(1, memory // width), skip_positions)
    last_only = wants_last_only(measure, groups)
    source = _source(lens, kind, tokens, others, mean_over, seed, last_only)
    untouched = snapshot(lens, tokens, groups, last_only)
    value = float(measured(measure, lens, untouched.output, ["the clean prompt"])[0])
    floor, corrupt_tokens = None, tokens[:, :0]
    if corrupt is not None:
        corrupt_tokens = aligned(lens, tokens, corrupt)[1]
        output = captured(lens, corrupt_tokens, (), last_only)[1]
        floor = float(measured(measure, lens, output, ["the corrupt prompt"])[0])
    values = run_groups(groups, untouched, source, measure, value, patches, progress)
    return PatchResult(
        raw=values.view([len(axis.labels) for axis in axes]),
        axes=axes,
        clean=value,
        corrupt=floor,
        metric=measure.words,
        direction=kind,
        hooks=names,
        model=lens.network.signature,
        clean_tokens=tuple(tokens[0].tolist()),
        corrupt_tokens=tuple(corrupt_tokens[0].tolist()),
        forwards=untouched.forwards + source.forwards + (corrupt is not None),
    )


def _source(
    lens: HybridLens,
    kind: str,
    tokens: Tokens,
    others: Sequence[Tensor],
    mean_over: str,
    seed: int,
    last_only: bool,
) -> Source:
    if kind == "zero":
        return Zeros(lens, tokens.shape[1])
    if kind == "mean" and mean_over == "positions":
        others = others or [tokens]
    if not others:
        what = "a mean over prompts needs" if kind == "mean" else "resampling needs"
        raise InputError(f"{what} prompts to take values from; give prompts=[...], of the clean prompt's length")
    if kind == "resample" or mean_over == "prompts":
        for other in others:
            check_lengths(tokens[0].tolist(), other[0].tolist(), lens.tokenizer, "an ablation")
    if kind == "mean":
        return Means(lens, others, tokens.shape[1], mean_over != "prompts", last_only)
    return Draws(lens, others, seed, last_only)


class Zeros(Source):
    """0 everywhere."""

    def __init__(self, lens: HybridLens, length: int) -> None:
        self.lens = lens
        self.length = length

    def values(self, names: Sequence[str]) -> Mapping[str, Tensor]:
        """Zeros of the points' shapes, which take no memory."""
        for name in names:
            if name.endswith("hook_attn_scores"):
                raise InputError(f"zeros at '{name}' would open keys that are masked; ablate hook_pattern instead")
        shapes = [self.lens.hook_points[name].sizes[1:] for name in names]
        zero = torch.zeros((), device=self.lens.device)
        return {
            name: zero.expand(1, *(self.length if size is None else size for size in sizes))
            for name, sizes in zip(names, shapes, strict=True)
        }


class Means(Source):
    """The mean over prompts, and over their positions if `pooled`."""

    def __init__(self, lens: HybridLens, prompts: Sequence[Tensor], length: int, pooled: bool, last_only: bool) -> None:
        self.lens = lens
        self.prompts = prompts
        self.length = length
        self.pooled = pooled
        self.last_only = last_only

    def values(self, names: Sequence[str]) -> Mapping[str, Tensor]:
        """The means, one at each position; pooled ones are the same at all."""
        for name in names if self.pooled else ():
            if "k" in self.lens.hook_points[name].axes:
                raise InputError(f"a mean over positions of '{name}' would mix keys; take mean_over='prompts'")
        sums: dict[str, Tensor] = {}
        count = 0
        for prompt in self.prompts:
            kept, _ = captured(self.lens, prompt, names, self.last_only)
            self.forwards += 1
            count += prompt.shape[1] if self.pooled else 1
            for name, value in kept.items():
                if not value.is_floating_point():
                    raise InputError(f"'{name}' holds {value.dtype}, of which no mean can be put in")
                wide = value.double()
                if self.pooled:
                    wide = wide.sum(dim=self.lens.hook_points[name].axes.index("p"), keepdim=True)
                sums[name] = sums[name] + wide if name in sums else wide
        return {name: self._whole(name, (total / count).float()) for name, total in sums.items()}

    def _whole(self, name: str, mean: Tensor) -> Tensor:
        if not self.pooled:
            return mean
        sizes = list(mean.shape)
        sizes[self.lens.hook_points[name].axes.index("p")] = self.length
        return mean.expand(sizes)


class Draws(Source):
    """The values of one of several prompts, drawn for each patch."""

    def __init__(self, lens: HybridLens, prompts: Sequence[Tensor], seed: int, last_only: bool) -> None:
        self.lens = lens
        self.prompts = prompts
        self.seed = seed
        self.last_only = last_only

    def values(self, names: Sequence[str]) -> Mapping[str, Tensor]:
        """What the runs of all prompts hold, one after the other."""
        runs = [captured(self.lens, prompt, names, self.last_only)[0] for prompt in self.prompts]
        self.forwards += len(runs)
        return {name: torch.cat([run[name] for run in runs]) for name in names}

    def pick(self, patch: int) -> int:
        """The draw of a patch, the same however patches are gathered into batches."""
        return random.Random(f"{self.seed} {patch}").randrange(len(self.prompts))
