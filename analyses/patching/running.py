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
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NamedTuple, cast

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from analyses.patching.alignment import aligned, shared_beginning, token_strings
from analyses.patching.metrics import Metric, MetricLike, as_metric, measured
from analyses.patching.over import Over, expand, token_labels
from analyses.patching.results import Axis, Direction, PatchResult, check_ends
from analyses.patching.schedule import Batch, Group, groups_of
from analyses.patching.snapshot import Snapshot
from analyses.patching.targets import Patch, Selector, as_patch, patch_words
from hybridlens.boundary import Positive, public
from hybridlens.errors import InputError
from hybridlens.hooks import HookFunction, HookPoint, NameFilter, reads_only
from hybridlens.model import HybridLens
from hybridlens.network import Output
from hybridlens.shapes import Tokens
from hybridlens.tokens import TokensLike

BATCH = 32
"""Patches in one forward pass."""

MEMORY = 1 << 30
"""Bytes of captured activations held at once."""

ENDS = ("the clean prompt", "the corrupt prompt")


class Source(ABC):
    """Where the values come from that are put in."""

    forwards: int = 0
    """Forward passes made so far."""

    @abstractmethod
    def values(self, names: Sequence[str]) -> Mapping[str, Tensor]:
        """What to take values from, by hook point: [source, …] with the point's other axes."""

    def pick(self, patch: int) -> int:
        """Which of the sources the patch of that number takes its values from."""
        return 0


class RunSource(Source):
    """The activations of an untouched run over one prompt [1 p]."""

    def __init__(self, lens: HybridLens, tokens: Tokens, last_only: bool) -> None:
        self.lens = lens
        self.tokens = tokens
        self.last_only = last_only
        self.held: dict[str, Tensor] | None = None
        self.given: Output | None = None

    @property
    def output(self) -> Output:
        """What the run gives, to the bit: where points that are computed only for hooks round it, from another one."""
        if self.given is None:
            self.given = captured(self.lens, self.tokens, (), self.last_only)[1]
            self.forwards += 1
        return self.given

    def values(self, names: Sequence[str]) -> Mapping[str, Tensor]:
        """What the run holds at these points; another set of them is another run."""
        if self.held is None or set(self.held) != set(names):
            self.held = None  # makes room
            self.held, output = captured(self.lens, self.tokens, names, self.last_only)
            self.forwards += 1
            if self.given is None and not any(self.lens.hook_points[name].lazy for name in names):
                self.given = output
        return self.held


def captured(
    lens: HybridLens, tokens: Tokens, names: Sequence[str], last_only: bool
) -> tuple[dict[str, Tensor], Output]:
    """The activations of an untouched run at some points, and what it gave."""
    kept: dict[str, Tensor] = {}

    @reads_only
    def keep(tensor: Tensor, hook: HookPoint) -> None:
        kept[cast(str, hook.name)] = tensor

    with torch.no_grad(), lens.hooks([(name, keep) for name in names]):
        output = lens.network(tokens, None, None, last_only)
    return kept, output


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
        clean: the prompt whose behaviour is explained.
        corrupt: another of the same number of tokens.
        metric: a `Metric`, or a function from logits [b p v] to [b].
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
        a result with axes layer (or hook) and those gone over; with `targets` one axis, patch.

    Raises:
        InputError: prompts of unequal length, hook points and targets that cannot be patched, a metric that returns
            another shape or no finite number, or that does not tell the two prompts apart.
        UnknownNameError: a hook point or direction that does not exist.
    """
    pair = aligned(lens, clean, corrupt)
    strings = [token_strings(row[0].tolist(), lens.tokenizer) for row in pair]
    patches, axes, names = laid_out(lens, hooks, over, targets, token_labels(*strings))
    measure = as_metric(metric)
    base, other = (1, 0) if direction == "denoise" else (0, 1)
    same = shared_beginning(*pair)
    groups = groups_of(lens, patches, pair[0].shape[1], same, batch_size, memory, skip_positions)
    last_only = wants_last_only(measure, groups)
    untouched = snapshot(lens, pair[base], groups, last_only)
    source = RunSource(lens, pair[other], last_only)
    if groups:
        source.values(groups[0].names)
    ends = [0.0, 0.0]
    for which, output in ((base, untouched.output), (other, source.output)):
        ends[which] = float(measured(measure, lens, output, [ENDS[which]])[0])
    check_ends(ends[0], ends[1], measure.words)
    values = run_groups(groups, untouched, source, measure, ends[base], patches, progress)
    return PatchResult(
        raw=values.view([len(axis.labels) for axis in axes]),
        axes=axes,
        clean=ends[0],
        corrupt=ends[1],
        metric=measure.words,
        direction=direction,
        hooks=names,
        model=lens.network.signature,
        clean_tokens=tuple(pair[0][0].tolist()),
        corrupt_tokens=tuple(pair[1][0].tolist()),
        forwards=untouched.forwards + source.forwards,
    )


def laid_out(
    lens: HybridLens, hooks: NameFilter, over: Over, targets: Sequence[Patch] | None, tokens: Sequence[str]
) -> tuple[list[Patch], tuple[Axis, ...], tuple[str, ...]]:
    """The patches that hooks and axes, or targets, stand for; the axes of the result, and the hook points.

    Raises:
        InputError: both were given, or neither.
        UnknownNameError: a hook point that does not exist.
    """
    if (targets is None) == (hooks is None):
        raise InputError("give either hook points to patch (hooks=, over=) or targets=, and one of them")
    if targets is None:
        grid = expand(lens, hooks, over, tokens)
        return list(grid.targets), grid.axes, grid.hooks
    if over:
        raise InputError(f"over={over!r} goes with hooks=; targets name their places themselves")
    patches = list(targets)
    if not patches:
        raise InputError("no targets were given, expected at least one")
    labels = tuple(f"{number}: {patch_words(patch)}" for number, patch in enumerate(patches))
    names = dict.fromkeys(target.hook for patch in patches for target in as_patch(patch))
    return patches, (Axis("patch", labels),), tuple(names)


def wants_last_only(metric: Metric, groups: Sequence[Group]) -> bool:
    """Whether no logits but the last position's are needed."""
    return metric.last_only and not any("hook_logits" in group.names for group in groups)


