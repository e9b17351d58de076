"""Activation patching: values of one run put into another, many patches in one forward pass.

Each row of a batch carries its own patch. What no patch of a batch can change is not computed again: the layers before
the first that is patched, and the positions before the first that is patched or at which the two prompts differ
(`analyses.patching.snapshot`). Patches are sorted by where they begin, so that n of them take about n ÷ batch passes
over half of the layers and positions. A patch that lies wholly before the first difference changes nothing and takes no
pass. The values that are put in are captured once, for as many hook points at a time as fit `memory`.

Exactly equal, bit for bit, to one plain run a patch is what ``batch_size=1, skip_positions=False`` gives; a patch of
everything is then the other run, one of nothing this one. Batches of other sizes, and runs that begin behind the first
positions, round differently in the last bits. So does a batch in which some row's pattern, scores, decay, write or
state is edited, since all of its rows then follow the longer formula, and, on Mamba layers, a run whose decay, write
or state is read along. Rows of one batch do not hear each other beyond that.

How it fails: a hook function or metric that raises ends the sweep with its hooks removed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from analyses.experiment.per_prompt import per_prompt
from analyses.patching.alignment import Sides
from analyses.patching.metrics import MetricLike
from analyses.patching.over import Grid, Over, expand
from analyses.patching.results import Axis, Direction, PatchResult
from analyses.patching.schedule import Batch, groups_of
from analyses.patching.snapshot import Snapshot, Write, captured, writing
from analyses.patching.targets import Patch, as_patch, patch_words
from hybridlens.boundary import Positive, public
from hybridlens.errors import InputError
from hybridlens.hooks import NameFilter
from hybridlens.model import HybridLens
from hybridlens.network import Output
from hybridlens.progress import counted
from hybridlens.shapes import Tokens
from hybridlens.tokens import TokensLike

BATCH = 32
"""Patches in one forward pass."""

MEMORY = 1 << 30
"""Bytes of captured activations held at once."""


@dataclass
class Source(ABC):
    """Where the values come from that are put in.

    Attributes:
        lens: the model.
        prompts: those [1 p] whose runs they are taken from.
        last_only: unembed only the last position.
        forwards: forward passes made so far.
    """

    lens: HybridLens
    prompts: Sequence[Tokens]
    last_only: bool
    forwards: int = field(default=0, init=False)

    @abstractmethod
    def values(self, names: Sequence[str]) -> Mapping[str, Tensor]:
        """What to take values from, by hook point: [source, …] with the point's other axes."""

    def pick(self, patch: int) -> int:
        """Which of the sources the patch of that number takes its values from."""
        return 0

    def run(self, prompt: Tokens, names: Sequence[str] = ()) -> tuple[dict[str, Tensor], Output]:
        """The activations of an untouched run at some points, and what it gave."""
        self.forwards += 1
        return captured(self.lens, prompt, names, self.last_only)


@dataclass
class RunSource(Source):
    """The activations of an untouched run over one prompt."""

    held: dict[str, Tensor] | None = field(default=None, init=False)
    given: Output | None = field(default=None, init=False)

    @property
    def output(self) -> Output:
        """What the run gives, to the bit: where points that are computed only for hooks round it, from another one."""
        if self.given is None:
            self.given = self.run(self.prompts[0])[1]
        return self.given

    def values(self, names: Sequence[str]) -> Mapping[str, Tensor]:
        """What the run holds at these points; another set of them is another run."""
        if self.held is None or set(self.held) != set(names):
            self.held = None  # makes room
            self.held, output = self.run(self.prompts[0], names)
            if self.given is None and not any(self.lens.hook_points[name].lazy for name in names):
                self.given = output
        return self.held


