"""What patching one prompt pair gives, all of it, and effects: the share of the difference that a patch moves.

Denoising, an effect is what one patch brings back of the clean run; noising, what it takes away. 1 is all of it, and
below 0 is away from the other run. How it fails: runs that the metric does not tell apart raise `InputError`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Float
from torch import Tensor

from analyses.patching.choosing import Measure
from analyses.patching.direct import DirectAttribution
from analyses.patching.pairs import Pair
from analyses.patching.results import EdgeResult, PatchResult, largest
from hybridlens.display import Displayed, Table, many
from hybridlens.viz.plotted import Plotted
from hybridlens.viz.positions import visible
from hybridlens.viz.words import DASH

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

KINDS = {"layer": "L{}", "head": "H{}", "kv_head": "KV head {}", "expert": "expert {}", "channel": "channels {}",
         "rec_head": "recurrent head {}"}  # fmt: skip
"""Axis of a result -> how an entry is called; positions are called by `position`."""


class _Patched(NamedTuple):
    """Fields of `Patched`."""

    pair: Pair
    answers: Sequence[str] | None
    """The tokens in which the two answers part, as text."""
    measure: Measure
    exact: dict[str, PatchResult]
    """By sweep, in the order of `SWEEPS`."""
    estimated: dict[str, PatchResult]
    edges: EdgeResult | None
    direct: DirectAttribution | None
    points: float | None = None
    """Of the answer to the clean prompt, by its needle's rubric (0 to `niah.MAX_SCORE`)."""


class Patched(Plotted, _Patched):
    """Everything that patching one pair gives, and that a folder holds."""

    __slots__ = ()

    def summary(self) -> str:
        """Which pair, how many sweeps, and the strongest patch of all."""
        best = max((strongest(found)[0] for found in self.exact.values()), key=lambda place: place.effect, default=None)
        most = "" if best is None else f"; most: {best.words} {number(best.effect)}"
        return f"{self.pair.kind} pair, {self.measure.metric.words}, {many(len(self.exact), 'sweep')}{most}"

    def table(self) -> Table:
        """A row a sweep: how many patches, and which moves most of the difference between the runs."""
        rows = [(name, found.raw.numel(), *strongest(found)[0]) for name, found in self.exact.items()]
        meanings = {"effect": "the share of the difference between the two runs that the patch moves"}
        return Table(("sweep", "patches", "strongest", "effect"), rows, meanings, ("effect",))

    def plot(self, sweep: str | None = None) -> Plot:
        """The map of one sweep, by its name; of the first when left out."""
        return (self.one if sweep is None else self.exact[sweep]).plot()

    @property
    def one(self) -> PatchResult:
        """Any of the measured sweeps, which are all of the same two runs."""
        return next(iter(self.exact.values()))

    @property
    def denoises(self) -> bool:
        """Whether clean values were put into the corrupt run."""
        return self.one.direction == "denoise"


class _Place(NamedTuple):
    """Fields of `Place`."""

    words: str
    effect: float


class Place(Displayed, _Place):
    """One patch of a sweep."""

    __slots__ = ()


def effect(found: PatchResult) -> Float[Tensor, "..."]:
    """The share of the difference between the runs that each patch moves."""
    return found.normalised if found.direction == "denoise" else 1 - found.normalised


def strongest(found: PatchResult, n: int = 1) -> list[Place]:
    """The patches that move most towards the other run, the strongest first."""
    effects = effect(found)
    return [Place(_place_words(found, place), float(effects[place])) for place in largest(effects, n)]


def _place_words(found: PatchResult, place: Sequence[int]) -> str:
    """A patch in words: "L5 KV head 0 at position 56 “eat|fly”"."""
    parts = [
        f"at {position(axis.labels[i])}" if axis.name == "pos" else KINDS.get(axis.name, "{}").format(axis.labels[i])
        for axis, i in zip(found.axes, place, strict=True)
    ]
    return " ".join(sorted(parts, key=lambda part: part.startswith("at ")))


def position(label: str) -> str:
    """A position of a result in words, from its label "56 eat|fly": "position 56 “eat|fly”"."""
    one = re.fullmatch(r"(\d+) (.*)", label, re.DOTALL)  # several patched together have no tokens in their label
    return f"position {one[1]} {visible(f'“{one[2]}”')}" if one else f"position {label}"


def number(value: float, sign: str = "") -> str:
    """An effect as text: "0.83", "−0.02", "0.00"; with sign="+" also "+0.83"."""
    return f"{value:{sign}z.2f}".replace("-", "−") if value == value else DASH
