"""Writers and readers: the two ends of a path through the residual stream.

The residual stream is a sum (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"): the embedding,
and what every head, recurrent layer and MLP adds to it. A `Writer` names one of these terms. A `Reader` names something
that reads the sum: the queries, keys or values of a head, a whole mixer, an MLP, or the logits. A writer reaches every
reader that comes later, directly.

How it fails: a writer or reader that a model lacks (a head of a recurrent layer, a query head where keys are meant)
raises one line that says what there is.
"""

from __future__ import annotations

from dataclasses import dataclass

from hybridlens.errors import InputError, UnknownNameError
from hybridlens.model import HybridLens

BIASES = {"attn_bias": "attention", "ssm_bias": "recurrent", "mlp_bias": "MLP"}
"""Writers that add the same to every position, and of what they are the bias."""

WRITERS = ("embed", "head", "ssm", "mlp", "expert", *BIASES)
"""Kinds of writers: the embedding, an attention head, a recurrent layer, an MLP, one expert of a mixture, biases."""

READERS = ("q", "k", "v", "mixer", "mlp", "logits")
"""Kinds of readers: a head's queries; a shared head's keys or values; a mixer's whole input; an MLP's; the logits."""


@dataclass(frozen=True)
class Writer:
    """One term of the residual stream.

    Args:
        kind: one of `WRITERS`.
        layer: of which layer; None for the embedding.
        index: which head or expert; None for the others.

    Raises:
        UnknownNameError: there is no such kind.
        InputError: a layer or index is missing, or given where there is none.
    """

    kind: str
    layer: int | None = None
    index: int | None = None

    def __post_init__(self) -> None:
        """Refuse what names nothing."""
        _check_kind("writer", self.kind, WRITERS)
        _check_given("writer", self.kind, "layer", self.layer, self.kind != "embed")
        _check_given("writer", self.kind, "index", self.index, self.kind in ("head", "expert"))

    @property
    def order(self) -> int:
        """Its place among the writers and readers of a model: a writer reaches the readers with a higher one."""
        if self.layer is None:
            return -1
        return 2 * self.layer + (self.kind in ("mlp", "expert", "mlp_bias"))

    @property
    def words(self) -> str:
        """As reports name it: ``embedding``, ``L2 head 3``, ``L1 recurrent``, ``L1 MLP``, ``L2 attention bias``."""
        if self.kind in BIASES:
            return f"L{self.layer} {BIASES[self.kind]} bias"
        names = {"embed": "embedding", "ssm": f"L{self.layer} recurrent", "mlp": f"L{self.layer} MLP"}
        return names.get(self.kind, f"L{self.layer} {self.kind} {self.index}")

    def check(self, lens: HybridLens) -> None:
        """Refuse a writer that a model lacks.

        Raises:
            InputError: saying what the model has.
        """
        if self.layer is None:
            return
        cfg = lens.cfg
        layers = {
            "head": cfg.attention_layers, "attn_bias": cfg.attention_layers, "expert": cfg.moe_layers,
            "ssm": cfg.ssm_layers, "ssm_bias": cfg.ssm_layers,
        }.get(self.kind, tuple(range(cfg.n_layers)))  # fmt: skip
        what = {"head": "heads", "attn_bias": "attention biases", "expert": "experts"}
        words = what.get(self.kind, "MLPs" if self.kind.startswith("mlp") else "recurrent layers")
        _check_layer(f"writer '{self.words}'", words, self.layer, layers)
        size = cfg.n_heads if self.kind == "head" else cfg.n_experts
        if self.index is not None and size is not None:
            _check_index(f"writer '{self.words}'", f"{self.kind}s", self.index, size)