@per_prompt("clean", each=["corrupt"], shared={"metric": 1})
@public
def activation_patch(
    lens: HybridLens,
    clean: TokensLike,
    corrupt: TokensLike,
    metric: MetricLike,
    hooks: NameFilter = None,
    over: Over = (),
    *,
    targets: Sequence[Patch] | None = None,
    direction: Direction = "denoise",
    batch_size: Positive = BATCH,
    memory: Annotated[int, Ge(1)] = MEMORY,
    skip_positions: bool = True,
    progress: Callable[[int], None] | None = None,
) -> PatchResult:
    """Patch activations between two prompts, one place after the other, and measure what that does.

    Args:
        lens: the model.
        clean: the prompt whose behaviour is explained, or a list of prompts.
        corrupt: another of the same number of tokens; of a list, one for each.
        metric: a `Metric`, or a function from logits [b p v] to [b]; of a list of prompts, one for all or for each.
        hooks: the hook points to patch: a name, names or a predicate.
        over: the axes to go over, by letter (see `analyses.patching.over`); the others are patched whole.
        targets: patches of any kind instead of `hooks` and `over`: targets, or lists of targets patched together.
        direction: "denoise" puts clean values into the corrupt run, "noise" corrupt ones into the clean run.
        batch_size: patches in one forward pass, at most: large activations take fewer (`analyses.patching.schedule`).
        memory: bytes of captured activations held at once; one hook point is always taken whole.
        skip_positions: take what comes before the first patch from the untouched run's memory, which is faster and
            rounds differently in the last bits.
        progress: called with the number of patches done after each forward pass.

    Returns:
        a result with axes layer (or hook) and those gone over; with `targets` one axis, patch. Of a list of prompts a
        result for each (`PerPrompt`).

    Raises:
        InputError: prompts of unequal length, hook points and targets that cannot be patched, a metric that returns
            another shape or no finite number, or that does not tell the two prompts apart.
        UnknownNameError: a hook point or direction that does not exist.
    """
    sides = Sides.of(lens, clean, corrupt, metric, direction)
    grid = laid_out(lens, hooks, over, targets, sides.labels)
    sweep = Prepared(sides, grid, sides.same, batch_size, memory, skip_positions)
    source = RunSource(lens, [sides.source], sweep.last_only)
    if sweep.groups:
        source.values(sweep.groups[0].names)
    ends = sides.ends(sweep.value, sides.value(source.output, sides.source))
    return sweep.result(source, ends, progress)


def laid_out(
    lens: HybridLens, hooks: NameFilter, over: Over, targets: Sequence[Patch] | None, tokens: Sequence[str]
) -> Grid:
    """The patches that hooks and axes, or targets, stand for.

    Raises:
        InputError: both were given, or neither.
        UnknownNameError: a hook point that does not exist.
    """
    if (targets is None) == (hooks is None):
        raise InputError("give either hook points to patch (hooks=, over=) or targets=, and one of them")
    if targets is None:
        return expand(lens, hooks, over, tokens)
    if over:
        raise InputError(f"over={over!r} goes with hooks=; targets name their places themselves")
    if not targets:
        raise InputError("no targets were given, expected at least one")
    labels = tuple(f"{number}: {patch_words(patch)}" for number, patch in enumerate(targets))
    names = dict.fromkeys(target.hook for patch in targets for target in as_patch(patch))
    return Grid(targets, (Axis("patch", labels),), tuple(names))


class Prepared:
    """A sweep whose passes are planned, and the untouched run that they start from, made when first asked for.

    The first `same` positions are given values that are there already; the last three arguments are as in
    `activation_patch`.
    """

    def __init__(self, sides: Sides, grid: Grid, same: int, batch_size: int, memory: int, skip_positions: bool) -> None:
        self.sides, self.grid = sides, grid
        self.groups = groups_of(
            sides.lens, grid.patches, sides.clean.shape[1], same, batch_size, memory, skip_positions
        )
        logits = any("hook_logits" in group.names for group in self.groups)
        self.last_only = sides.metric.last_only and not logits

    @cached_property
    def untouched(self) -> Snapshot:
        """The untouched run, kept where the batches begin."""
        batches = [batch for group in self.groups for batch in group.batches]
        layers, cuts = [batch.layer for batch in batches], [batch.cut for batch in batches]
        return Snapshot(self.sides.lens, self.sides.base, layers, cuts, self.last_only)

    @cached_property
    def value(self) -> float:
        """The metric of the untouched run."""
        return self.sides.value(self.untouched.output, self.sides.base)

    def result(
        self, source: Source, ends: tuple[float, float | None], progress: Callable[[int], None] | None
    ) -> PatchResult:
        """The metric under each patch; where a patch can change nothing, that of the untouched run."""
        patches, untouched = self.grid.patches, self.untouched
        raw = torch.full((len(patches),), self.value, dtype=torch.float64)
        with counted(
            sum(len(batch.jobs) for group in self.groups for batch in group.batches), "patches", progress
        ) as done:
            for group in self.groups:
                values = source.values(group.names)
                for batch in group.batches:
                    writes = _writes(batch, values, source, untouched)
                    with self.sides.lens.hooks(writing(writes)):
                        output = untouched.go_on(len(batch.jobs), batch.layer, batch.cut)
                    numbers = [job.number for job in batch.jobs]
                    what = [f"the patch of {patch_words(patches[number])}" for number in numbers]
                    raw[numbers] = self.sides.measured(output, what)
                    done(len(batch.jobs))
        said = self.sides.said(ends, untouched.forwards + source.forwards)
        return PatchResult(raw=raw.view(self.grid.shape), axes=self.grid.axes, hooks=self.grid.hooks, **said)


def _writes(batch: Batch, values: Mapping[str, Tensor], source: Source, untouched: Snapshot) -> Iterator[Write]:
    """Every row's own patch."""
    for row, job in enumerate(batch.jobs):
        for part in job.parts:
            here, there = part.selectors(untouched.offsets(batch.cut, part.layer))
            yield Write(part.name, row, here, values[part.name][source.pick(job.number)][there])
