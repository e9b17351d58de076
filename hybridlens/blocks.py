"""A layer: a list of residual branches, each a norm, parts that read what it gives, and what they add to the stream.

The first branch holds the mixers (attention, a recurrence, or both side by side on the same input), the second the
MLP; either may be missing. Every part wraps modules of the Hugging Face model without owning or changing them, so
that the two always have the same weights.

Beside its branches a layer may have a block that writes nothing to the stream and feeds the first branch's input
(`hybridlens.shared_block`); what is in `parts` writes to the stream, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import nn

from hybridlens.devices import execution_device
from hybridlens.hooks import HookPoint
from hybridlens.memory import Memory
from hybridlens.norms import HookedNorm
from hybridlens.passes import Pass
from hybridlens.shapes import Resid
from hybridlens.shared_block import SharedBlock
from hybridlens.state import Memories


class Part(Protocol):
    """What reads the stream through a branch's norm, and writes to it."""

    def __call__(self, x: Resid, run: Pass, held: Memory | None) -> tuple[Resid, Memory | None]:
        """The write, every multiplier included, and what the part remembers afterwards."""
        ...


class Mixer(Part, Protocol):
    """A part that remembers."""

    def empty(self, batch: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """What `batch` rows hold that have read nothing.

        Args:
            batch: rows.
            dtype: of the model.
            device: where the layer computes.
        """
        ...


@dataclass(frozen=True)
class Branch:
    """One residual branch.

    Attributes:
        parts: by name: ``attn``, ``ssm`` or both, or ``mlp``; all read the same.
        norm: before the parts; None for none.
        norm_after: of what they write together, before it is added; None for none.
    """

    parts: Mapping[str, nn.Module]
    norm: HookedNorm | None
    norm_after: HookedNorm | None = None


class Block(nn.Module):
    """One layer.

    Args:
        branches: in the order in which they write; the mixers', the MLP's, or one of them.
        home: the family's layer, which says where it computes.
        d_model: width of the residual stream.
        wide: whether the stream is float32 whatever the model's dtype.
        shared: what feeds the first branch's input, beside the stream; None for nothing.
    """

    def __init__(
        self,
        branches: list[Branch],
        home: nn.Module,
        d_model: int,
        wide: bool = False,
        shared: SharedBlock | None = None,
    ) -> None:
        super().__init__()
        self.home = (home,)
        self.wide = wide
        self.branches = tuple(branches)
        self.mixers: dict[str, Mixer] = {}
        self.parts: dict[str, nn.Module] = {name: part for branch in branches for name, part in branch.parts.items()}
        self.hook_resid_pre = HookPoint("b p d", d=d_model)
        self.shared = shared
        if shared is not None:
            for name, module in shared.modules.items():
                self.add_module(name, module)
            self.mixers["attn"] = shared.attn
        for number, branch in enumerate(branches, start=1):
            if branch.norm is not None:
                self.add_module(f"ln{number}", branch.norm)
            for name, part in branch.parts.items():
                self.add_module(name, part)
                if name != "mlp":
                    self.mixers[name] = cast(Mixer, part)
                if branch.norm_after is None:
                    self.add_module(f"hook_{name}_out", HookPoint("b p d", d=d_model))
            if branch.norm_after is not None:  # what is really added to the stream: one part, behind its norm
                (name,) = branch.parts
                self.add_module(f"ln{number}_post", branch.norm_after)
                self.add_module(f"hook_{name}_out", HookPoint("b p d", d=d_model))
            if "mlp" not in branch.parts:
                self.hook_mixer_out = HookPoint("b p d", d=d_model)
            if number < len(branches):
                self.hook_resid_mid = HookPoint("b p d", d=d_model)
        self.hook_resid_post = HookPoint("b p d", d=d_model)

    def number_of(self, part: str | None) -> int:
        """Which branch, counted from 1, a part is in; None for the mixers."""
        inside = (part in branch.parts if part is not None else "mlp" not in branch.parts for branch in self.branches)
        return next(number for number, found in enumerate(inside, start=1) if found)

    def forward(self, resid: Resid, run: Pass, held: Memories | None) -> tuple[Resid, Memories]:
        """The residual stream after this layer, and what its mixers remember."""
        device = execution_device(self.home[0], resid.device)
        run, resid = run.to(device), self.hook_resid_pre(resid.to(device))
        remembered: dict[str, Memory] = {}
        for number, branch in enumerate(self.branches, start=1):
            x = resid
            if self.shared is not None and number == 1:
                fed = self.shared(resid, run, None if held is None else held["attn"])
                x, remembered["attn"] = resid + fed.added, fed.memory
            x = x if branch.norm is None else branch.norm(x)
            total: Resid | None = None
            for name, part in branch.parts.items():
                out, memory = cast(Part, part)(x, run, None if held is None else held.get(name))
                if memory is not None:
                    remembered[name] = memory
                out = out if branch.norm_after is None else branch.norm_after(out)
                out = getattr(self, f"hook_{name}_out")(out)
                total = out if total is None else total + out
            assert total is not None
            if "mlp" not in branch.parts:
                total = self.hook_mixer_out(total)
            resid = (resid.float() if self.wide else resid) + total
            if number < len(self.branches):
                resid = self.hook_resid_mid(resid)
        return self.hook_resid_post(resid), remembered
