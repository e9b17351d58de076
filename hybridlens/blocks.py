"""A layer: a list of residual branches, each a norm, parts that read what it gives, and what they add to the stream.

The first branch holds the mixers (attention, a recurrence, or both side by side on the same input), the second the
MLP; either may be missing. A branch may read the stream through no norm, and write to it through one: what its parts
add, heads and all, is then what that norm makes of it. Every part wraps modules of the Hugging Face model without
owning or changing them, so that the two always have the same weights.

Mostly the stream itself goes on and is added to. Where a branch says so (`Branch.carried`), a multiple of what its norm
gives goes on in the stream's place: the hook points of the stream hold what is there, which is no sum of what is
written (`LayerConfig.carries_norm`).

Beside its branches a layer may have a block that writes nothing to the stream and feeds the first branch's input
(`hybridlens.shared_block`); what is in `parts` writes to the stream, and nothing else does.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast, no_type_check

import torch
from torch import nn

from hybridlens.elsewhere import missing
from hybridlens.first_row import refuse_first
from hybridlens.habits import BLOCK
from hybridlens.hooks import HookPoint
from hybridlens.memory import Memory
from hybridlens.near_points import InPasses
from hybridlens.norms import HookedNorm
from hybridlens.passes import Pass
from hybridlens.shapes import Resid
from hybridlens.shared_block import SharedBlock
from hybridlens.state import Memories
from hybridlens.stream import HeadWrites, WritesByHead


class Part(Protocol):
    """What reads the stream through a branch's norm, and writes to it."""

    def __call__(self, x: Resid, run: Pass, held: Memory | None) -> tuple[Resid, Memory | None]:
        """The write, every multiplier included, and what the part remembers afterwards."""
        ...


class PartByHead(Protocol):
    """A part that can say what its heads write through a norm."""

    def __call__(
        self, x: Resid, run: Pass, held: Memory | None, after: HookedNorm | None = None
    ) -> tuple[Resid, Memory | None]:
        """As `Part`, the write already behind the norm `after` it."""
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
        norm_after: of what its one part writes, before it is added; None for none. A part that writes by heads takes
            it as another argument, to say what each head adds through it.
        carried: what the norm gives is multiplied by this, and its parts' writes are added to that; None where they
            are added to the stream itself.
    """

    parts: Mapping[str, nn.Module]
    norm: HookedNorm | None
    norm_after: HookedNorm | None = None
    carried: float | None = None


class Block(InPasses):
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
        self.by_head = frozenset(
            name for branch in branches for name, part in branch.parts.items() if isinstance(part, WritesByHead)
        )
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
            else:
                self.add_module(_entry(branch), HookPoint("b p d", d=d_model))
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

    @property
    @no_type_check  # who asks is found by the frames between
    def output(self) -> Any:
        """The residual stream behind the layer, live inside ``with lens.trace(...)``: its `hook_resid_post`."""
        refuse_first(sys._getframe(1), self.hook_resid_post, "output")
        return self.hook_resid_post.output

    @output.setter
    def output(self, value: Any) -> None:
        self.hook_resid_post.output = value

    @property
    @no_type_check  # who asks is found by the frames between
    def input(self) -> Any:
        """The residual stream before the layer, live inside ``with lens.trace(...)``: its `hook_resid_pre`."""
        refuse_first(sys._getframe(1), self.hook_resid_pre, "input")
        return self.hook_resid_pre.output

    @input.setter
    def input(self, value: Any) -> None:
        self.hook_resid_pre.output = value

    def __getattr__(self, name: str) -> Any:
        """What PyTorch finds; for a part that the layer lacks, or a name of others', what to type instead."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in BLOCK:
                raise
            raise missing(self, "this layer", name, BLOCK) from None

    def number_of(self, part: str | None) -> int:
        """Which branch, counted from 1, a part is in; None for the mixers."""
        inside = (part in branch.parts if part is not None else "mlp" not in branch.parts for branch in self.branches)
        return next(number for number, found in enumerate(inside, start=1) if found)

    def head_writes(self, part: str) -> HeadWrites | None:
        """What the heads of a part write, through a norm after it too; None where it writes as a whole."""
        found, number = self.parts[part], self.number_of(part)
        if not isinstance(found, WritesByHead):
            return None
        after = self.branches[number - 1].norm_after
        return found.head_writes._replace(
            after=after, scale_point="" if after is None else f"ln{number}_post.hook_scale"
        )

    def written(self, part: str, x: Resid, run: Pass) -> Resid:
        """What a part that has read nothing before adds to a stream that it reads, through the norms around it."""
        branch = self.branches[self.number_of(part) - 1]
        out, _ = cast(Part, branch.parts[part])(x if branch.norm is None else branch.norm(x), run, None)
        return out if branch.norm_after is None else branch.norm_after(out)

    def read_point(self, part: str) -> str:
        """The hook point, in this layer, that holds what a part reads: the normalised stream where there is a norm."""
        number = self.number_of(part)
        branch = self.branches[number - 1]
        return _entry(branch) if branch.norm is None else f"ln{number}.hook_normalized"

    @property
    def late(self) -> dict[str, str]:
        """Points of heads behind a norm, and the point that each fires behind, though that is the next module's."""
        numbered = enumerate(self.branches, start=1)
        return {
            f"{name}.hook_result": f"ln{number}_post.hook_normalized"
            for number, branch in numbered
            for name in branch.parts
            if branch.norm_after is not None and name in self.by_head
        }

    def forward(self, resid: Resid, run: Pass, held: Memories | None, device: torch.device) -> tuple[Resid, Memories]:
        """The residual stream after this layer, and what its mixers remember.

        Args:
            resid: the residual stream before it.
            run: the forward pass.
            held: what its mixers remember of earlier tokens; None for nothing.
            device: where the layer computes.
        """
        if resid.device != device or run.positions.device != device:
            run, resid = run.to(device), resid.to(device)
        resid = self.hook_resid_pre(resid)
        remembered: dict[str, Memory] = {}
        for number, branch in enumerate(self.branches, start=1):
            x = resid
            if self.shared is not None and number == 1:
                fed = self.shared(resid, run, None if held is None else held["attn"])
                x, remembered["attn"] = resid + fed.added, fed.memory
            x = getattr(self, _entry(branch))(x) if branch.norm is None else branch.norm(x)
            resid = resid if branch.carried is None else x * branch.carried
            total: Resid | None = None
            for name, part in branch.parts.items():
                before = None if held is None else held.get(name)
                if branch.norm_after is not None and name in self.by_head:
                    out, memory = cast(PartByHead, part)(x, run, before, branch.norm_after)
                else:
                    out, memory = cast(Part, part)(x, run, before)
                    out = out if branch.norm_after is None else branch.norm_after(out)
                if memory is not None:
                    remembered[name] = memory
                out = getattr(self, f"hook_{name}_out")(out)
                total = out if total is None else total + out
            assert total is not None
            if "mlp" not in branch.parts:
                total = self.hook_mixer_out(total)
            resid = (resid.float() if self.wide else resid) + total
            if number < len(self.branches):
                resid = self.hook_resid_mid(resid)
        return self.hook_resid_post(resid), remembered


def _entry(branch: Branch) -> str:
    """The hook point of what a branch without a norm before it reads."""
    return "hook_mlp_in" if "mlp" in branch.parts else "hook_mixer_in"
