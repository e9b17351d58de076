"""Synthetic cells for the tests of views and verdicts: any scores, under any keys, made by hand or drawn."""

from collections.abc import Callable, Iterable
from typing import Any

from hybridlens.results import Cell

LENGTHS, DEPTHS = (160, 180, 200, 220), (0, 25, 50, 75, 100)
N = 4
"""Heads of a layer of the model that the cells are of."""


def cell(length: int, depth: float | int | None, score: float | int, **fields: Any) -> Cell:
    """One valid cell, of a prompt of its place; a control where `depth` is None. The needle takes 20 tokens."""
    control = depth is None
    start = None if depth is None else round(depth / 100 * (length - 40))
    values: dict[str, Any] = {
        "model": "toy", "phase": "generation", "k": N, "text": f"said {score}", "seconds": 0.1,
        "prompt_hash": f"{length} {depth}",
        "needle_start": start, "needle_end": None if start is None else start + 20, "margin": 1.0, "tokens": 5,
    }  # fmt: skip
    return Cell(length=length, depth=depth, control=control, score=score, **{**values, **fields})


def grid(
    score: float | int | Callable[[int, int], float | int],
    lengths: Iterable[int] = LENGTHS,
    depths: Iterable[int] = DEPTHS,
    control: float | int | None = 0,
    **fields: Any,
) -> list[Cell]:
    """Cells at every length and depth, with a control for each length; equal scores, or those of (length, depth)."""
    found: list[Cell] = []
    for length in lengths:
        found += [cell(length, depth, score(length, depth) if callable(score) else score, **fields) for depth in depths]
        if control is not None:
            found.append(cell(length, None, control, **fields))
    return found


def sweep(scores: dict[int, Any], **fields: Any) -> list[Cell]:
    """`grid`s at several k."""
    return [one for k, score in scores.items() for one in grid(score, k=k, **fields)]
