"""The prefix tree of many sequences: every stretch of tokens that some of them share, once.

`grow` makes a compressed tree: a `Segment` is a stretch at whose end the sequences part, or one of them ends. It
is built from the sequences in sorted order, where each shares with its neighbour the longest beginning that it
shares with any. Nothing here knows what the symbols mean; `reading` runs a model along the tree.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass
class Segment:
    """A stretch of positions [start, stop) that some sequences share."""

    start: int
    stop: int
    parent: int | None
    """Index of the segment before it; None for the root, which is empty."""
    source: int
    """A sequence that holds these symbols."""
    ends: list[int] = field(default_factory=list[int])
    """The sequences that end with it."""

    @property
    def size(self) -> int:
        """How many positions it has."""
        return self.stop - self.start


def grow(sequences: Sequence[Sequence[Hashable]]) -> list[Segment]:
    """The prefix tree of `sequences`, the empty root first and every segment after its parent.

    Args:
        sequences: of symbols that can be compared with one another; equal ones end in the same segment.
    """
    nodes = [Segment(0, 0, None, 0)]
    path = [0]
    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))  # pyright: ignore[reportArgumentType]
    previous: Sequence[Hashable] = ()
    for i in order:
        sequence = sequences[i]
        shared = common(previous, sequence)
        passed: int | None = None
        while nodes[path[-1]].stop > shared:
            passed = path.pop()
        if passed is not None and nodes[path[-1]].stop < shared:
            nodes.append(Segment(nodes[passed].start, shared, path[-1], nodes[passed].source))
            nodes[passed].start, nodes[passed].parent = shared, len(nodes) - 1
            path.append(len(nodes) - 1)
        if len(sequence) > shared:
            nodes.append(Segment(shared, len(sequence), path[-1], i))
            path.append(len(nodes) - 1)
        nodes[path[-1]].ends.append(i)
        previous = sequence
    return _in_order(nodes)


def common(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """How many symbols two sequences share from their beginning."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))


def distinct_prefixes(sequences: Sequence[Sequence[Hashable]]) -> int:
    """How many different non-empty beginnings `sequences` have: the tokens that a perfect sharing reads."""
    ordered = sorted(tuple(sequence) for sequence in sequences)  # pyright: ignore[reportArgumentType]
    if not ordered:
        return 0
    return len(ordered[0]) + sum(len(after) - common(before, after) for before, after in pairwise(ordered))


def _in_order(nodes: list[Segment]) -> list[Segment]:
    """The segments depth first, so that each comes after its parent."""
    below: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        if node.parent is not None:
            below.setdefault(node.parent, []).append(index)
    ordered: list[Segment] = []
    place: dict[int, int] = {}
    stack = [0]
    while stack:
        index = stack.pop()
        node = nodes[index]
        place[index] = len(ordered)
        ordered.append(node)
        node.parent = None if node.parent is None else place[node.parent]
        stack += reversed(below.get(index, []))
    return ordered
