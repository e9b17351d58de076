"""Which patches go into which forward pass.

Every patch has a first layer and a first position that it can change. Patches are sorted by these and cut into batches;
a batch begins where the earliest of its patches does. Few patches left of one layer go along with the next. Batches
are gathered in groups whose captured activations fit into memory together.

A batch has fewer rows where its rows' activations at a patched point, every row a copy, would take more than
1 ÷ `SHARE` of the memory: a batch of recurrent states or patterns is slower, not faster, once no cache holds it.

How it fails: one hook point that is larger than the memory given is captured all the same, alone, and patched row by
row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from typing import NamedTuple, TypeVar

from analyses.patching.targets import Located, Patch, as_patch, locate
from hybridlens.hooks import HookSpec
from hybridlens.model import HybridLens

CUTS = 8
"""Places behind the first position from which runs may go on; each holds the memory of the prompt before it."""

SHARE = 32
"""Of the memory, one part of so many is for one point's activations in a batch: 32 MiB of 1 GiB."""

BYTES = 4
"""Of one number, at most."""

Acting = TypeVar("Acting")
"""What a row of a batch holds: it acts from some layer on."""


class Job(NamedTuple):
    """A patch, located."""

    number: int
    """Its place among the patches."""
    parts: tuple[Located, ...]
    layer: int
    """The first layer that it can change."""
    first: int
    """The first position that it can change; the prompt's length if none."""
    order: int
    """The first of its points, in the order in which they fire."""

    @property
    def names(self) -> set[str]:
        """Its hook points."""
        return {part.name for part in self.parts}


class Batch(NamedTuple):
    """Patches of one forward pass, and from where it goes on."""

    jobs: tuple[Job, ...]
    layer: int
    cut: int


class Group(NamedTuple):
    """Batches whose values are captured together."""

    names: tuple[str, ...]
    batches: tuple[Batch, ...]


def groups_of(
    lens: HybridLens,
    patches: Sequence[Patch],
    length: int,
    same_until: int,
    batch_size: int,
    memory: int,
    skip_positions: bool,
) -> list[Group]:
    """The forward passes of a sweep over a prompt of some length; patches that can change nothing are in none.

    Before `same_until`, the run that is patched and the other hold the same; the last three arguments are as in
    `running.activation_patch`.
    """
    jobs = [_job(lens, number, patch, length, same_until) for number, patch in enumerate(patches)]
    acting = [job for job in jobs if job.first < length]
    places = [0]
    if skip_positions and acting:
        low = min(job.first for job in acting)
        places += sorted({low + (length - low) * i // CUTS for i in range(CUTS)} - {0})
    cut_of = {job.number: max(place for place in places if place <= job.first) for job in acting}
    acting.sort(key=lambda job: (job.layer, cut_of[job.number], job.order, job.number))

    def rows(job: Job) -> int:
        largest = max(size_of(lens.hook_points[name], length) for name in job.names)
        return min(batch_size, max(1, memory // SHARE // largest))

    batches = [
        Batch(tuple(jobs), min(job.layer for job in jobs), min(cut_of[job.number] for job in jobs))
        for jobs in portions(acting, lambda job: job.layer, rows)
    ]
    return _gathered(batches, lens, length, memory)


def _job(lens: HybridLens, number: int, patch: Patch, length: int, same_until: int) -> Job:
    parts = tuple(locate(lens, target, length) for target in as_patch(patch))
    acting = tuple(part for part in parts if part.first < length)
    if not acting:
        return Job(number, (), lens.cfg.n_layers, length, 0)
    first = max(same_until, min(part.first for part in acting))
    if max(part.last for part in acting) < same_until:
        first = length
    return Job(number, acting, min(part.layer for part in acting), first, min(part.order for part in acting))


def portions(
    acting: Iterable[Acting], layer: Callable[[Acting], int], rows: Callable[[Acting], int]
) -> Iterator[list[Acting]]:
    """Patches or paths by the layers that they act from, in batches of as many rows as each allows.

    Less than a quarter of that, left over at the end of a layer, joins the next layer's.
    """
    batch: list[Acting] = []
    room = 0
    for one in acting:
        size = rows(one)
        room = min(room, size)
        if batch and (len(batch) >= room or (layer(batch[0]) != layer(one) and 4 * len(batch) >= room)):
            yield batch
            batch = []
        if not batch:
            room = size
        batch.append(one)
    if batch:
        yield batch


def _gathered(batches: Sequence[Batch], lens: HybridLens, length: int, memory: int) -> list[Group]:
    """Batches one after the other in groups whose points fit into memory together, their names in forward order."""
    groups: list[Group] = []
    for batch in batches:
        names = {name for job in batch.jobs for name in job.names}
        held = set(groups[-1].names) if groups else set[str]()
        fits = sum(size_of(lens.hook_points[name], length) for name in held | names) <= memory
        together = bool(groups) and (fits or names <= held)
        before = groups.pop().batches if together else ()
        wanted = held | names if together else names
        groups.append(Group(tuple(name for name in lens.hook_points if name in wanted), (*before, batch)))
    return groups


def size_of(spec: HookSpec, length: int) -> int:
    """Bytes of one prompt's activation, at most."""
    return BYTES * prod(length if size is None else size for size in spec.sizes[1:])
