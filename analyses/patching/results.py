"""`PatchResult`: what patching gave, with its axes named.

The metric's value of every patch, and of the two untouched runs between which it lies. `normalised` maps these to
1 (clean) and 0 (corrupt), whichever way was patched: in denoising, how much of the clean run a patch brings back; in
noising, how much of it a patch leaves.

How it fails: runs that the metric cannot tell apart have no scale between them, and are refused; so is a file that does
not hold a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from hybridlens.boundary_words import Among
from hybridlens.errors import InputError, UnknownNameError

DIRECTIONS = ("denoise", "noise")
"""Clean values put into the corrupt run, or corrupt values into the clean one."""

Direction: TypeAlias = Annotated[str, Among(DIRECTIONS)]

ABLATIONS = ("zero", "mean", "resample")
"""What is put into the clean run in place of its values."""

SAME = 1e-6
"""Two values of a metric that differ by less of the larger one are the same: that much is rounding."""


class Axis(NamedTuple):
    """One axis of a result."""

    name: str
    """"layer", "pos", "head", "kv_head", "channel", "expert", …; "hook" or "patch" where neither would do."""
    labels: tuple[str, ...]
    """What each entry is, no two alike: a layer's number, a position with its token, a range of channels."""


@dataclass(frozen=True, eq=False)
class PatchResult(Stored):
    """The values of a metric under patches.

    Attributes:
        raw: the metric under each patch, float64, on the CPU.
        axes: the axes of `raw`.
        clean: the metric of the untouched clean run.
        corrupt: that of the untouched corrupt run; None for an ablation without one.
        metric: what was measured, in words.
        direction: one of `DIRECTIONS` or `ABLATIONS`.
        hooks: the hook points patched.
        model: signature of the architecture.
        clean_tokens: the clean prompt.
        corrupt_tokens: the corrupt prompt; nothing for an ablation without one.
        forwards: forward passes that were made, the untouched runs among them.

    Raises:
        InputError: values and axes that do not fit, or that are no finite numbers.
        UnknownNameError: a direction that does not exist.
    """

    raw: Float[Tensor, "..."]
    axes: tuple[Axis, ...]
    clean: float
    corrupt: float | None
    metric: str
    direction: str
    hooks: tuple[str, ...]
    model: str
    clean_tokens: tuple[int, ...]
    corrupt_tokens: tuple[int, ...] = ()
    forwards: int = 0

    def __post_init__(self) -> None:
        """Hold the values as float64 on the CPU, checked."""
        raw = self.raw.detach().to("cpu", torch.float64)
        sizes = [len(axis.labels) for axis in self.axes]
        if list(raw.shape) != sizes:
            names = ", ".join(f"{axis.name} ({len(axis.labels)})" for axis in self.axes)
            raise InputError(f"values of shape {list(raw.shape)} given with axes {names or 'none'}; expected {sizes}")
        if not bool(raw.isfinite().all()):
            raise InputError("the values hold NaN or infinity, expected finite numbers")
        if self.direction not in (*DIRECTIONS, *ABLATIONS):
            known = ", ".join((*DIRECTIONS, *ABLATIONS))
            raise UnknownNameError(f"direction {self.direction!r} does not exist; expected one of {known}")
        object.__setattr__(self, "raw", raw)

    @property
    def untouched(self) -> float:
        """The metric of the run that was patched."""
        if self.direction == "denoise":
            assert self.corrupt is not None
            return self.corrupt
        return self.clean

    @property
    def change(self) -> Float[Tensor, "..."]:
        """What each patch added to the metric of the run that was patched."""
        return self.raw - self.untouched

    @property
    def normalised(self) -> Float[Tensor, "..."]:
        """(value - corrupt) ÷ (clean - corrupt): 1 is the clean run, 0 the corrupt one.

        Raises:
            InputError: an ablation without a corrupt run, or runs that the metric does not tell apart.
        """
        if self.corrupt is None:
            raise InputError("an ablation without a corrupt prompt has no scale; read `change`, or give one")
        check_ends(self.clean, self.corrupt, self.metric)
        return (self.raw - self.corrupt) / (self.clean - self.corrupt)

    def axis(self, name: str) -> int:
        """Which axis of the values has this name.

        Raises:
            UnknownNameError: naming those there are.
        """
        names = [axis.name for axis in self.axes]
        if name not in names:
            raise UnknownNameError(f"the result has no axis {name!r}; it has {', '.join(names)}")
        return names.index(name)

    def top(self, n: int = 10) -> list[tuple[tuple[str, ...], float]]:
        """The `n` patches that changed the metric most: labels, and the change."""
        flat = self.change.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
        places = [torch.unravel_index(torch.tensor(i), self.raw.shape) for i in order]
        return [
            (tuple(axis.labels[int(at)] for axis, at in zip(self.axes, place, strict=True)), float(flat[i]))
            for i, place in zip(order, places, strict=True)
        ]


def check_ends(clean: float, corrupt: float, metric: str) -> None:
    """Refuse two runs that the metric does not tell apart.

    Raises:
        InputError: with the value of both.
    """
    if abs(clean - corrupt) <= SAME * max(abs(clean), abs(corrupt)):
        raise InputError(
            f"metric '{metric}' is {clean:g} on the clean prompt and {corrupt:g} on the corrupt one, so there is no "
            "scale from 0 to 1 between them; give prompts that differ in it, or another metric"
        )


def check_direction(direction: str, known: Sequence[str], what: str = "direction") -> None:
    """Refuse a direction, or a kind of ablation, that does not exist.

    Raises:
        UnknownNameError: naming the ones that do.
    """
    if direction not in known:
        raise UnknownNameError(f"{what} {direction!r} does not exist; expected one of {', '.join(known)}")
