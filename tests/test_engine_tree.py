"""Prefix trees against a set of all beginnings, which is what they stand for."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlens.engine.tree import common, distinct_prefixes, grow

sequences = st.lists(st.lists(st.integers(0, 2), max_size=8).map(tuple), min_size=1, max_size=12)


def beginnings(given):
    return {tuple(sequence[:n]) for sequence in given for n in range(1, len(sequence) + 1)}


@settings(deadline=None, max_examples=300)
@given(sequences)
def test_every_beginning_stands_in_the_tree_once(given):
    """A stretch that two branches share, or that is missing, changes the number or the set of paths."""
    nodes = grow(given)
    assert sum(node.size for node in nodes) == len(beginnings(given)) == distinct_prefixes(given)
    paths = []
    for node in nodes:
        chain, at = [], node
        while at.parent is not None:
            chain.append(at)
            at = nodes[at.parent]
        path = tuple(s for part in reversed(chain) for s in given[part.source][part.start : part.stop])
        assert len(path) == node.stop
        paths.append(path)
        for index in node.ends:
            assert tuple(given[index]) == path
    assert sorted(index for node in nodes for index in node.ends) == list(range(len(given)))
    assert len(set(paths)) == len(paths)


@given(sequences)
def test_parents_come_first_and_every_segment_but_the_root_holds_something(given):
    """What the reader relies on: it walks the list once, and never reads an empty stretch."""
    nodes = grow(given)
    assert (nodes[0].parent, nodes[0].start, nodes[0].stop) == (None, 0, 0)
    for index, node in enumerate(nodes[1:], 1):
        assert node.parent is not None
        assert node.parent < index
        assert node.start == nodes[node.parent].stop < node.stop
        children = [child for child in nodes if child.parent == index]
        assert node.ends or len(children) != 1, "a segment where nothing parts or ends should have been joined"


def test_common_beginnings():
    """Equal, nested, different from the start."""
    assert common([1, 2, 3], [1, 2, 3]) == 3
    assert common([1, 2], [1, 2, 3]) == 2
    assert common([1, 2], [3]) == 0
    assert common([], [3]) == 0
