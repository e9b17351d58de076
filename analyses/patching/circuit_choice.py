"""Which edges make a circuit: those with the largest scores, or random ones.

`choose_circuit` takes the edges with the largest scores, whichever their sign, and leaves out those that are on no path
from the embedding to the logits (Hanna, Pezzelle & Belinkov 2024, "Have Faith in Faithfulness", arXiv 2403.17806,
and the graph of their code): "greedy" goes back from the logits, always adding the best edge into a part that
is in the circuit already; "top" takes the best of all. Both may end with fewer edges than were asked for.
`random_circuit` draws paths instead, so that exactly as many edges as asked for are on one: edges drawn one by one
would mostly be on none, and a circuit of those is no rival.

How it fails: the sizes of small random circuits are bound (two edges are one path through one part), and there is no
promise that every circuit is equally likely.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.patching.circuit import Circuit, Edges, ends_of, existing, feeding, on_paths
from analyses.patching.results import EdgeResult
from analyses.patching.writers import HEAD_READERS, Reader
from hybridlens.boundary import Natural, Positive, Seed, public
from hybridlens.boundary_words import Among
from hybridlens.display import many
from hybridlens.errors import InputError
from hybridlens.model import HybridLens

WAYS = ("greedy", "top")
"""How edges are chosen by their scores."""

Way: TypeAlias = Annotated[str, Among(WAYS)]

Scored: TypeAlias = EdgeResult | Sequence[EdgeResult]
"""Scores of edges, of one prompt pair or of several."""

_TRIES = 100
"""How often a random circuit is begun anew that came to no end of the size asked for."""


@public
def choose_circuit(lens: HybridLens, edges: Scored, n: Natural, how: Way = "greedy") -> Circuit:
    """The circuit of the edges with the largest scores.

    Args:
        lens: the model.
        edges: what `edges.edge_attribution` gave for all writers and readers, with `steps` for EAP-IG; of several
            results, of one prompt pair each, the mean score counts.
        n: edges chosen; those of them that are on no path from the embedding to the logits are left out again.
        how: "greedy" back from the logits, or "top" of all edges at once; of equal scores the first comes first.

    Raises:
        InputError: scores of another model, or of some writers or readers only; more edges than there are.
        UnknownNameError: there is no such way to choose.
    """
    writers, readers = ends_of(lens)
    results = [edges] if isinstance(edges, EdgeResult) else list(edges)
    if not results:
        raise InputError("no scores were given, expected what edge_attribution gives")
    for result in results:
        if (result.writers, result.readers, result.model) != (writers, readers, lens.network.signature):
            raise InputError(
                f"scores of {len(result.writers)} writers and {len(result.readers)} readers given, but circuits of "
                f"this model are made of its {len(writers)} and {len(readers)}; call edge_attribution on it without "
                "writers= and readers="
            )
    there = existing(writers, readers)
    if n > int(there.sum()):
        raise InputError(f"{n} edges asked for, but the model has {int(there.sum())}")
    scores = torch.stack([result.scores for result in results]).mean(dim=0)
    sizes = scores_apart(readers, scores).abs().masked_fill(~there, -1.0)
    feeds = feeding(lens, writers, readers)
    chosen = _greedy(sizes, feeds, readers.index(Reader("logits")), n) if how == "greedy" else _top(sizes, n)
    words = "back from the logits" if how == "greedy" else "of all"
    source = f"the {many(n, 'edge')} of the largest scores, chosen {words}: {results[0].metric}"
    source += f", mean of {many(len(results), 'prompt pair')}" if len(results) > 1 else ""
    return Circuit(on_paths(chosen, feeds, writers, readers), writers, readers, source, lens.network.signature)


@public
def random_circuit(lens: HybridLens, n: Positive, seed: Seed = 0) -> Circuit:
    """A random circuit of exactly `n` edges, each on a path from the embedding to the logits.

    It grows by random walks back from a random reader of the circuit, over random writers and what feeds them, until
    one meets the embedding or a writer that is in it already; where that is no new edge, or too many, by one random
    edge between what it has.

    Raises:
        InputError: more edges than there are, or no circuit of that size was met in `_TRIES` beginnings.
    """
    writers, readers = ends_of(lens)
    there, feeds = existing(writers, readers), feeding(lens, writers, readers)
    if n > int(there.sum()):
        raise InputError(f"{n} edges asked for, but the model has {int(there.sum())}")
    rng = torch.Generator().manual_seed(seed)
    for _ in range(_TRIES):
        kept = _grown(there, feeds, readers.index(Reader("logits")), n, rng)
        if int(kept.sum()) == n:
            return Circuit(kept, writers, readers, f"{n} random edges, seed {seed}", lens.network.signature)
    raise InputError(f"no circuit of {n} edges that are all on paths was met in {_TRIES} draws; give another size")


def scores_apart(readers: Sequence[Reader], scores: Float[Tensor, "writer reader"]) -> Float[Tensor, "writer reader"]:
    """Scores with those of whole mixers less what the heads beside them read."""
    out = scores.clone()
    for r, reader in enumerate(readers):
        heads = [i for i, other in enumerate(readers) if other.layer == reader.layer and other.kind in HEAD_READERS]
        if reader.kind == "mixer" and heads:
            out[:, r] -= scores[:, heads].sum(dim=1)
    return out


def _top(sizes: Float[Tensor, "writer reader"], n: int) -> Edges:
    kept = torch.zeros(sizes.numel(), dtype=torch.bool)
    kept[sizes.flatten().argsort(descending=True, stable=True)[:n]] = True
    return kept.view(sizes.shape)


def _greedy(sizes: Float[Tensor, "writer reader"], feeds: Bool[Tensor, "reader writer"], logits: int, n: int) -> Edges:
    """The best edge into a part of the circuit, `n` times."""
    kept, inside = torch.zeros(sizes.shape, dtype=torch.bool), {logits}
    known = sizes.tolist()

    def into(reader: int) -> list[tuple[float, int, int]]:
        return [(-row[reader], w, reader) for w, row in enumerate(known) if row[reader] >= 0]

    waiting = into(logits)
    heapq.heapify(waiting)
    for _ in range(n):
        if not waiting:
            break
        _, writer, reader = heapq.heappop(waiting)
        kept[writer, reader] = True
        for other in feeds[:, writer].nonzero()[:, 0].tolist():
            if other not in inside:
                inside.add(other)
                for edge in into(other):
                    heapq.heappush(waiting, edge)
    return kept


def _grown(there: Edges, feeds: Bool[Tensor, "reader writer"], logits: int, n: int, rng: torch.Generator) -> Edges:
    """Random paths joined, and where the next is too long single edges between what is joined, up to `n` edges."""

    def pick(options: Sequence[int]) -> int:
        return options[int(torch.randint(len(options), (), generator=rng))]

    before = [column.nonzero()[:, 0].tolist() for column in there.T]
    feeding = [column.nonzero()[:, 0].tolist() for column in feeds.T]
    fed = [row.nonzero()[:, 0].tolist() for row in feeds]
    heard, speaks = {logits: None}, {w for w, sources in enumerate(feeding) if not sources}  # readers in order
    kept, left = torch.zeros(there.shape, dtype=torch.bool), n
    while left:
        reader, path = pick(list(heard)), list[tuple[int, int]]()
        while not path or path[-1][0] not in speaks:
            writer = pick(before[reader])
            path.append((writer, reader))
            reader = pick(feeding[writer]) if writer not in speaks else reader
        new = [edge for edge in path if not kept[edge]]
        if not new or len(new) > left:
            single = there & ~kept
            single[:, [r for r in range(len(fed)) if r not in heard]] = False
            single[[w for w in range(len(feeding)) if w not in speaks]] = False
            options = single.nonzero().tolist()
            if not options:
                return kept
            all_joined = len(heard) == len(fed) and len(speaks) == len(feeding)
            order = torch.randperm(len(options), generator=rng)[: left if all_joined else 1].tolist()
            new = [(options[place][0], options[place][1]) for place in order]
        for writer, reader in new:
            kept[writer, reader] = True
            heard |= dict.fromkeys(feeding[writer])
            speaks |= set(fed[reader])
        left -= len(new)
    return kept
