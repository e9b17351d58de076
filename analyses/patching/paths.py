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

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Annotated, NamedTuple, TypeAlias

import torch
from annotated_types import Ge
from torch import Tensor

from analyses.patching.alignment import aligned, shared_beginning
from analyses.patching.metrics import MetricLike, as_metric, measured
from analyses.patching.path_inputs import Group, Runs, altered_streams, read_runs, reading
from analyses.patching.results import Axis, Direction, PatchResult, check_ends
from analyses.patching.running import BATCH, ENDS, MEMORY
from analyses.patching.schedule import BYTES, SHARE
from analyses.patching.snapshot import Snapshot
from analyses.patching.targets import Selector
from analyses.patching.writers import Reader, Writer, reaches, read_point
from hybridlens.boundary import Positive, public
from hybridlens.boundary_words import Among
from hybridlens.errors import InputError
from hybridlens.hooks import HookFunction, HookPoint, NameFilter, reads_only
from hybridlens.model import HybridLens
from hybridlens.tokens import TokensLike

PATH_WRITERS = ("embed", "head", "ssm", "ssm_head", "mlp")
"""Kinds of writers that paths can begin at."""

ABSENT = ("refuse", "untouched")
"""What is done about pairs without a path: an error, or the untouched run's value."""

Writers: TypeAlias = Writer | Sequence[Writer]
"""A writer, or several that are exchanged together."""


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

    Args:
        lens: the model; hooks that are on it act, and should be none.
        clean: the prompt whose behaviour is explained.
        corrupt: another of the same number of tokens.
        metric: a `Metric`, or a function from logits [b p v] to [b].
        writers: where paths begin: writers, or several together (see `analyses.patching.writers.writers_of`).
        readers: where they end.
        direction: "denoise" puts clean writers' outputs into the corrupt run, "noise" corrupt ones into the clean run.
        positions: the positions at which outputs are exchanged; None for all.
        through_mlps: paths may also run through the MLPs between writer and reader.
        absent: "refuse" pairs whose reader does not come after all of the writers, or give them the "untouched" run's
            value, so that all writers and readers of a model can be given at once.
        batch_size: paths in one forward pass, at most.
        memory: bytes; a batch has fewer rows where their altered streams would take more than 1 ÷ `SHARE` of them.
        skip_positions: take what comes before the first difference from the untouched run's memory.
        progress: called with the number of paths done after each forward pass.

    Returns:
        a result with axes writer and reader.

    Raises:
        InputError: prompts of unequal length, writers or readers that the model lacks, a reader that comes before a
            writer, a metric that returns another shape or no finite number, or that does not tell the prompts apart.
        UnknownNameError: a direction or `absent` that does not exist.
        CheckpointError: paths from heads, and the model is quantised.
    """
    groups = [(given,) if isinstance(given, Writer) else tuple(dict.fromkeys(given)) for given in writers]
    pairs, axes = _pairs(lens, groups, readers, absent), _axes(groups, readers)
    prompts, measure = aligned(lens, clean, corrupt), as_metric(metric)
    base, other = (1, 0) if direction == "denoise" else (0, 1)
    where = _where(positions, prompts[0].shape[1], shared_beginning(*prompts), skip_positions)
    pairs = pairs if where.acts else set[_Pair]()
    from_groups = [groups[at] for at in sorted({at for at, _ in pairs})]
    to_readers = [readers[at] for at in sorted({at for _, at in pairs})]
    size = min(batch_size, max(1, memory // SHARE // (BYTES * lens.cfg.d_model * (prompts[0].shape[1] - where.cut))))
    layers, last = map(partial(_layer, lens), to_readers), measure.last_only
    with torch.no_grad():
        untouched = Snapshot(lens, prompts[base], layers, [where.cut], last)
        runs = read_runs(lens, prompts[base], prompts[other], from_groups, to_readers, where.places, through_mlps, last)
        ends = [0.0, 0.0]
        for which, output in ((base, untouched.output), (other, runs.source)):
            ends[which] = float(measured(measure, lens, output, [ENDS[which]])[0])
        check_ends(ends[0], ends[1], measure.words)
        raw = torch.full([len(groups), len(readers)], ends[base], dtype=torch.float64)
        for rows in _portions(_rows(lens, runs, groups, readers, pairs, through_mlps, size), size):
            with lens.hooks(_hooks(rows, where.here)):
                output = untouched.go_on(len(rows), min(row.layer for row in rows), where.cut)
            what = [f"the path from {axes[0].labels[g]} to {axes[1].labels[r]}" for g, r in (row.pair for row in rows)]
            for row, value in zip(rows, measured(measure, lens, output, what), strict=True):
                raw[row.pair] = value
            if progress is not None:
                progress(len(rows))
    return PatchResult(
        raw=raw,
        axes=axes,
        clean=ends[0],
        corrupt=ends[1],
        metric=measure.words,
        direction=direction,
        hooks=tuple(dict.fromkeys(read_point(lens, reader) for reader in readers)),
        model=lens.network.signature,
        clean_tokens=tuple(prompts[0][0].tolist()),
        corrupt_tokens=tuple(prompts[1][0].tolist()),
        forwards=untouched.forwards + runs.forwards,
    )


_Pair: TypeAlias = tuple[int, int]
"""Which of the writers, and which of the readers."""


def _pairs(lens: HybridLens, groups: Sequence[Group], readers: Sequence[Reader], absent: str) -> set[_Pair]:
    """The pairs that a path joins, after a check of all writers and readers."""
    if not groups or not readers or not all(groups):
        raise InputError(
            f"{len(groups)} writers and {len(readers)} readers given, expected at least one of both, and no empty group"
        )
    for writer in (writer for group in groups for writer in group):
        if writer.kind not in PATH_WRITERS:
            raise InputError(f"writer '{writer.words}' given, but paths begin at {', '.join(PATH_WRITERS)}")
        writer.check(lens)
    for reader in readers:
        reader.check(lens)
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
    for given in labels:
        twice = next((label for label in given if given.count(label) > 1), None)
        if twice is not None:
            raise InputError(f"'{twice}' was given twice, expected every writer and reader once")
    return Axis("writer", tuple(labels[0])), Axis("reader", tuple(labels[1]))


def _label(group: Group) -> str:
    if len(group) <= 4:
        return " + ".join(writer.words for writer in group)
    return f"{group[0].words} … {group[-1].words} ({len(group)} writers)"


class _Where(NamedTuple):
    """Where outputs are exchanged."""

    cut: int
    """The position from which runs go on."""
    places: Selector
    """Positions of the prompt."""
    here: Selector
    """The same positions in a run from `cut` on."""
    acts: bool
    """Whether anything can change there."""


def _where(positions: Sequence[int] | None, length: int, same: int, skip_positions: bool) -> _Where:
    """The positions asked for, but those at which both runs hold the same."""
    if positions is None:
        cut = same if skip_positions and same < length else 0
        return _Where(cut, slice(cut, length), slice(None), same < length)
    for position in positions:
        if not -length <= position < length:
            raise InputError(f"position {position} given, but the prompt has 0..{length - 1}")
    acting = sorted({position % length for position in positions} - set(range(same)))
    cut = acting[0] if skip_positions and acting else 0
    places = torch.tensor(acting, dtype=torch.long)
    return _Where(cut, places, places - cut, bool(acting))


class _Row(NamedTuple):
    """One path: what its reader is given."""

    pair: _Pair
    layer: int
    """From where the run has to be computed again."""
    name: str
    """The reader's hook point."""
    head: int | None
    value: Tensor


