"""Which memories of a mixed state come from prompt B; the others come from prompt A.

A hybrid remembers in four ways: keys and values of its attention layers, and convolution inputs and recurrent states
of its recurrent layers. A `Mix` names some of these, layer by layer. `mixes` makes the ready ones: all combinations of
keys with values, convolution and recurrent state of the whole model; keys apart from values; each attention layer; and
each recurrent layer, with its convolution, without it, and the convolution alone; where there are several key/value
heads, each of these. For each layer and head there are both "only" (nothing but this from B: is it enough?) and "all
but" (everything but this from B: is it needed?).

How it fails: the name of no memory raises `UnknownNameError` when a mix is made; a layer or head that the model lacks,
or a memory that its layer lacks, raises `InputError` before a crossover begins, or when a state is mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeAlias

from analyses.kv_cache.places import check_name
from analyses.kv_cache.recurrent import swap_recurrent
from analyses.kv_cache.swapping import swap
from hybridlens.config import LensConfig
from hybridlens.errors import InputError
from hybridlens.state import HybridState

Memory: TypeAlias = Literal["keys", "values", "conv", "recurrent"]
MEMORIES: tuple[Memory, ...] = ("keys", "values", "conv", "recurrent")


@dataclass(frozen=True)
class Mix:
    """What comes from prompt B.

    Attributes:
        name: what results call it.
        group: what it belongs to, such as "whole model" or "layer 3".
        from_b: (layer, memory) of everything that comes from B whole.
        heads_from_b: (layer, key/value head) of those whose keys and values come from B in layers whose other heads'
            come from A.

    Raises:
        UnknownNameError: a memory that is none of `MEMORIES`.
    """

    name: str
    group: str
    from_b: frozenset[tuple[int, str]]
    heads_from_b: frozenset[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:
        """Refuse a memory that would not be mixed."""
        for _, memory in sorted(self.from_b, key=str):
            check_name(memory, MEMORIES, f"mix {self.name!r}: memory")

    def of(self, a: HybridState, b: HybridState) -> HybridState:
        """The mixed state, row for row; tensors that come whole from A are A's own.

        Raises:
            InputError: states of other models, batches or lengths, or a layer without such a memory.
        """
        for memory in MEMORIES:
            layers = sorted(layer for layer, which in self.from_b if which == memory)
            if not layers:
                continue
            if memory == "keys" or memory == "values":
                a = swap(a, b, memory, layers=layers)
            else:
                a = swap_recurrent(a, b, memory, layers=layers)
        for layer in sorted({layer for layer, _ in self.heads_from_b}):
            a = swap(a, b, layers=[layer], heads=sorted(head for other, head in self.heads_from_b if other == layer))
        return a


def memories_of(cfg: LensConfig) -> dict[Memory, frozenset[tuple[int, str]]]:
    """(layer, memory) of everything a model remembers in, by kind of memory."""
    layers = {"keys": cfg.attention_layers, "values": cfg.attention_layers, "conv": cfg.ssm_layers}
    return {memory: frozenset((i, memory) for i in layers.get(memory, cfg.ssm_layers)) for memory in MEMORIES}


def mixes(cfg: LensConfig, by_layer: bool = True) -> list[Mix]:
    """The ready mixes of a model.

    Args:
        cfg: the model's configuration.
        by_layer: whether to mix single layers too.

    Raises:
        InputError: no layer has attention, so that there is nothing to set recurrent memories against.
    """
    cfg.need_attention("mixing keys and values with recurrent memories")
    every = memories_of(cfg)
    kv, conv, recurrent = every["keys"] | every["values"], every["conv"], every["recurrent"]
    nothing: frozenset[tuple[int, str]] = frozenset()
    found: list[Mix] = []
    for chosen in product((False, True), repeat=3):
        named = zip(("kv", "conv", "recurrent"), chosen, strict=True)
        name = ", ".join(f"{what} {'B' if taken else 'A'}" for what, taken in named)
        parts = (part if taken else nothing for part, taken in zip((kv, conv, recurrent), chosen, strict=True))
        found.append(Mix(name, "whole model", nothing.union(*parts)))
    found += [Mix(f"only {memory} B", "whole model", every[memory]) for memory in ("keys", "values")]
    if not by_layer:
        return found
    everything = kv | conv | recurrent
    for layer in range(cfg.n_layers):
        kinds: list[tuple[Memory, ...]] = []
        if layer in cfg.attention_layers:
            kinds.append(("keys", "values"))
        if layer in cfg.ssm_layers:
            recurrent_kinds: list[tuple[Memory, ...]] = [("conv", "recurrent"), ("conv",), ("recurrent",)]
            kinds += recurrent_kinds
        for kind in kinds:
            this = frozenset((layer, memory) for memory in kind)
            what = "kv" if "keys" in kind else " and ".join(kind)
            found.append(Mix(f"only {what} of layer {layer} B", f"layer {layer}", this))
            found.append(Mix(f"all but {what} of layer {layer} B", f"layer {layer}", everything - this))
        attention = cfg.layers[layer].attn
        if attention is not None and attention.n_kv_heads > 1:
            found += _by_head(layer, attention.n_kv_heads, everything)
    return found


def _by_head(layer: int, n_heads: int, everything: frozenset[tuple[int, str]]) -> list[Mix]:
    """Keys and values of each head of a layer, alone and alone not."""
    found: list[Mix] = []
    for head in range(n_heads):
        others = frozenset((layer, other) for other in range(n_heads) if other != head)
        rest = everything - {(layer, "keys"), (layer, "values")}
        what, group = f"kv of layer {layer}, head {head} B", f"layer {layer}, head {head}"
        found.append(Mix(f"only {what}", group, frozenset(), frozenset({(layer, head)})))
        found.append(Mix(f"all but {what}", group, rest, others))
    return found


def check_mixes(given: Sequence[Mix], cfg: LensConfig) -> None:
    """Refuse no mixes, two of one name, and layers that a model lacks.

    Raises:
        InputError: what is wrong.
    """
    names = [mix.name for mix in given]
    if not names or len(set(names)) < len(names):
        twice = next((name for name in names if names.count(name) > 1), None)
        raise InputError("no mix given" if twice is None else f"two mixes are called {twice!r}; give each its own name")
    for mix in given:
        layers = sorted({layer for layer, _ in (*mix.from_b, *mix.heads_from_b)})
        lacking = [layer for layer in layers if not 0 <= layer < cfg.n_layers]
        if lacking:
            raise InputError(f"mix {mix.name!r} has layer {lacking[0]}, but the model has layers 0..{cfg.n_layers - 1}")
