"""Writers and readers: the two ends of a path through the residual stream.

The residual stream is a sum (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"): the embedding,
and what every head, recurrent layer and MLP adds to it. A `Writer` names one of these terms. A `Reader` names something
that reads the sum: the queries, keys or values of a head, a whole mixer, an MLP, or the logits. A writer reaches every
reader that comes later, directly.

How it fails: a writer or reader that a model lacks (a head of a recurrent layer, a query head where keys are meant)
raises one line that says what there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from hybridlens.blocks import Block
from hybridlens.config import LayerConfig
from hybridlens.display import Displayed
from hybridlens.errors import InputError, UnknownNameError
from hybridlens.model import HybridLens
from hybridlens.stream import HeadReads, HeadWrites, ReadsByHead

BIASES = {"attn_bias": "attention", "ssm_bias": "recurrent", "mlp_bias": "MLP"}
"""Writers that add the same to every position, and of what they are the bias."""

PART_OF = {
    "head": "attn", "attn_bias": "attn", "ssm": "ssm", "ssm_head": "ssm", "ssm_bias": "ssm", "mlp": "mlp",
    "expert": "mlp", "shared_expert": "mlp", "mlp_bias": "mlp",
}  # fmt: skip
"""The part of a layer that a writer belongs to."""

WRITERS = ("embed", *PART_OF)
"""Kinds of writers: the embedding; a head of attention; a recurrent layer, or one of its heads; an MLP, one expert of a
mixture, or the expert that all tokens go to; biases."""

SENDERS = ("embed", "head", "ssm", "ssm_head", "mlp")
"""Kinds of writers that paths and edges begin at."""

BY_INDEX = ("head", "ssm_head", "expert")
"""Writers of which a layer has several."""

HEAD_READERS = ("q", "k", "v", "gate")
"""What attention's heads read; keys and values once for the heads that share them."""

READERS = (*HEAD_READERS, "mixer", "mlp", "logits")
"""Kinds of readers: a head's queries; a shared head's keys or values; a head's output gate; a layer's mixers' whole
input; an MLP's; the logits."""


@dataclass(frozen=True)
class Writer(Displayed):
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
        layer, index = (self.layer, self.kind != "embed"), (self.index, self.kind in BY_INDEX)
        _check_kind("writer", self.kind, WRITERS, layer=layer, index=index)

    @property
    def order(self) -> int:
        """Its place among the writers and readers of a model: a writer reaches the readers with a higher one."""
        return -1 if self.layer is None else 2 * self.layer + (PART_OF[self.kind] == "mlp")

    def summary(self) -> str:
        """Its words."""
        return self.words

    @property
    def words(self) -> str:
        """As reports name it: ``embedding``, ``L2 head 3``, ``L1 recurrent``, ``L1 MLP``, ``L2 attention bias``."""
        if self.kind in BIASES:
            return f"L{self.layer} {BIASES[self.kind]} bias"
        names = {"embed": "embedding", "ssm": f"L{self.layer} recurrent", "mlp": f"L{self.layer} MLP"}
        names["ssm_head"] = f"L{self.layer} recurrent head {self.index}"
        names["shared_expert"] = f"L{self.layer} shared expert"
        return names.get(self.kind, f"L{self.layer} {self.kind} {self.index}")

    def check(self, lens: HybridLens) -> None:
        """Refuse a writer that a model lacks, by an `InputError` that says what it has."""
        if self.layer is None:
            return
        if PART_OF[self.kind] != "ssm":
            _check_on_stream(lens, f"writer '{self.words}'", self.layer)
        sizes = [_size(has, self.kind) for has in lens.cfg.layers]
        what = {
            "head": "heads", "attn_bias": "attention biases", "expert": "experts", "shared_expert": "shared experts",
            "ssm_head": "recurrent heads", "mlp": "MLPs", "mlp_bias": "MLPs",
        }.get(self.kind, "recurrent layers")  # fmt: skip
        _check_layer(f"writer '{self.words}'", what, self.layer, sizes)
        if self.index is not None:
            _check_index(f"writer '{self.words}'", what, self.index, sizes[self.layer])


