"""What a part of a layer says when it is asked for a hook point that it has not, or for its output.

Asked as attributes (``lens.blocks[2].attn.hook_zz``), names that begin as hook points do get the names that come near
them, or all that the part has. A part has no output of its own in a trace, as modules have in nnsight: what it writes
to the stream, or what a norm makes of it, has a hook point, which is named.

How it fails: `AbsentError`, which is an `AttributeError`; any other name that is missing gets PyTorch's own error.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from hybridlens.elsewhere import typed_here
from hybridlens.errors import AbsentError, closest
from hybridlens.habits import TRACES, Habit
from hybridlens.hook_points import HookPoint


class Pointed(nn.Module):
    """A module with hook points."""

    def __getattr__(self, name: str) -> Any:
        """What PyTorch finds, or the line that says what there is."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            problem = self._absent(name) if name.startswith("hook_") or name == "output" else None
            if problem is None:
                raise
        raise problem

    def _absent(self, name: str) -> AbsentError | None:
        points = {child: point.name for child, point in self.named_children() if isinstance(point, HookPoint)}
        child, full = next(iter(points.items()), ("", None))
        if full is None:  # no part of a model yet
            return None
        path = full.removesuffix(f".{child}")
        if name != "output":
            near = closest(name, points) or f"; it has {', '.join(points)}"
            return AbsentError(f"{path} has no hook point {name}{near}; see lens.hook_points")
        layer, _, part = path.removeprefix("blocks.").rpartition(".")
        within = f"lens.blocks[{layer}]" if layer else "lens"
        if "hook_normalized" in points:
            habit = Habit(f"{within}.{part}.hook_normalized", TRACES, "in a trace .output; before the norm's weight")
        else:
            habit = Habit(f"{within}.hook_{part}_out", TRACES, "in a trace .output")
        return AbsentError(f"{path} has no output; {typed_here(habit)}")
