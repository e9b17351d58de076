"""What a reader reads when single writers' outputs are another run's: the first half of path patching.

A reader's input is the residual stream before it. With one writer's output exchanged and all others held, it is the
base run's stream plus what that writer writes otherwise in the source run; where MLPs are to hear the writer too, each
MLP on the way is computed again on what reaches it. The norm before the reader is computed again on the altered
stream, so nothing here is linearised.

Differences are held in float32 and the altered stream is rounded to the model's precision once. Everything is
computed at the positions of interest only, since norms and MLPs treat each position by itself.

How it fails: memory grows with the positions, times the writers of a batch, and with the layers that write or are read;
those of neither run are held whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.patching.alignment import Sides
from analyses.patching.snapshot import captured, keeping, resid_name
from analyses.patching.targets import Selector
from analyses.patching.writers import (
    PART_OF,
    Reader,
    Writer,
    head_reads,
    head_writes,
    norm_before,
    read_point,
    terms_of,
    written_points,
)
from hybridlens.blocks import Block
from hybridlens.errors import InputError
from hybridlens.hooks import HookPoint, reads_only
from hybridlens.model import HybridLens
from hybridlens.network import Output
from hybridlens.norms import HookedNorm
from hybridlens.passes import Pass

Group: TypeAlias = tuple[Writer, ...]
"""Writers that are exchanged together."""

Altered: TypeAlias = Float[Tensor, "row place d_model"]


class Runs(NamedTuple):
    """What both runs held at the positions of interest."""

    base: Mapping[str, Tensor]
    """The base run's residual stream, and MLP outputs where these are needed: [place d_model] each."""
    change: Mapping[str, Tensor]
    """The writers' terms in the source run less those in the base run, by their first point; float32."""
    source: Output
    """What the source run gave."""
    forwards: int


def read_runs(
    sides: Sides, groups: Sequence[Group], readers: Sequence[Reader], places: Selector, through_mlps: bool
) -> Runs:
    """Run both prompts, and keep what the paths need at some positions; of MLPs too where they hear the writers."""
    lens = sides.lens
    if through_mlps and any(layer.shared for layer in lens.cfg.layers):
        raise InputError(
            "through_mlps was given, but MLPs of this model are shared blocks', which write nothing to the residual "
            "stream; leave it out"
        )
    ends = {written_points(lens, writer)[-1]: writer for group in groups for writer in group}  # one for each point
    written = list(dict.fromkeys(name for writer in ends.values() for name in written_points(lens, writer)))
    held = [site_name(lens, reader.order(lens.cfg.n_layers)) for reader in readers]
    if through_mlps:
        held += [site_name(lens, 2 * layer + 1) for layer in lens.cfg.mlp_layers]
        held += [f"blocks.{layer}.hook_mlp_out" for layer in lens.cfg.mlp_layers]
    names = list(dict.fromkeys([*written, *held]))
    base, _ = captured(lens, sides.base, names, True, lambda tensor: tensor[0, places].clone())
    change: dict[str, Tensor] = {}
    waiting: dict[str, Tensor] = {}

    @reads_only
    def subtract(tensor: Tensor, hook: HookPoint) -> None:
        waiting[cast(str, hook.name)] = tensor[:, places].float()
        writer = ends.get(cast(str, hook.name))
        if writer is None:
            return
        points = written_points(lens, writer)
        there = {point: waiting.pop(point) for point in points}
        here = {point: base[point][None].float() for point in points}
        change[points[0]] = (terms_of(lens, writer, there) - terms_of(lens, writer, here))[0]
        for point in points:
            if point not in held:
                del base[point]

    with torch.no_grad(), lens.hooks([(name, subtract) for name in written]):
        output = lens.network(sides.source, None, None, sides.metric.last_only)
    return Runs(base, change, output, 2)


def altered_streams(
    lens: HybridLens, runs: Runs, groups: Sequence[Group], sites: Sequence[int], through_mlps: bool
) -> Iterator[tuple[int, Altered]]:
    """The residual stream at some sites with each group's outputs exchanged, one row a group, in forward order.

    Sites are places in the order of writers and readers (`Reader.order`); with `through_mlps`, MLPs on the way hear the
    writers.
    """
    rows: dict[Writer, list[int]] = {}
    for row, group in enumerate(groups):
        for writer in group:
            rows.setdefault(writer, []).append(row)
    starts = [min(writer.order for writer in group) for group in groups]
    some = next(iter(runs.base.values()))
    delta = torch.zeros(len(groups), *some.shape, dtype=torch.float32, device=some.device)
    for site in range(-1, max(sites) + 1):
        if site in sites:
            yield site, _stream(runs.base[site_name(lens, site)], delta)
        if site == max(sites):
            return
        for writer, own in rows.items():
            if writer.order == site:
                delta[own] += _change(lens, runs, writer).to(delta.device)
        layer, is_mlp = divmod(site, 2)
        if through_mlps and is_mlp and layer in lens.cfg.mlp_layers:
            own = rows.get(Writer("mlp", layer), [])
            hearing = [row for row, start in enumerate(starts) if start < site and row not in own]
            if hearing:
                x = _stream(runs.base[site_name(lens, site)], delta[hearing])
                run = Pass(x.new_zeros(x.shape[:2], dtype=torch.long), None, None)
                altered = cast(Block, lens.blocks[layer]).written("mlp", x, run)
                delta[hearing] += (altered.float() - runs.base[f"blocks.{layer}.hook_mlp_out"].float()).to(delta.device)


def _change(lens: HybridLens, runs: Runs, writer: Writer) -> Float[Tensor, "place d_model"]:
    """What a writer writes otherwise in the source run."""
    change = runs.change[written_points(lens, writer)[0]]
    if writer.layer is None or writer.index is None:
        return change
    heads = head_writes(lens, writer.layer, PART_OF[writer.kind])
    assert heads is not None
    return heads.written_by(writer.index, change[None], lens.dtype)[0]


def _stream(base: Float[Tensor, "place d_model"], delta: Altered) -> Altered:
    return (base.float() + delta.to(base.device)).to(base.dtype)


def reading(lens: HybridLens, reader: Reader, altered: Altered) -> Float[Tensor, "row place *rest"]:
    """What a reader's hook point holds on altered streams; of queries, keys and values, for all heads of the layer."""
    norm = norm_before(lens, reader)
    module = None if norm is None else cast(HookedNorm, lens.network.get_submodule(norm))
    if reader.layer is not None and reader.head is not None:
        return head_reads(lens, reader.layer)[reader.kind].read(altered if module is None else module(altered))
    if module is None:
        return altered
    kept: dict[str, Tensor] = {}
    with lens.hooks([(read_point(lens, reader), keeping(kept))]):
        module(altered)
    return kept[read_point(lens, reader)]


def site_name(lens: HybridLens, site: int) -> str:
    """The hook point of the residual stream at a place in the order of writers and readers."""
    layer, is_mlp = divmod(site, 2)
    alone = is_mlp and len(cast(Block, lens.blocks[layer]).branches) == 1  # an MLP without a mixer before it
    return f"blocks.{layer}.hook_resid_mid" if is_mlp and not alone else resid_name(lens, layer)
