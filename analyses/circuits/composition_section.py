"""The section of the circuits' report on who composes with whom: maps of every pair, a graph of the strongest.

How it fails: pure; a pair whose writer is not earlier is an empty square.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.composition import KINDS
from analyses.circuits.labels import number
from analyses.circuits.results import HeadCircuits, name_of
from hybridlens.viz.blocks import Block, Chart, ChartGrid, Section, Table, Words
from hybridlens.viz.circuits import Edge, Node, composition_graph, strongest
from hybridlens.viz.entries import Entry
from hybridlens.viz.heads import heatmap_height, pair_heatmap

LINES = 12
"""Compositions of each kind in the graph."""


def composition(circuits: HeadCircuits) -> Section:
    """Who composes with whom, beyond chance."""
    composed = circuits.composition
    excess = _flat(composed.excess_recurrent, composed.excess_heads)
    writers, readers = _nodes(circuits)
    edges = {  # every pair above chance, with its place
        Edge(writers[w].name, readers[r].name, kind, float(excess[k, r, w])): (k, r, w)
        for k, kind in enumerate(KINDS)
        for r, w in (excess[k] > 0).nonzero().tolist()
    }
    shown = [edge for kind in KINDS for edge in strongest([e for e in edges if e.kind == kind], LINES)]
    or_path = ", or a recurrent layer's linear path at one lag of its convolution, taken "
    or_path = f"{or_path}{circuits.linearised}" if circuits.ssm_layers else ""
    words = (
        "‖W_writer W_reader‖ ÷ (‖W_writer‖ ‖W_reader‖), less what random matrices of the same shapes and spectra would "
        "have: how much of what a writer puts into the residual stream a later head's queries (Q), keys (K) or values "
        f"(V) read. A writer is a head's OV circuit{or_path}. Rotary embedding is left out of Q and K. A high value "
        "says that the reader could see the writer's output, not that it uses it."
    )
    drawn = (
        f"Drawn are the strongest {len(shown)}, at most {LINES} of a kind, of the {len(edges):,} that lie above "
        f"chance; in all there are {int(excess.isfinite().sum()):,}. Layers stand in the order of the model; the "
        "thicker a line, the higher above chance."
    )
    graph = Chart(
        composition_graph(writers, shown, len(shown)),
        "a graph of the strongest compositions from writers to later heads; numbers in the table below",
        height=560,
        least_width=min(60 * (len(circuits.layers) + len(circuits.ssm_layers)), 1040),
    )
    found = _flat(composed.recurrent, composed.heads)
    chance = _flat(composed.recurrent_expected, composed.heads_expected)
    rows: list[tuple[Entry, ...]] = []
    for edge in shown:
        values = float(found[edges[edge]]), float(chance[edges[edge]]), edge.excess
        rows.append((edge.writer, edge.reader, edge.kind.upper(), *map(number, values)))
    table = Table(
        ("writer", "reader", "kind", "score", "by chance", "beyond"), tuple(rows), f"These {len(rows)} as numbers"
    )
    maps = _maps(writers, readers, excess)
    side_by_side: tuple[Block, ...] = (ChartGrid(maps),) if len(readers) <= 16 else maps
    return Section("composition", "Composition", (Words(words), Words(drawn), graph, table, *side_by_side))


def _nodes(circuits: HeadCircuits) -> tuple[list[Node], list[Node]]:
    """All writers, recurrent layers first, and all readers."""
    lags = circuits.composition.recurrent.shape[-1]
    recurrent = [
        Node(f"L{layer} lag {n}", layer, f"lag {n}", True) for layer in circuits.ssm_layers for n in range(lags)
    ]
    heads = [Node(name_of(head), head[0], f"H{head[1]}", False) for head in circuits.heads]
    return recurrent + heads, heads


def _flat(recurrent: Tensor, heads: Tensor) -> Float[Tensor, "kind reader writer"]:
    """Both kinds of writers side by side, as `_nodes` has them."""
    return torch.cat([x.flatten(3).flatten(1, 2) for x in (recurrent, heads)], dim=-1)


def _maps(
    writers: Sequence[Node], readers: Sequence[Node], excess: Float[Tensor, "kind reader writer"]
) -> tuple[Chart, ...]:
    """A heatmap of each kind, writers by layer; those that no head reads are left out."""
    seen = [i for i in range(len(writers)) if bool(excess[:, :, i].isfinite().any())]
    seen.sort(key=lambda i: writers[i].layer)
    down, across = [writers[i].name for i in seen], [reader.name for reader in readers]
    height, width = heatmap_height(len(seen)), min(140 + 12 * len(readers), 1040) if len(readers) > 16 else None
    charts: list[Chart] = []
    for kind, values in zip(KINDS, excess, strict=True):
        title = f"{kind.upper()}-composition"
        rows, name = values[:, seen].T.tolist(), f"{title} beyond chance"
        figure = pair_heatmap(rows, down, across, ("writer", "reader"), name)
        words = f"{title} of every earlier writer with every head, less what chance gives"
        charts.append(Chart(figure, words, title, height, width))
    return tuple(charts)
