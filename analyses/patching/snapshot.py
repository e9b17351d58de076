"""The untouched run that patches start from: its residual stream, what was remembered where, and what is put in.

What a patch leaves as it is need not be computed again: the layers before its first one, and, attention and recurrence
being causal, the positions before its first one. `Snapshot` holds the residual stream at the layers asked for, the
memory of the whole prompt, and the memory of its first positions at a few places; `go_on` computes the rest for many
rows at once, hooks of the layers that run included.

How it fails: beginning behind the first positions rounds otherwise than one pass over all, in the last bits. A snapshot
holds the memory of the prompt once for each place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from analyses.patching.targets import EMBEDDING, Selector
from hybridlens.errors import InputError
from hybridlens.hooks import HookFunction, HookPoint, NameFilter, reads_only
from hybridlens.model import HybridLens
from hybridlens.network import Output
from hybridlens.shapes import Resid, Tokens
from hybridlens.state import HybridState


def keeping(kept: dict[str, Tensor], what: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> HookFunction:
    """A hook function that keeps `what` of the activations at each point, by its name."""

    @reads_only
    def keep(tensor: Tensor, hook: HookPoint) -> None:
        kept[cast(str, hook.name)] = what(tensor)

    return keep


def captured(
    lens: HybridLens,
    tokens: Tokens,
    names: Sequence[str],
    last_only: bool,
    what: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> tuple[dict[str, Tensor], Output]:
    """`what` of the activations of an untouched run at some points, and what the run gave."""
    kept: dict[str, Tensor] = {}
    with torch.no_grad(), lens.hooks([(name, keeping(kept, what)) for name in names]):
        output = lens.network(tokens, None, None, last_only)
    return kept, output


class Write(NamedTuple):
    """What one row of a batch is given."""

    name: str
    """The hook point."""
    row: int
    here: tuple[Selector | int, ...]
    """Which entries of the row's activation, by axis."""
    value: Tensor


def writing(writes: Iterable[Write]) -> list[tuple[NameFilter, HookFunction]]:
    """One hook function for each point, which gives every row what is its own."""
    points: dict[str, list[Write]] = {}
    for write in writes:
        points.setdefault(write.name, []).append(write)
    return [(name, _put(parts)) for name, parts in points.items()]


def _put(writes: Sequence[Write]) -> HookFunction:
    @reads_only
    def put(tensor: Tensor, hook: HookPoint) -> Tensor:
        out = tensor.clone()
        for name, row, here, value in writes:
            if value.is_floating_point() != tensor.is_floating_point():
                raise InputError(f"'{name}' holds {tensor.dtype}, so it cannot be given values of {value.dtype}")
            out[row][here] = value.to(tensor.device, tensor.dtype)
        return out

    return put


class Snapshot:
    """One prompt's untouched run.

    Args:
        lens: the model; hooks that are on it act, and should be none.
        tokens: the prompt [1 p].
        layers: where runs are to go on: layers, `EMBEDDING`, or the number of layers for what follows the last.
        cuts: positions from which runs are to go on, besides 0.
        last_only: unembed only the last position.
    """

    @torch.no_grad()
    def __init__(
        self, lens: HybridLens, tokens: Tokens, layers: Iterable[int], cuts: Iterable[int], last_only: bool
    ) -> None:
        self.lens = lens
        self.tokens = tokens
        self.last_only = last_only
        self.forwards = 1
        names = {resid_name(lens, layer): layer for layer in set(layers) - {EMBEDDING}}
        self.embedded: Resid | None = None
        reads = ["hook_embed"] if lens.network.reads_embedding else []
        kept, self.output = captured(lens, tokens, [*names, *reads], last_only)
        if reads:
            self.embedded = kept.pop("hook_embed")
        self.resid: dict[int, Resid] = {names[name]: resid for name, resid in kept.items()}
        self.before: dict[int, HybridState] = {}
        state, read = None, 0
        for cut in sorted(set(cuts) - {0}):
            state = lens.network(tokens[:, read:cut], None, state, True).state
            self.before[cut], read = state, cut
        self.forwards += bool(self.before)  # its pieces together read no more than one pass

    def offsets(self, cut: int, layer: int) -> dict[str, int]:
        """By axis, how many leading entries of a layer's activations a run from position `cut` lacks."""
        if cut == 0:
            return {}
        before = self.before[cut]
        attends = 0 <= layer < len(before.layers) and "attn" in before.layers[layer]
        held = (before.positions_in(layer) if attends else before.key_positions)[0]
        return {"p": cut, "k": int(held[0]) if held.numel() else cut}

    @torch.no_grad()
    def go_on(self, rows: int, layer: int, cut: int) -> Output:
        """`rows` copies of the run, computed from `layer` and position `cut` on, under the hooks that are attached.

        The logits are of all positions, or of the last one, as the snapshot's are.
        """
        self.forwards += 1
        before = _repeated(self.before[cut], rows) if cut else None
        if layer == EMBEDDING:
            output = self.lens.network(self.tokens[:, cut:].expand(rows, -1), None, before, self.last_only)
        else:
            resid, after = self.resid[layer][:, cut:].expand(rows, -1, -1), _repeated(self.output.state, rows)
            embedded = None if self.embedded is None else self.embedded[:, cut:].expand(rows, -1, -1)
            output = self.lens.network.resume(layer, resid, after, before, None, self.last_only, embedded)
        if self.last_only or cut == 0:
            return output
        seen = self.output.logits[:, :cut].expand(rows, -1, -1)
        return Output(torch.cat([seen, output.logits], dim=1), output.state)


def resid_name(lens: HybridLens, layer: int) -> str:
    """The point that holds what enters a layer, or leaves the last one."""
    last = lens.cfg.n_layers
    return f"blocks.{layer}.hook_resid_pre" if layer < last else f"blocks.{last - 1}.hook_resid_post"


def _repeated(state: HybridState, rows: int) -> HybridState:
    """The memory of one row as that of many, without copies."""
    return state.map(lambda part: part.expand(rows, *part.shape[1:]))
