"""The untouched run that patches start from: its residual stream, and what was remembered where.

What a patch leaves as it is need not be computed again: the layers before its first one, and, attention and recurrence
being causal, the positions before its first one. `Snapshot` holds the residual stream at the layers asked for, the
memory of the whole prompt, and the memory of its first positions at a few places; `go_on` computes the rest for many
rows at once, hooks of the layers that run included.

How it fails: beginning behind the first positions rounds otherwise than one pass over all, in the last bits. A snapshot
holds the memory of the prompt once for each place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from analyses.patching.targets import EMBEDDING
from hybridlens.hooks import HookPoint, reads_only
from hybridlens.model import HybridLens
from hybridlens.network import Output
from hybridlens.shapes import Resid, Tokens
from hybridlens.state import HybridState


class Snapshot:
    """One prompt's untouched run.

    Args:
        lens: the model; hooks that are on it act, and should be none.
        tokens: the prompt [1 p].
        layers: where runs are to go on: layers, `EMBEDDING`, or the number of layers for what follows the last.
        cuts: positions from which runs are to go on, besides 0.
        last_only: unembed only the last position.
    """

    def __init__(
        self, lens: HybridLens, tokens: Tokens, layers: Iterable[int], cuts: Iterable[int], last_only: bool
    ) -> None:
        self.lens = lens
        self.tokens = tokens
        self.last_only = last_only
        self.forwards = 1
        self.resid: dict[int, Resid] = {}
        names = {resid_name(lens, layer): layer for layer in set(layers) - {EMBEDDING}}

        @reads_only
        def keep(tensor: Tensor, hook: HookPoint) -> None:
            self.resid[names[cast(str, hook.name)]] = tensor

        with lens.hooks([(name, keep) for name in names]):
            self.output = lens.network(tokens, None, None, last_only)
        self.before: dict[int, HybridState] = {}
        state, read = None, 0
        for cut in sorted(set(cuts) - {0}):
            state = lens.network(tokens[:, read:cut], None, state, True).state
            self.before[cut], read = state, cut
        self.forwards += bool(self.before)  # its pieces together read no more than one pass

    def offsets(self, cut: int) -> dict[str, int]:
        """By axis, how many leading entries of activations a run from position `cut` lacks."""
        if cut == 0:
            return {}
        held = self.before[cut].key_positions[0]
        return {"p": cut, "k": int(held[0]) if held.numel() else cut}

    def go_on(self, rows: int, layer: int, cut: int) -> Output:
        """`rows` copies of the run, computed from `layer` and position `cut` on, under the hooks that are attached.

        The logits are of all positions, or of the last one, as the snapshot's are.
        """
        last_only = self.last_only
        self.forwards += 1
        before = _repeated(self.before[cut], rows) if cut else None
        if layer == EMBEDDING:
            tokens = self.tokens[:, cut:].expand(rows, -1)
            output = self.lens.network(tokens, None, before, last_only)
        else:
            resid = self.resid[layer][:, cut:]
            resid, after = resid.expand(rows, *resid.shape[1:]), _repeated(self.output.state, rows)
            output = self.lens.network.resume(layer, resid, after, before, None, last_only)
        if last_only or cut == 0:
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
