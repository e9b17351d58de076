"""Which lengths and depths a grid has.

The paper's ten lengths are round(linspace(250, 4096, 10)). `default_lengths` keeps that ratio of shortest
to longest for any context, but never goes below the shortest length at which the needle can stand at ten
distinct sentence boundaries: 4096 gives the paper's lengths, 256 and 512 start where ten places fit.

How it fails: a context barely longer than the shortest length gives ten lengths that hardly differ; one
shorter than that is refused.
"""

from collections.abc import Sequence

from hybridlens.boundary import Length, Natural, Positive, public
from hybridlens.errors import InputError

PAPER_MAX_LENGTH = 4096
PAPER_MIN_LENGTH = 250
DEFAULT_DEPTHS: tuple[int, ...] = (0, 11, 22, 33, 44, 56, 67, 78, 89, 100)
"""Depths in percent: 0 is the start of the context, 100 its end."""

SHORTEST = 150
"""Where grids start in a short context, in tokens, unless `shortest_length` has measured it.

About what a word-level tokenizer needs with the paper's needle and nine short sentences around it."""


@public
def default_lengths(
    max_length: Length = PAPER_MAX_LENGTH, shortest: Natural = SHORTEST, count: Positive = 10
) -> tuple[int, ...]:
    """The lengths of a grid: round(linspace(lowest, max_length, count)).

    The lowest is max_length · 250 / 4096, or `shortest` where that is more.

    Args:
        max_length: the longest prompt, in tokens.
        shortest: the shortest that may come out; `shortest_length` measures it for a tokenizer.
        count: how many lengths.

    Returns:
        `count` lengths in tokens, rising strictly.

    Raises:
        InputError: the lengths would not all differ.
    """
    if count == 1:
        return (max_length,)
    lowest = max(round(max_length * PAPER_MIN_LENGTH / PAPER_MAX_LENGTH), shortest)
    if max_length - lowest < count - 1:
        raise InputError(
            f"a longest prompt of {max_length} tokens leaves no room for {count} lengths from {lowest} "
            "tokens up; give a longer one or your own lengths"
        )
    step = (max_length - lowest) / (count - 1)
    return tuple(round(lowest + index * step) for index in range(count))


def check_axis(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """`values` as a tuple, refused when there are none, or one twice.

    Args:
        name: "lengths" or "depths", for the error.
        values: what the user asked for.

    Raises:
        InputError: one line with the value at fault.
    """
    if not values:
        raise InputError(f"no {name} were given; expected at least one")
    if len(set(values)) < len(values):
        twice = next(value for value in values if list(values).count(value) > 1)
        raise InputError(f"{name} holds {twice} more than once; give each value once")
    return tuple(values)


def places(costs: Sequence[int], depths: Sequence[int]) -> dict[int, int]:
    """The sentence boundary of every depth, all distinct.

    Boundary j stands before sentence j, boundary ``len(costs)`` after the last one. In order of depth,
    each takes the nearest boundary (in tokens) that lies after the one before it and leaves enough
    boundaries for those that follow; so depth 0 takes the first boundary and depth 100 the last.

    Args:
        costs: tokens of each sentence; at least ``len(depths) - 1`` sentences.
        depths: distinct depths in percent, any order.

    Returns:
        depth -> boundary.
    """
    at = [0]
    for cost in costs:
        at.append(at[-1] + cost)
    ordered, found, least = sorted(depths), dict[int, int](), 0
    for index, depth in enumerate(ordered):
        most = len(costs) - (len(ordered) - 1 - index)
        target = at[-1] * depth / 100
        found[depth] = min(range(least, most + 1), key=lambda boundary: abs(at[boundary] - target))
        least = found[depth] + 1
    return found
