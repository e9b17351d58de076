"""`Circuit`: a set of edges of a model, and which of them are on a path from the embedding to the logits.

Edges join writers and readers (`analyses.patching.writers`). What a head reads feeds that head, keys and values every
head of their group; what a recurrent layer reads feeds all of its heads; an MLP's input the MLP. So edges make paths
from the embedding to the logits, and an edge that is on none of these does nothing whatever the run.

How it fails: in a layer with attention and a recurrence side by side the reader "mixer" stands, in a circuit, for what
the recurrence alone reads, since heads read for themselves; its scores are lessened by theirs. A model whose shared
blocks read beside the stream (Zamba2), or whose stream is no sum (MiniMax), is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.patching.writers import HEAD_READERS, PART_OF, Reader, Writer, check_ends, readers_of, writers_of
from hybridlens.boundary import public
from hybridlens.display import Displayed, Table, many
from hybridlens.errors import InputError
from hybridlens.model import HybridLens

Edges: TypeAlias = Bool[Tensor, "writer reader"]

_LAST = 1 << 30
"""More layers than any model has: the logits come after all of them."""


@dataclass(frozen=True, eq=False)
class Circuit(Displayed, Stored):
    """Some of the edges of a model.

    Attributes:
        kept: whether an edge is in the circuit.
        writers: of the rows: `writers_of` the model.
        readers: of the columns: `readers_of` the model.
        source: how the edges were chosen, in words.
        model: signature of the architecture.

    Raises:
        InputError: another shape, or an edge to a reader that does not come after the writer.
    """

    kept: Edges
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    source: str
    model: str

    def __post_init__(self) -> None:
        """Hold the edges on the CPU, checked."""
        kept = self.kept.detach().cpu()
        if list(kept.shape) != [len(self.writers), len(self.readers)]:
            raise InputError(
                f"edges of shape {list(kept.shape)} given with {len(self.writers)} writers and {len(self.readers)} "
                "readers, expected one row a writer and one column a reader"
            )
        for w, r in (kept & ~existing(self.writers, self.readers)).nonzero().tolist()[:1]:
            raise InputError(
                f"there is no edge from '{self.writers[w].words}' to '{self.readers[r].words}', which does not come "
                "after it"
            )
        object.__setattr__(self, "kept", kept)

    @property
    def size(self) -> int:
        """How many edges."""
        return int(self.kept.sum())

    @property
    def edges(self) -> list[tuple[Writer, Reader]]:
        """Both ends of each, in forward order of the writers."""
        return [(self.writers[w], self.readers[r]) for w, r in self.kept.nonzero().tolist()]

    @property
    def share(self) -> float:
        """Of all edges of the model, the part that is in the circuit."""
        return self.size / int(existing(self.writers, self.readers).sum())

    def summary(self) -> str:
        """How large it is, and how it was chosen."""
        return f"{self.size} of {many(int(existing(self.writers, self.readers).sum()), 'edge')}; {self.source}"

    def table(self) -> Table:
        """Both ends of each edge."""
        rows = [(writer.words, reader.words) for writer, reader in self.edges]
        return Table(("writer", "reader"), rows, {"writer": "what writes to the stream", "reader": "what reads it"})

    @property
    def complement(self) -> Circuit:
        """All other edges of the model."""
        rest = existing(self.writers, self.readers) & ~self.kept
        return Circuit(rest, self.writers, self.readers, f"all edges but: {self.source}", self.model)


@public
def circuit_of(lens: HybridLens, edges: Sequence[tuple[Writer, Reader]]) -> Circuit:
    """A circuit of given edges; those on no path from the embedding to the logits stay in.

    Raises:
        InputError: an edge that the model lacks, or a model that circuits are not followed in.
    """
    writers, readers = ends_of(lens)
    kept = torch.zeros(len(writers), len(readers), dtype=torch.bool)
    for writer, reader in edges:
        check_ends(lens, [writer], [reader], "edges")
        if writer not in writers or reader not in readers:
            raise InputError(
                f"the edge from '{writer.words}' to '{reader.words}' is none that circuits are made of; give writers "
                "of writers_of(lens) and readers of readers_of(lens)"
            )
        kept[writers.index(writer), readers.index(reader)] = True
    return Circuit(kept, writers, readers, f"{many(len(edges), 'edge')} given", lens.network.signature)


@public
def whole_circuit(lens: HybridLens) -> Circuit:
    """All edges of a model; its complement has none.

    Raises:
        InputError: a model that circuits are not followed in.
    """
    writers, readers = ends_of(lens)
    return Circuit(existing(writers, readers), writers, readers, "all edges", lens.network.signature)


def existing(writers: Sequence[Writer], readers: Sequence[Reader]) -> Edges:
    """Whether a reader comes after a writer."""
    places = torch.tensor([reader.order(_LAST) for reader in readers])
    return torch.tensor([writer.order for writer in writers])[:, None] < places


def feeding(lens: HybridLens, writers: Sequence[Writer], readers: Sequence[Reader]) -> Bool[Tensor, "reader writer"]:
    """Whether what a reader reads goes into what a writer writes."""
    out = torch.zeros(len(readers), len(writers), dtype=torch.bool)
    inside: dict[int | None, list[int]] = {}
    for w, writer in enumerate(writers):
        inside.setdefault(writer.layer, []).append(w)
    for r, reader in enumerate(readers):
        for w in inside.get(reader.layer, []):
            out[r, w] = _feeds(lens, reader, writers[w])
    return out


def _feeds(lens: HybridLens, reader: Reader, writer: Writer) -> bool:
    if writer.layer is None:
        return False
    if reader.kind not in HEAD_READERS:
        return PART_OF[writer.kind] == ("mlp" if reader.kind == "mlp" else "ssm")
    has = lens.cfg.layers[writer.layer].attn
    if writer.kind != "head" or has is None or writer.index is None:
        return False
    shared = reader.kind in ("k", "v")
    return reader.head == (writer.index * has.n_kv_heads // has.n_heads if shared else writer.index)


def on_paths(
    kept: Edges, feeds: Bool[Tensor, "reader writer"], writers: Sequence[Writer], readers: Sequence[Reader]
) -> Edges:
    """Those of some edges that are on a path from the embedding to the logits."""
    begins = torch.tensor([writer.kind == "embed" for writer in writers])
    ends = torch.tensor([reader.kind == "logits" for reader in readers])
    while True:  # each round goes at least one part further, or ends
        hears = kept.any(dim=0)
        speaks = begins | (hears[:, None] & feeds).any(dim=0)
        heard = ends | (kept.any(dim=1) & feeds).any(dim=1)
        left = kept & speaks[:, None] & heard
        if bool((left == kept).all()):
            return kept
        kept = left


def ends_of(lens: HybridLens) -> tuple[tuple[Writer, ...], tuple[Reader, ...]]:
    """All writers and readers of a model, which are to be followed all of them."""
    writers, readers = tuple(writers_of(lens)), tuple(readers_of(lens))
    if any(layer.shared for layer in lens.cfg.layers):
        raise InputError(
            "circuits are made of all that reads the residual stream, but this model's shared blocks read the "
            "embedding beside it; follow single paths with path_patch instead"
        )
    lens.cfg.need_sum("following circuits")
    return writers, readers