def _size(has: LayerConfig, kind: str) -> int:
    """How many writers of a kind a layer has."""
    sizes = {
        "head": has.attn and has.attn.n_heads,
        "ssm_head": has.ssm and has.ssm.n_heads,
        "expert": has.mlp and has.mlp.n_experts,
        "shared_expert": has.mlp and has.mlp.shared_expert,
    }
    parts = {"attn": has.attn, "ssm": has.ssm, "mlp": has.mlp}
    return int(sizes[kind] or 0) if kind in sizes else int(parts[PART_OF[kind]] is not None)


@dataclass(frozen=True)
class Reader(Displayed):
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
        layer, head = (self.layer, self.kind != "logits"), (self.head, self.kind in HEAD_READERS)
        _check_kind("reader", self.kind, READERS, layer=layer, head=head)

    def order(self, n_layers: int) -> int:
        """Its place among the writers and readers of a model with so many layers: see `Writer.order`."""
        return 2 * (n_layers if self.layer is None else self.layer) + (self.kind == "mlp")

    def summary(self) -> str:
        """Its words."""
        return self.words

    @property
    def words(self) -> str:
        """As reports name it: ``L2 head 3 q``, ``L2 kv head 0 v``, ``L1 mixer in``, ``L1 MLP in``, ``logits``."""
        if self.layer is None:
            return "logits"
        if self.head is None:
            return f"L{self.layer} {'MLP' if self.kind == 'mlp' else 'mixer'} in"
        return f"L{self.layer} {'kv head' if self.kind in ('k', 'v') else 'head'} {self.head} {self.kind}"

    def check(self, lens: HybridLens) -> None:
        """Refuse a reader that a model lacks, by an `InputError` that says what it has."""
        if self.layer is None:
            return
        name, layers = f"reader '{self.words}'", lens.cfg.layers
        _check_on_stream(lens, name, self.layer)
        if self.head is None:
            is_mlp = self.kind == "mlp"
            has = [layer.mlp is not None if is_mlp else layer.type != "mlp" for layer in layers]
            _check_layer(name, "MLPs" if is_mlp else "mixers", self.layer, has)
            return
        _check_layer(name, "heads", self.layer, [layer.attn is not None for layer in layers])
        reads = head_reads(lens, self.layer)
        if self.kind not in reads:
            roles = ", ".join(reads)
            raise InputError(f"{name}: the heads of layer {self.layer} have no {self.kind}; they have {roles}")
        words = "key/value heads" if self.kind in ("k", "v") else "query heads"
        _check_index(name, words, self.head, reads[self.kind].n)


def head_writes(lens: HybridLens, layer: int, part: str) -> HeadWrites | None:
    """What the heads of a part write; None where it writes as a whole."""
    return cast(Block, lens.blocks[layer]).head_writes(part)


def head_reads(lens: HybridLens, layer: int) -> dict[str, HeadReads]:
    """What the heads of a layer's attention read, by role; nothing where there are none."""
    found = cast(Block, lens.blocks[layer]).parts.get("attn")
    return found.head_reads if isinstance(found, ReadsByHead) else {}


def writers_of(lens: HybridLens) -> list[Writer]:
    """The writers of a model that can differ between prompts, in forward order: no biases, mixtures whole."""
    out = [Writer("embed")]
    for layer in range(lens.cfg.n_layers):
        for part in cast(Block, lens.blocks[layer]).parts:
            heads = head_writes(lens, layer, part)
            out += [Writer(part, layer)] if heads is None else [Writer(heads.kind, layer, i) for i in range(heads.n)]
    return out


def readers_of(lens: HybridLens) -> list[Reader]:
    """The readers of a model in forward order: of attention what its heads read, instead of the whole.

    Of a layer with attention and a recurrence side by side there are both: what the heads read, and, as "mixer", the
    whole input of the two.
    """
    out = list[Reader]()
    for layer, has in enumerate(lens.cfg.layers):
        out += [Reader(kind, layer, head) for kind, read in head_reads(lens, layer).items() for head in range(read.n)]
        if has.ssm is not None:
            out.append(Reader("mixer", layer))
        if has.mlp is not None:
            out.append(Reader("mlp", layer))
    return [*out, Reader("logits")]


def written_points(lens: HybridLens, writer: Writer) -> tuple[str, ...]:
    """The hook points that hold what a writer writes, in the order in which they fire.

    Of a head they hold what its output map is applied to, and the scale of a norm after it.
    """
    if writer.layer is None:
        return ("hook_embed",)
    part = PART_OF[writer.kind]
    heads = None if writer.index is None else head_writes(lens, writer.layer, part)
    points = (f"hook_{part}_out",) if heads is None else heads.points
    return tuple(f"blocks.{writer.layer}.{point}" for point in points)


