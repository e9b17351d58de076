"""The section of the circuits' report on who composes with whom: maps of every pair, a graph of the strongest.

How it fails: pure; a pair whose writer is not earlier is an empty square.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.composition import KINDS
from analyses.circuits.labels import name_of, number
from analyses.circuits.results import HeadCircuits
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
    maps = _maps(circuits, excess)
    edges = _edges(circuits, excess)
    shown = [edge for kind in KINDS for edge in strongest([e for e in edges if e.kind == kind], LINES)]
    words = (
        "‖W_writer W_reader‖ ÷ (‖W_writer‖ ‖W_reader‖), less what random matrices of the same shapes and spectra would "
        "have: how much of what a writer puts into the residual stream a later head's queries (Q), keys (K) or values "
        "(V) read. A writer is a head's OV circuit, or a recurrent layer's linear path at one lag of its convolution, "
        f"taken {circuits.linearised}. Rotary embedding is left out of Q and K. A high value says that the reader "
        "could see the writer's output, not that it uses it."
    )
    above, pairs = sum(edge.excess > 0 for edge in edges), int(excess.isfinite().sum())
    drawn = (
        f"Drawn are the strongest {len(shown)}, at most {LINES} of a kind, of the {above:,} that lie above chance; in "
        f"all there are {pairs:,}. Layers stand in the order of the model; the thicker a line, the higher above chance."
    )
    graph = Chart(
        composition_graph(_nodes(circuits), shown, len(shown)),
        "a graph of the strongest compositions from writers to later heads; numbers in the table below",
        height=560,
        least_width=min(60 * (len(circuits.layers) + len(circuits.ssm_layers)), 1040),
    )
    side_by_side: tuple[Block, ...] = (ChartGrid(maps),) if circuits.copying.numel() <= 16 else maps
    blocks = (Words(words), Words(drawn), graph, _edge_table(circuits, shown), *side_by_side)
    return Section("composition", "Composition", blocks)


def _maps(circuits: HeadCircuits, excess: Float[Tensor, "kind reader writer"]) -> tuple[Chart, ...]:
    """A heatmap of each kind, writers by layer; those that no head reads are left out."""
    writers, readers = _writers(circuits), _readers(circuits)
    seen = [i for i in range(len(writers)) if bool(excess[:, :, i].isfinite().any())]
    seen.sort(key=lambda i: _layer(writers[i]))
    charts: list[Chart] = []
    for k, kind in enumerate(KINDS):
        title = f"{kind.upper()}-composition"
        values = excess[k][:, seen].T.tolist()
        names = ("writer", "reader")
        figure = pair_heatmap(values, [writers[i] for i in seen], readers, names, f"{title} beyond chance")
        words = f"{title} of every earlier writer with every head, less what chance gives"
        width = min(140 + 12 * len(readers), 1040) if len(readers) > 16 else None
        charts.append(Chart(figure, words, title, heatmap_height(len(seen)), width))
    return tuple(charts)


def _layer(name: str) -> int:
    """The layer of a writer or reader, from its name."""
    return int(name.split()[0][1:])


def _flat(recurrent: Tensor, heads: Tensor) -> Float[Tensor, "kind reader writer"]:
    """Both kinds of writers side by side, as `_writers` names them."""
    kinds = recurrent.shape[0]
    both = [x.reshape(kinds, x.shape[1] * x.shape[2], -1) for x in (recurrent, heads)]
    return torch.cat(both, dim=-1)


def _writers(circuits: HeadCircuits) -> list[str]:
    lags = circuits.composition.recurrent.shape[-1]
    recurrent = [f"L{layer} lag {lag}" for layer in circuits.ssm_layers for lag in range(lags)]
    return [*recurrent, *_readers(circuits)]


def _readers(circuits: HeadCircuits) -> list[str]:
    return [name_of((layer, head)) for layer in circuits.layers for head in range(circuits.n_heads)]


def _nodes(circuits: HeadCircuits) -> list[Node]:
    lags = circuits.composition.recurrent.shape[-1]
    recurrent = [
        Node(f"L{layer} lag {lag}", layer, f"lag {lag}", True) for layer in circuits.ssm_layers for lag in range(lags)
    ]
    heads = [
        Node(name_of((layer, head)), layer, f"H{head}", False)
        for layer in circuits.layers
        for head in range(circuits.n_heads)
    ]
    return recurrent + heads


def _edges(circuits: HeadCircuits, excess: Float[Tensor, "kind reader writer"]) -> list[Edge]:
    """Every pair above chance."""
    writers, readers = _writers(circuits), _readers(circuits)
    return [
        Edge(writers[w], readers[r], kind, float(excess[k, r, w]))
        for k, kind in enumerate(KINDS)
        for r, w in (excess[k] > 0).nonzero().tolist()
    ]


def _edge_table(circuits: HeadCircuits, edges: Sequence[Edge]) -> Table:
    composed = circuits.composition
    found = _flat(composed.recurrent, composed.heads)
    chance = _flat(composed.recurrent_expected, composed.heads_expected)
    writers, readers = ({name: i for i, name in enumerate(names)} for names in (_writers(circuits), _readers(circuits)))
    rows: list[tuple[Entry, ...]] = []
    for edge in edges:
        place = KINDS.index(edge.kind), readers[edge.reader], writers[edge.writer]
        values = [number(v) for v in (float(found[place]), float(chance[place]), edge.excess)]
        rows.append((edge.writer, edge.reader, edge.kind.upper(), *values))
    header = ("writer", "reader", "kind", "score", "by chance", "beyond")
    return Table(header, tuple(rows), f"These {len(rows)} as numbers")