def _layer(lens: HybridLens, reader: Reader) -> int:
    return lens.cfg.n_layers if reader.layer is None else reader.layer


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
                        value = read[name][row] if reader.head is None else read[name][row, :, reader.head].clone()
                        yield _Row((g, r), _layer(lens, reader), name, reader.head, value)


def _portions(rows: Iterable[_Row], size: int) -> Iterator[list[_Row]]:
    """Rows by `size`; less than a quarter of that, left over at the end of a layer, joins the next layer's."""
    held: list[_Row] = []
    for row in rows:
        if held and (len(held) == size or (held[0].layer != row.layer and 4 * len(held) >= size)):
            yield held
            held = []
        held.append(row)
    if held:
        yield held


def _hooks(rows: Sequence[_Row], here: Selector) -> list[tuple[NameFilter, HookFunction]]:
    """One hook function for each reader's point, which gives every row what its path gives."""
    points: dict[str, list[tuple[int, _Row]]] = {}
    for number, row in enumerate(rows):
        points.setdefault(row.name, []).append((number, row))
    return [(name, _put(parts, here)) for name, parts in points.items()]


def _put(parts: Sequence[tuple[int, _Row]], here: Selector) -> HookFunction:
    @reads_only
    def put(tensor: Tensor, hook: HookPoint) -> Tensor:
        out = tensor.clone()
        for number, row in parts:
            if row.head is None:
                out[number][here] = row.value
            else:
                out[number][here, row.head] = row.value
        return out

    return put