@dataclass(frozen=True)
class Reader:
    """What reads the residual stream.

    Args:
        kind: one of `READERS`.
        layer: of which layer; None for the logits.
        head: which query head (q) or shared key/value head (k, v); None for the others.

    Raises:
        UnknownNameError: there is no such kind.
        InputError: a layer or head is missing, or given where there is none.
    """

    kind: str
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        """Refuse what names nothing."""
        _check_kind("reader", self.kind, READERS)
        _check_given("reader", self.kind, "layer", self.layer, self.kind != "logits")
        _check_given("reader", self.kind, "head", self.head, self.kind in ("q", "k", "v"))

    def order(self, n_layers: int) -> int:
        """Its place among the writers and readers of a model with so many layers: see `Writer.order`."""
        return 2 * (n_layers if self.layer is None else self.layer) + (self.kind == "mlp")

    @property
    def words(self) -> str:
        """As reports name it: ``L2 head 3 q``, ``L2 kv head 0 v``, ``L1 mixer in``, ``L1 MLP in``, ``logits``."""
        if self.layer is None:
            return "logits"
        if self.head is None:
            return f"L{self.layer} {'MLP' if self.kind == 'mlp' else 'mixer'} in"
        return f"L{self.layer} {'head' if self.kind == 'q' else 'kv head'} {self.head} {self.kind}"

    def check(self, lens: HybridLens) -> None:
        """Refuse a reader that a model lacks.

        Raises:
            InputError: saying what the model has.
        """
        if self.layer is None:
            return
        cfg, name = lens.cfg, f"reader '{self.words}'"
        if self.head is None:
            _check_layer(name, "mixers and MLPs", self.layer, tuple(range(cfg.n_layers)))
            return
        _check_layer(name, "heads", self.layer, cfg.attention_layers)
        if self.kind == "q":
            _check_index(name, "query heads", self.head, cfg.n_heads)
        else:
            _check_index(name, "key/value heads", self.head, cfg.n_kv_heads)


def writers_of(lens: HybridLens) -> list[Writer]:
    """The writers of a model that can differ between prompts, in forward order: no biases, mixtures whole."""
    cfg, out = lens.cfg, [Writer("embed")]
    for layer, kind in enumerate(cfg.layer_types):
        if kind == "attention":
            out += [Writer("head", layer, head) for head in range(cfg.n_heads)]
        else:
            out.append(Writer("ssm", layer))
        out.append(Writer("mlp", layer))
    return out


def readers_of(lens: HybridLens) -> list[Reader]:
    """The readers of a model in forward order: of attention layers queries, keys and values instead of the whole."""
    cfg, out = lens.cfg, list[Reader]()
    for layer, kind in enumerate(cfg.layer_types):
        if kind == "attention":
            out += [Reader("q", layer, head) for head in range(cfg.n_heads)]
            out += [Reader(part, layer, head) for part in "kv" for head in range(cfg.n_kv_heads)]
        else:
            out.append(Reader("mixer", layer))
        out.append(Reader("mlp", layer))
    return [*out, Reader("logits")]


def reaches(lens: HybridLens, writer: Writer, reader: Reader) -> bool:
    """Whether a reader comes after a writer."""
    return writer.order < reader.order(lens.cfg.n_layers)


def _check_kind(what: str, kind: str, known: tuple[str, ...]) -> None:
    if kind not in known:
        raise UnknownNameError(f"{what} kind {kind!r} does not exist; expected one of {', '.join(known)}")


def _check_given(what: str, kind: str, field: str, value: int | None, wanted: bool) -> None:
    if wanted != (value is not None):
        expected = "a number" if wanted else "none"
        raise InputError(f"{what} {kind!r} was given {field} {value}, expected {expected}")


def _check_layer(name: str, what: str, layer: int, layers: tuple[int, ...]) -> None:
    if layer not in layers:
        has = f"those are in layers {', '.join(map(str, layers))}" if layers else "the model has none"
        raise InputError(f"{name}: layer {layer} has no {what}; {has}")


def _check_index(name: str, what: str, index: int, size: int) -> None:
    if not 0 <= index < size:
        raise InputError(f"{name}: the layer has {what} 0..{size - 1}, but {index} was given")