def snapshot(lens: HybridLens, tokens: Tokens, groups: Sequence[Group], last_only: bool) -> Snapshot:
    """The untouched run, kept where the batches begin."""
    batches = [batch for group in groups for batch in group.batches]
    with torch.no_grad():
        return Snapshot(lens, tokens, [b.layer for b in batches], [b.cut for b in batches], last_only)


def run_groups(
    groups: Sequence[Group],
    untouched: Snapshot,
    source: Source,
    metric: Metric,
    value: float,
    patches: Sequence[Patch],
    progress: Callable[[int], None] | None = None,
) -> Float[Tensor, "patch"]:
    """The metric under each patch; `value`, that of the untouched run, where a patch can change nothing."""
    lens = untouched.lens
    out = torch.full((len(patches),), value, dtype=torch.float64)
    for group in groups:
        values = source.values(group.names)
        for batch in group.batches:
            hooks = _hooks(batch, values, source, untouched.offsets(batch.cut))
            with torch.no_grad():
                with lens.hooks(hooks):
                    output = untouched.go_on(len(batch.jobs), batch.layer, batch.cut)
                numbers = [job.number for job in batch.jobs]
                what = [f"the patch of {patch_words(patches[number])}" for number in numbers]
                out[numbers] = measured(metric, lens, output, what)
            if progress is not None:
                progress(len(batch.jobs))
    return out


def _hooks(
    batch: Batch, values: Mapping[str, Tensor], source: Source, offsets: Mapping[str, int]
) -> list[tuple[NameFilter, HookFunction]]:
    """One hook function for each point of a batch, which writes every row's own patch."""
    writes: dict[str, list[_Write]] = {}
    for row, job in enumerate(batch.jobs):
        for part in job.parts:
            value = values[part.name][source.pick(job.number)]
            here, there = part.selectors(offsets)
            writes.setdefault(part.name, []).append(_Write(row, here, value[there]))
    return [(name, _put(name, parts)) for name, parts in writes.items()]


class _Write(NamedTuple):
    row: int
    here: tuple[Selector, ...]
    value: Tensor


def _put(name: str, writes: Sequence[_Write]) -> HookFunction:
    @reads_only
    def put(tensor: Tensor, hook: HookPoint) -> Tensor:
        out = tensor.clone()
        for row, here, value in writes:
            if value.is_floating_point() != tensor.is_floating_point():
                raise InputError(f"'{name}' holds {tensor.dtype}, so it cannot be given values of {value.dtype}")
            out[row][here] = value.to(tensor.dtype)
        return out

    return put
