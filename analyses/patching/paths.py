"""Path patching: what one part tells another, directly.

Activation patching exchanges what a part writes for all that listen. Path patching exchanges it for one reader only
(Wang et al. 2022, "Interpretability in the Wild"; Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path
Patching"): the reader's input is made again as if that one writer's output had been the source run's and everything
else were as in the base run, and the run goes on from there, with all that follows computed. The path is direct: it
runs through the residual stream and the reader's norm. With `through_mlps` it may also run through the MLPs between the
two, as in Wang et al., while heads and recurrent layers between them stay as they were. Paths are exchanged position
by position: what a writer writes at a position reaches the reader at the same position.

A head's queries, keys and values are put in before rotary. Keys and values are shared by a group of query heads, and
so are read together.

Many paths go through one forward pass, a row each, which begins at the earliest reader's layer and, where both prompts
begin alike, behind the beginning. All writers before a reader exchanged together give the reader its input in the
source run.

How it fails: with both runs' norms differing much, single paths do not add up to all of them together; each is exact by
itself. Rounding is that of batches (`analyses.patching.running`), and in bfloat16 also that of the altered stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Annotated, NamedTuple, TypeAlias

import torch
from annotated_types import Ge
from torch import Tensor

from analyses.experiment.per_prompt import per_prompt
from analyses.patching.alignment import Sides, places_of
from analyses.patching.metrics import MetricLike
from analyses.patching.path_inputs import Group, Runs, altered_streams, read_runs, reading
from analyses.patching.results import Axis, Direction, PatchResult
from analyses.patching.running import BATCH, MEMORY
from analyses.patching.schedule import BYTES, SHARE, portions
from analyses.patching.snapshot import Snapshot, Write, writing
from analyses.patching.writers import Reader, Writer, check_ends, check_once, reaches, read_point
from hybridlens.boundary import Positive, public
from hybridlens.boundary_words import Among
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.progress import counted
from hybridlens.tokens import TokensLike

ABSENT = ("refuse", "untouched")
"""What is done about pairs without a path: an error, or the untouched run's value."""

Writers: TypeAlias = Writer | Sequence[Writer]
"""A writer, or several that are exchanged together."""


