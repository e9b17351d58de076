"""Which memories of a mixed state come from prompt B; the others come from prompt A.

A hybrid remembers in four ways: keys and values of its attention layers, and convolution inputs and recurrent states
of its recurrent layers; mixes of a model name those that it has. A `Mix` names some of these, layer by layer. `mixes`
makes the ready ones: all combinations of keys with values, convolution and recurrent state of the whole model; keys
apart from values; each attention layer; and each recurrent layer, with its convolution, without it, and the convolution
alone; where there are several key/value heads, each of these. For each layer and head there are both "only" (nothing
but this from B: is it enough?) and "all but" (everything but this from B: is it needed?).

How it fails: the name of no memory raises `UnknownNameError` when a mix is made; a layer or head that the model lacks,
or a memory that its layer lacks, raises `InputError` before a crossover begins, or when a state is mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeAlias

from analyses.kv_cache.recurrent import swap_recurrent
from analyses.kv_cache.swapping import swap
from hybridlens.config import LensConfig
from hybridlens.display import Displayed, Table, listed
from hybridlens.display.markup import cut
from hybridlens.errors import InputError, UnknownNameError
from hybridlens.state import HybridState

Memory: TypeAlias = Literal["keys", "values", "conv", "recurrent"]
MEMORIES: tuple[Memory, ...] = ("keys", "values", "conv", "recurrent")

FromB: TypeAlias = frozenset[tuple[int, str]]
Heads: TypeAlias = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Mix(Displayed):
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
    from_b: FromB
    heads_from_b: Heads = frozenset()

    def __post_init__(self) -> None:
        """Refuse a memory that would not be mixed."""
        unknown = sorted({memory for _, memory in self.from_b} - set(MEMORIES), key=str)
        if unknown:
            known = ", ".join(MEMORIES)
            raise UnknownNameError(f"mix {self.name!r}: memory {unknown[0]!r} does not exist; expected one of {known}")

    def summary(self) -> str:
        """What comes from prompt B."""
        parts = [
            f"{memory} of layers {listed(layers, 6)}"
            for memory in MEMORIES
            if (layers := sorted(layer for layer, which in self.from_b if which == memory))
        ]
        parts += [f"keys and values of layer {layer} head {head}" for layer, head in sorted(self.heads_from_b)[:4]]
        return cut(f"{self.name}; from B: {', '.join(parts) or 'nothing'}", 170)

    def table(self) -> Table:
        """A row for each memory that comes from prompt B; with a head where it is one head's."""
        rows: list[tuple[int, str, int | None]] = [(layer, memory, None) for layer, memory in sorted(self.from_b)]
        rows += [(layer, "keys and values", head) for layer, head in sorted(self.heads_from_b)]
        return Table(("layer", "memory", "head"), rows)

    def of(self, a: HybridState, b: HybridState) -> HybridState:
        """The mixed state, row for row; tensors that come whole from A are A's own.

        Raises:
            InputError: states of other models, batches or lengths, or a layer without such a memory.
        """
        chosen = {memory: {layer for layer, which in self.from_b if which == memory} for memory in MEMORIES}
        whole = chosen["keys"] & chosen["values"]
        if whole:
            a = swap(a, b, layers=sorted(whole))
        for memory in MEMORIES:
            layers = sorted(chosen[memory] - (whole if memory in ("keys", "values") else set()))
            if not layers:
                continue
            if memory == "keys" or memory == "values":
                a = swap(a, b, memory, layers=layers)
            else:
                a = swap_recurrent(a, b, memory, layers=layers)
        for layer in sorted({layer for layer, _ in self.heads_from_b}):
            a = swap(a, b, layers=[layer], heads=sorted(head for other, head in self.heads_from_b if other == layer))
        return a


def mixes(cfg: LensConfig, by_layer: bool = True) -> list[Mix]:
    """The ready mixes of a model.

    Args:
        cfg: the model's configuration.
        by_layer: whether to mix single layers too.

    Raises:
        InputError: the model remembers nothing.
    """
    if not cfg.attention_layers and not cfg.ssm_layers:
        raise InputError(f"mixing memories needs some, but no layer of this {cfg.family} model remembers anything")
    layers = {"keys": cfg.attention_layers, "values": cfg.attention_layers, "conv": cfg.conv_layers}
    every = {memory: frozenset((i, memory) for i in layers.get(memory, cfg.state_layers)) for memory in MEMORIES}
    parts = {"kv": every["keys"] | every["values"], "conv": every["conv"], "recurrent": every["recurrent"]}
    parts = {what: memories for what, memories in parts.items() if memories}  # what a model lacks is in no name
    found: list[Mix] = []
    for sides in product("AB", repeat=len(parts)):
        taken = dict(zip(parts, sides, strict=True))
        from_b = frozenset(one for what, side in taken.items() if side == "B" for one in parts[what])
        found.append(Mix(", ".join(f"{what} {side}" for what, side in taken.items()), "whole model", from_b))
    if cfg.attention_layers and all(
        attention.latent is None for attention in cfg.attentions
    ):  # else keys and values are of one latent
        found += [Mix(f"only {memory} B", "whole model", every[memory]) for memory in ("keys", "values")]
    everything = frozenset(one for part in parts.values() for one in part)
    for layer in range(cfg.n_layers) if by_layer else ():
        kinds: dict[str, tuple[str, ...]] = {"kv": ("keys", "values")} if layer in cfg.attention_layers else {}
        if layer in cfg.conv_layers and layer in cfg.state_layers:
            kinds["conv and recurrent"] = ("conv", "recurrent")
        if layer in cfg.conv_layers:
            kinds["conv"] = ("conv",)
        if layer in cfg.state_layers:
            kinds["recurrent"] = ("recurrent",)
        for what, memories in kinds.items():
            this = frozenset((layer, memory) for memory in memories)
            found += _alone_and_not(what, f"layer {layer}", this, everything - this)
        heads = cfg.attention(layer).n_held_heads if layer in cfg.attention_layers else 1
        rest = everything - {(layer, "keys"), (layer, "values")}
        for head in range(heads) if heads > 1 else ():
            others = frozenset((layer, other) for other in range(heads) if other != head)
            group = f"layer {layer}, head {head}"
            found += _alone_and_not("kv", group, frozenset(), rest, frozenset({(layer, head)}), others)
    return found


def _alone_and_not(
    what: str, group: str, this: FromB, rest: FromB, head: Heads = frozenset(), others: Heads = frozenset()
) -> list[Mix]:
    """The mix of one memory from B, and that of all but it."""
    taken = {"only": (this, head), "all but": (rest, others)}
    return [Mix(f"{how} {what} of {group} B", group, *from_b) for how, from_b in taken.items()]


def check_mixes(given: Sequence[Mix], cfg: LensConfig) -> None:
    """Refuse two mixes of one name, and layers that a model lacks."""
    names = [mix.name for mix in given]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"two mixes are called {twice[0]!r}; give each its own name")
    for mix in given:
        layers = sorted({layer for layer, _ in (*mix.from_b, *mix.heads_from_b)})
        lacking = [layer for layer in layers if not 0 <= layer < cfg.n_layers]
        if lacking:
            raise InputError(f"mix {mix.name!r} has layer {lacking[0]}, but the model has layers 0..{cfg.n_layers - 1}")
