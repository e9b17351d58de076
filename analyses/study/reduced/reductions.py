"""What attention is replaced by: fewer heads, narrower ones, fewer bits, a window, only the best keys, or several.

Each `Reduction` is a value that says what it is called, which edits make a run compute it, and what shape of module it
leaves (`shapes.LayerShape`), from which bytes and multiplications follow. Edits act in prefill and in every decode step
alike, so that what is held of a token never depends on when it is looked at. A reduction that takes nothing away gives
no edit, or one that changes no bit: the run is the untouched model's.

* `KeepHeads`: z of all other heads is 0 (`analyses.heads.sparsification`).
* `NarrowHeads`: keys and values go through a bottleneck (`factors`), keys before rotary embedding.
* `FewBits`: keys as they are held, after norm and rotary embedding, and values are rounded (`rounding`).
* `LastKeys`: a query sees the last n keys, its own included.
* `TopKeys`: of the keys that it sees a query keeps the n of highest score, each head its own; softmax is over these.
* `Together`: several at once; narrow heads in few bits hold rounded numbers of the bottleneck.

How it fails: sizes below 1 and reductions of one kind twice raise `InputError`; layers that hold latents are refused
where shapes are made. Of keys of equal score beside the n-th, which are kept is the device's choice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from analyses.heads.sparsification import Heads, keep_rows
from analyses.study.reduced.acting import before_turning, keeping_top, point, rounding, seeing_last, through
from analyses.study.reduced.factors import key_bottleneck, value_bottleneck
from analyses.study.reduced.shapes import LayerShape, shapes_of
from hybridlens.display import Displayed, many
from hybridlens.errors import InputError
from hybridlens.hooks import Edit
from hybridlens.model import HybridLens
from hybridlens.results import hash_json


class Reduction(Displayed, ABC):
    """A module in attention's place; the classes are in the module's text."""

    kind: ClassVar[str]
    """What is less of: "heads", "width", "bits", "window", "keys", "together"."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As tables have it."""

    def summary(self) -> str:
        """Its name."""
        return self.name

    @property
    def slug(self) -> str:
        """The same as a part of a file's name, different for different reductions."""
        return self.name.replace(" ", "-")

    @abstractmethod
    def shape(self, lens: HybridLens, layer: LayerShape) -> LayerShape:
        """What it leaves of a layer's shape."""

    @abstractmethod
    def edits(self, lens: HybridLens) -> list[Edit]:
        """The edits of a run in which it stands in attention's place, made of the weights as they are now."""

    def shapes(self, lens: HybridLens) -> tuple[LayerShape, ...]:
        """The module that it leaves.

        Raises:
            InputError: see `shapes_of`.
        """
        return tuple(self.shape(lens, layer) for layer in shapes_of(lens))


@dataclass(frozen=True)
class KeepHeads(Reduction):
    """Some heads, the same throughout; the paper's question as a module.

    Attributes:
        heads: (layer, head) of those that are left, sorted; () for no attention at all.
    """

    heads: Heads
    kind: ClassVar[str] = "heads"

    @property
    def name(self) -> str:
        """See `Reduction`."""
        return many(len(self.heads), "head") if self.heads else "no attention"

    @property
    def slug(self) -> str:
        """See `Reduction`."""
        return f"heads-{len(self.heads)}-{hash_json([list(head) for head in self.heads])[:10]}"

    def shape(self, lens: HybridLens, layer: LayerShape) -> LayerShape:
        """See `Reduction`."""
        return replace(layer, heads=tuple(head for head in layer.heads if (layer.layer, head) in self.heads))

    def edits(self, lens: HybridLens) -> list[Edit]:
        """See `Reduction`."""
        layers, heads = lens.cfg.attention_layers, lens.cfg.n_heads
        unknown = [head for head in self.heads if head[0] not in layers or not 0 <= head[1] < heads]
        if unknown:
            raise InputError(
                f"layer {unknown[0][0]}, head {unknown[0][1]} is to be kept, but the model has attention layers "
                f"{list(layers)} with heads 0..{heads - 1}"
            )
        return keep_rows(lens, torch.tensor([[(at, head) in self.heads for head in range(heads)] for at in layers]))


@dataclass(frozen=True)
class NarrowHeads(Reduction):
    """All heads, with keys and values of fewer numbers.

    Attributes:
        width: numbers held of a key, and of a value.

    Raises:
        InputError: a width below 1.
    """

    width: int
    kind: ClassVar[str] = "width"

    def __post_init__(self) -> None:
        """Refuse what is no size."""
        _at_least_one("a width", self.width)

    @property
    def name(self) -> str:
        """See `Reduction`."""
        return f"width {self.width}"

    def shape(self, lens: HybridLens, layer: LayerShape) -> LayerShape:
        """See `Reduction`."""
        if self.width >= layer.cfg.d_head:
            return layer
        parts = key_bottleneck(lens, layer.layer, self.width).parts
        return replace(layer, keys=parts, value_width=self.width)

    def edits(self, lens: HybridLens, bits: int | None = None) -> list[Edit]:
        """See `Reduction`; with `bits`, what is held of them is rounded."""
        made: list[Edit] = []
        for layer in shapes_of(lens):
            if self.width >= layer.cfg.d_head:
                made += [] if bits is None else rounding(lens, layer.layer, bits)
                continue
            keys = key_bottleneck(lens, layer.layer, self.width).maps
            values = value_bottleneck(lens, layer.layer, self.width)
            made.append(Edit(before_turning(lens, layer.layer), through(keys, bits)))
            made.append(Edit(point(layer.layer, "v"), through(values, bits)))
        return made