@per_prompt("clean", each=["corrupt"], shared={"metric": 1})
@public
def path_patch(
    lens: HybridLens,
    clean: TokensLike,
    corrupt: TokensLike,
    metric: MetricLike,
    writers: Sequence[Writers],
    readers: Sequence[Reader],
    *,
    direction: Direction = "denoise",
    positions: Sequence[int] | None = None,
    through_mlps: bool = False,
    absent: Annotated[str, Among(ABSENT)] = "refuse",
    batch_size: Positive = BATCH,
    memory: Annotated[int, Ge(1)] = MEMORY,
    skip_positions: bool = True,
    progress: Callable[[int], None] | None = None,
) -> PatchResult:
    """Patch the direct paths from each writer to each reader, one after the other, and measure what that does.

    Arguments not named here are as in `running.activation_patch`; hooks that are on the model act, and should be none.

    Args:
        writers: where paths begin: writers, or several together (see `analyses.patching.writers.writers_of`).
        readers: where they end.
        positions: the positions at which outputs are exchanged; None for all.
        through_mlps: paths may also run through the MLPs between writer and reader.
        absent: "refuse" pairs whose reader does not come after all of the writers, or give them the "untouched" run's
            value, so that all writers and readers of a model can be given at once.
        memory: bytes; a batch has fewer rows where their altered streams would take more than 1 ÷ `SHARE` of them.

    Returns:
        a result with axes writer and reader.

    Raises:
        InputError: what `activation_patch` refuses, writers or readers that the model lacks, a reader that comes before
            a writer.
        UnknownNameError: a direction or `absent` that does not exist.
        CheckpointError: paths from heads, and the model is quantised.
    """
    groups = [(given,) if isinstance(given, Writer) else tuple(dict.fromkeys(given)) for given in writers]
    pairs, axes = _pairs(lens, groups, readers, absent), _axes(groups, readers)
    sides = Sides.of(lens, clean, corrupt, metric, direction)
    length, last = sides.clean.shape[1], sides.metric.last_only
    asked = set(places_of(range(length) if positions is None else positions, length))
    acting = sorted(asked - set(range(sides.same)))  # elsewhere both runs hold the same
    cut, places = acting[0] if skip_positions and acting else 0, torch.tensor(acting, dtype=torch.long)
    pairs = pairs if acting else set[_Pair]()
    from_groups = [groups[at] for at in sorted({at for at, _ in pairs})]
    to_readers = [readers[at] for at in sorted({at for _, at in pairs})]
    size = min(batch_size, max(1, memory // SHARE // (BYTES * lens.cfg.d_model * (length - cut))))
    layers = {reader.order(lens.cfg.n_layers) // 2 for reader in to_readers}
    untouched = Snapshot(lens, sides.base, layers, [cut], last)
    runs = read_runs(sides, from_groups, to_readers, places, through_mlps)
    value = sides.value(untouched.output, sides.base)
    ends = sides.ends(value, sides.value(runs.source, sides.source))
    raw = torch.full([len(groups), len(readers)], value, dtype=torch.float64)
    with counted(len(pairs), "paths", progress) as done, torch.no_grad():
        rows = _rows(lens, runs, groups, readers, pairs, through_mlps, size)
        for batch in portions(rows, lambda row: row.layer, lambda row: size):
            writes = [Write(row.name, number, (places - cut, *row.head), row.value) for number, row in enumerate(batch)]
            with lens.hooks(writing(writes)):
                output = untouched.go_on(len(batch), min(row.layer for row in batch), cut)
            what = [f"the path from {axes[0].labels[g]} to {axes[1].labels[r]}" for g, r in (row.pair for row in batch)]
            for row, moved in zip(batch, sides.measured(output, what), strict=True):
                raw[row.pair] = moved
            done(len(batch))
    points = tuple(dict.fromkeys(read_point(lens, reader) for reader in readers))
    return PatchResult(raw=raw, axes=axes, hooks=points, **sides.said(ends, untouched.forwards + runs.forwards))


_Pair: TypeAlias = tuple[int, int]
"""Which of the writers, and which of the readers."""


def _pairs(lens: HybridLens, groups: Sequence[Group], readers: Sequence[Reader], absent: str) -> set[_Pair]:
    """The pairs that a path joins, after a check of all writers and readers."""
    if not groups or not readers or not all(groups):
        raise InputError(
            f"{len(groups)} writers and {len(readers)} readers given, expected at least one of both, and no empty group"
        )
    check_ends(lens, chain.from_iterable(groups), readers, "paths")
    pairs = set[_Pair]()
    for g, group in enumerate(groups):
        for r, reader in enumerate(readers):
            late = [writer for writer in group if not reaches(lens, writer, reader)]
            if not late:
                pairs.add((g, r))
            elif absent == "refuse":
                raise InputError(
                    f"there is no path from '{late[0].words}' to '{reader.words}', which does not come after it; "
                    "give readers behind their writers, or absent='untouched'"
                )
    return pairs


def _axes(groups: Sequence[Group], readers: Sequence[Reader]) -> tuple[Axis, Axis]:
    labels = ([_label(group) for group in groups], [reader.words for reader in readers])
    check_once(*labels)
    return Axis("writer", tuple(labels[0])), Axis("reader", tuple(labels[1]))


def _label(group: Group) -> str:
    if len(group) <= 4:
        return " + ".join(writer.words for writer in group)
    return f"{group[0].words} … {group[-1].words} ({len(group)} writers)"


class _Row(NamedTuple):
    """One path: what its reader is given."""

    pair: _Pair
    layer: int
    """From where the run has to be computed again."""
    name: str
    """The reader's hook point."""
    head: tuple[int, ...]
    """Of a reader that is one of several heads, which."""
    value: Tensor


def _rows(
    lens: HybridLens,
    runs: Runs,
    groups: Sequence[Group],
    readers: Sequence[Reader],
    pairs: set[_Pair],
    through_mlps: bool,
    size: int,
) -> Iterator[_Row]:
    """All paths, writers by `size`, and for each of these portions the readers in forward order."""
    used = sorted({g for g, _ in pairs})
    for start in range(0, len(used), size):
        block = used[start : start + size]
        at_site: dict[int, list[int]] = {}
        for r in sorted({r for g, r in pairs if g in block}):
            at_site.setdefault(readers[r].order(lens.cfg.n_layers), []).append(r)
        chosen = [groups[g] for g in block]
        for site, altered in altered_streams(lens, runs, chosen, tuple(at_site), through_mlps):
            read: dict[str, Tensor] = {}
            for r in at_site[site]:
                reader, name = readers[r], read_point(lens, readers[r])
                if name not in read:
                    read[name] = reading(lens, reader, altered)
                for row, g in enumerate(block):
                    if (g, r) in pairs:
                        head = () if reader.head is None else (reader.head,)
                        value = read[name][(row, slice(None), *head)].clone()
                        yield _Row((g, r), site // 2, name, head, value)
