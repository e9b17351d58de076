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
from analyses.patching.writers import PART_OF, Reader, Writer, head_reads, head_writes, norm_before, written_point
from hybridlens.blocks import Block, Part
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
    """What the writers' hook points hold in the source run less what they hold in the base run; float32."""
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
    written = list(dict.fromkeys(written_point(lens, writer) for group in groups for writer in group))
    held = [_site(lens, reader.order(lens.cfg.n_layers)) for reader in readers]
    if through_mlps:
        held += [_site(lens, 2 * layer + 1) for layer in lens.cfg.mlp_layers]
        held += [f"blocks.{layer}.hook_mlp_out" for layer in lens.cfg.mlp_layers]
    names = list(dict.fromkeys([*written, *held]))
    base, _ = captured(lens, sides.base, names, True, lambda tensor: tensor[0, places].clone())
    change: dict[str, Tensor] = {}

    @reads_only
    def subtract(tensor: Tensor, hook: HookPoint) -> None:
        name = cast(str, hook.name)
        change[name] = tensor[0, places].float() - base[name].float()
        if name not in held:
            del base[name]

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
            yield site, _stream(runs.base[_site(lens, site)], delta)
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
                altered = _mlp(lens, layer, _stream(runs.base[_site(lens, site)], delta[hearing]))
                delta[hearing] += (altered.float() - runs.base[f"blocks.{layer}.hook_mlp_out"].float()).to(delta.device)


def _mlp(lens: HybridLens, layer: int, x: Altered) -> Altered:
    """What an MLP writes that reads an altered stream through its norm."""
    block = cast(Block, lens.blocks[layer])
    norm = block.branches[block.number_of("mlp") - 1].norm
    x = x if norm is None else norm(x)
    run = Pass(x.new_zeros(x.shape[:2], dtype=torch.long), None, None)
    return cast(Part, block.parts["mlp"])(x, run, None)[0]


def _change(lens: HybridLens, runs: Runs, writer: Writer) -> Float[Tensor, "place d_model"]:
    """What a writer writes otherwise in the source run."""
    change = runs.change[written_point(lens, writer)]
    if writer.layer is None or writer.index is None:
        return change
    heads = head_writes(lens, writer.layer, PART_OF[writer.kind])
    assert heads is not None
    by_head = heads.by_head(change[None])
    alone = torch.zeros_like(by_head)
    alone[:, :, writer.index] = by_head[:, :, writer.index]
    written, bias = heads.project(alone.flatten(-2).to(lens.dtype))[0].float(), heads.project.bias()
    return written if bias is None else written - bias.float()


def _stream(base: Float[Tensor, "place d_model"], delta: Altered) -> Altered:
    return (base.float() + delta.to(base.device)).to(base.dtype)


def reading(lens: HybridLens, reader: Reader, altered: Altered) -> Float[Tensor, "row place *rest"]:
    """What a reader's hook point holds on altered streams; of queries, keys and values, for all heads of the layer."""
    norm = norm_before(lens, reader)
    module = cast(HookedNorm, lens.network.get_submodule(norm))
    if reader.layer is not None and reader.head is not None:
        return head_reads(lens, reader.layer)[reader.kind].read(module(altered))
    kept: dict[str, Tensor] = {}
    with lens.hooks([(f"{norm}.hook_normalized", keeping(kept))]):
        module(altered)
    return kept[f"{norm}.hook_normalized"]


def _site(lens: HybridLens, site: int) -> str:
    """The hook point of the residual stream at a place in the order of writers and readers."""
    layer, is_mlp = divmod(site, 2)
    alone = is_mlp and len(cast(Block, lens.blocks[layer]).branches) == 1  # an MLP without a mixer before it
    return f"blocks.{layer}.hook_resid_mid" if is_mlp and not alone else resid_name(lens, layer)