@dataclass(frozen=True)
class FewBits(Reduction):
    """All heads, with keys and values held in few bits.

    Attributes:
        bits: of each number, 1 to 8.

    Raises:
        InputError: outside of that.
    """

    bits: int
    kind: ClassVar[str] = "bits"

    def __post_init__(self) -> None:
        """Refuse what is no number of bits."""
        if not 1 <= self.bits <= 8:
            raise InputError(f"{self.bits} bits given, expected 1 to 8")

    @property
    def name(self) -> str:
        """See `Reduction`."""
        return many(self.bits, "bit")

    def shape(self, lens: HybridLens, layer: LayerShape) -> LayerShape:
        """See `Reduction`."""
        return replace(layer, bits=self.bits)

    def edits(self, lens: HybridLens) -> list[Edit]:
        """See `Reduction`."""
        return [edit for layer in shapes_of(lens) for edit in rounding(lens, layer.layer, self.bits)]


@dataclass(frozen=True)
class LastKeys(Reduction):
    """A window: a query sees the last keys alone, and no others are held.

    Attributes:
        window: how many, its own included.

    Raises:
        InputError: below 1.
    """

    window: int
    kind: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        """Refuse what is no size."""
        _at_least_one("a window", self.window)

    @property
    def name(self) -> str:
        """See `Reduction`."""
        return f"window {self.window}"

    def shape(self, lens: HybridLens, layer: LayerShape) -> LayerShape:
        """See `Reduction`."""
        return replace(layer, window=self.window if layer.window is None else min(layer.window, self.window))

    def edits(self, lens: HybridLens) -> list[Edit]:
        """See `Reduction`."""
        wider = [one.layer for one in shapes_of(lens) if one.window is None or one.window > self.window]
        return [Edit(point(layer, "attn_scores"), seeing_last(self.window)) for layer in wider]


@dataclass(frozen=True)
class TopKeys(Reduction):
    """The keys of highest score alone, chosen at every query by each head.

    Attributes:
        keys: how many.

    Raises:
        InputError: below 1.
    """

    keys: int
    kind: ClassVar[str] = "keys"

    def __post_init__(self) -> None:
        """Refuse what is no number of keys."""
        _at_least_one("a number of keys", self.keys)

    @property
    def name(self) -> str:
        """See `Reduction`."""
        return f"top {many(self.keys, 'key')}"

    def shape(self, lens: HybridLens, layer: LayerShape) -> LayerShape:
        """See `Reduction`."""
        return replace(layer, top=self.keys)

    def edits(self, lens: HybridLens) -> list[Edit]:
        """See `Reduction`."""
        return [Edit(point(layer.layer, "attn_scores"), keeping_top(self.keys)) for layer in shapes_of(lens)]


@dataclass(frozen=True)
class Together(Reduction):
    """Several reductions at once.

    Attributes:
        parts: one of each kind at most; in any order, which changes nothing.

    Raises:
        InputError: two of one kind, or one of several.
    """

    parts: tuple[Reduction, ...]
    kind: ClassVar[str] = "together"

    def __post_init__(self) -> None:
        """Put the parts into the order in which they act, a window before the best keys."""
        kinds = [part.kind for part in self.parts]
        if len(set(kinds)) < len(kinds) or self.kind in kinds:
            raise InputError(f"reductions of {', '.join(kinds)} given, expected one of each kind at most")
        object.__setattr__(self, "parts", tuple(sorted(self.parts, key=lambda part: _KINDS.index(part.kind))))

    @property
    def name(self) -> str:
        """See `Reduction`."""
        return " + ".join(part.name for part in self.parts) or "all attention"

    @property
    def slug(self) -> str:
        """See `Reduction`."""
        return "+".join(part.slug for part in self.parts) or "all"

    def shape(self, lens: HybridLens, layer: LayerShape) -> LayerShape:
        """See `Reduction`."""
        for part in self.parts:
            layer = part.shape(lens, layer)
        return layer

    def edits(self, lens: HybridLens) -> list[Edit]:
        """See `Reduction`."""
        bits = next((part.bits for part in self.parts if isinstance(part, FewBits)), None)
        narrow = any(isinstance(part, NarrowHeads) for part in self.parts)
        made: list[Edit] = []
        for part in self.parts:
            if isinstance(part, NarrowHeads):
                made += part.edits(lens, bits)
            elif not (narrow and isinstance(part, FewBits)):
                made += part.edits(lens)
        return made


_KINDS = ("heads", "width", "bits", "window", "keys")
"""Of what may stand together, in the order in which they act."""

EVERYTHING = Together(())
"""The module as it is."""


def _at_least_one(what: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{what} of {value} given, expected at least 1")


def value_of(reduction: Reduction) -> Any:
    """A reduction as a JSON value, to tell what was made of it."""
    if isinstance(reduction, Together):
        return [value_of(part) for part in reduction.parts]
    return [reduction.kind, {name: _plain(value) for name, value in vars(reduction).items()}]


def _plain(value: Any) -> Any:
    return [list(one) for one in value] if isinstance(value, Sequence) else value