def terms_of(lens: HybridLens, writer: Writer, seen: Mapping[str, Tensor]) -> Tensor:
    """What a writer's write is linear in, whatever the run, given its points' values; of a head, for all of its layer.

    Runs are compared by it: differences of terms, mapped, are differences of what is written.
    """
    points = written_points(lens, writer)
    heads = (
        None if writer.layer is None or writer.index is None else head_writes(lens, writer.layer, PART_OF[writer.kind])
    )
    if heads is None:
        return seen[points[0]]
    return heads.terms({point: seen[name] for point, name in zip(heads.points, points, strict=True)})


def norm_before(lens: HybridLens, reader: Reader) -> str | None:
    """The norm that a reader reads through; None where it reads the stream as it is."""
    if reader.layer is None:
        return "ln_final"
    block = cast(Block, lens.blocks[reader.layer])
    number = block.number_of("mlp" if reader.kind == "mlp" else None)
    return None if block.branches[number - 1].norm is None else f"blocks.{reader.layer}.ln{number}"


def read_point(lens: HybridLens, reader: Reader) -> str:
    """The hook point that holds what a reader reads; of whole parts, the normalised stream."""
    if reader.layer is None:
        return "ln_final.hook_normalized"
    block = cast(Block, lens.blocks[reader.layer])
    if reader.head is not None:
        return f"blocks.{reader.layer}.{head_reads(lens, reader.layer)[reader.kind].point}"
    return f"blocks.{reader.layer}.{block.read_point('mlp' if reader.kind == 'mlp' else next(iter(block.mixers)))}"


def reaches(lens: HybridLens, writer: Writer, reader: Reader) -> bool:
    """Whether a reader comes after a writer."""
    return writer.order < reader.order(lens.cfg.n_layers)


def check_ends(lens: HybridLens, writers: Iterable[Writer], readers: Iterable[Reader], what: str) -> None:
    """Refuse writers that no paths or edges (`what`) begin at, writers and readers that a model lacks, and no sum."""
    lens.cfg.need_sum(f"following {what}")
    for writer in writers:
        if writer.kind not in SENDERS:
            raise InputError(f"writer '{writer.words}' given, but {what} begin at {', '.join(SENDERS)}")
        writer.check(lens)
    for reader in readers:
        reader.check(lens)


def check_once(*ends: Sequence[str]) -> None:
    """Refuse a writer or reader, by its words, that was given twice."""
    for words in ends:
        twice = next((word for word in words if words.count(word) > 1), None)
        if twice is not None:
            raise InputError(f"'{twice}' was given twice, expected every writer and reader once")


def _check_kind(what: str, kind: str, known: tuple[str, ...], **fields: tuple[int | None, bool]) -> None:
    """Refuse a kind that does not exist, and `fields` (a number, whether one is wanted) that do not fit."""
    if kind not in known:
        raise UnknownNameError(f"{what} kind {kind!r} does not exist; expected one of {', '.join(known)}")
    for name, (value, wanted) in fields.items():
        if wanted != (value is not None):
            expected = "a number" if wanted else "none"
            raise InputError(f"{what} {kind!r} was given {name} {value}, expected {expected}")


def _check_on_stream(lens: HybridLens, name: str, layer: int) -> None:
    """Refuse readers, and writers besides the recurrence, of a layer whose mixer a shared block feeds."""
    if layer in range(lens.cfg.n_layers) and lens.cfg.layers[layer].shared:
        raise InputError(
            f"{name}: in layer {layer} a shared block of attention and MLP reads the embedding beside the residual "
            "stream and feeds the recurrence alone; only the recurrence writes, and no reader there is followed; give "
            "recurrent heads as writers, and readers of layers without such a block, or the logits"
        )


def _check_layer(name: str, what: str, layer: int, sizes: Sequence[int]) -> None:
    layers = [number for number, size in enumerate(sizes) if size]
    if layer not in layers:
        has = f"those are in layers {', '.join(map(str, layers))}" if layers else "the model has none"
        raise InputError(f"{name}: layer {layer} has no {what}; {has}")


def _check_index(name: str, what: str, index: int, size: int) -> None:
    if not 0 <= index < size:
        raise InputError(f"{name}: the layer has {what} 0..{size - 1}, but {index} was given")
