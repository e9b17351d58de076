"""What a part of a layer says when it is asked for a hook point that it has not, or for its output.

Asked as attributes (``lens.blocks[2].attn.hook_zz``), names that begin as hook points do get the names that come near
them, or all that the part has. A part has no output of its own in a trace, as modules have in nnsight: what it writes
to the stream, or what a norm makes of it, has a hook point, which is named. Layers and their parts run within passes
of the whole model, which tell them what they need beside the stream; called with it alone, they say what to call.

How it fails: `AbsentError`, which is an `AttributeError`; any other name that is missing gets PyTorch's own error. A
call of what cannot be called alone is a `KeywordError`, which is a `TypeError`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from hybridlens.elsewhere import typed_here
from hybridlens.errors import AbsentError, KeywordError, closest
from hybridlens.habits import RUNNING, TRACES, Habit
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

    def _points(self) -> dict[str, str | None]:
        """The names that its hook points have here, and those that they have in the model."""
        return {child: point.name for child, point in self.named_children() if isinstance(point, HookPoint)}

    def _path(self) -> str | None:
        """Where it stands in the model; None where it is part of none yet."""
        child, full = next(iter(self._points().items()), ("", None))
        return None if full is None else full.removesuffix(f".{child}")

    def _absent(self, name: str) -> AbsentError | None:
        points, path = self._points(), self._path()
        if path is None:  # no part of a model yet
            return None
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


class InPasses(Pointed):
    """A module that runs within passes of the whole model alone: a layer, or a part of one."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module of PyTorch.

        Raises:
            KeywordError: it was called with a tensor alone, as modules of other libraries are.
        """
        if len(args) + len(kwargs) < 2:
            raise self._alone()
        return super().__call__(*args, **kwargs)

    def _alone(self) -> KeywordError:
        path = self._path() or ""
        _, layer, *parts = (*path.split("."), "", "")
        part = parts[0]
        if not layer:
            return KeywordError(f"{type(self).__name__} was called with a tensor alone, but runs in passes of a model")
        of_it = f"start_at_layer={layer}, stop_at_layer={int(layer) + 1})"
        if part:
            here = f'lens.run_with_cache(resid, "blocks.{layer}.hook_{part}_out", {of_it}'
            note = f"resid is the stream before the layer; Hugging Face's module is in lens.model.layers[{layer}]"
        else:
            here, note = f"lens(resid, {of_it}", "resid is the stream before the layer"
        return KeywordError(
            f"{path} was called with a tensor alone, but runs in passes of the whole model; "
            f"{typed_here(Habit(here, RUNNING, note))}"
        )
