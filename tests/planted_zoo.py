"""Zoos that are written down, not measured: what rules, tables and pages are tried on."""

from collections.abc import Mapping
from typing import Any

from analyses.study.points import Point
from analyses.study.zoo.results import Asked, Member, Zoo

Ends = tuple[float, float, float]
"""A value with the ends of its interval."""

HYBRID: dict[str, Any] = {"attention": (1,), "recurrent": (0,), "states": (0,), "n_heads": 4, "mixers": ("mamba2",)}
DELTA: dict[str, Any] = {**HYBRID, "mixers": ("gated_delta",)}
ALONE: dict[str, Any] = {"attention": (), "recurrent": (0, 1), "states": (0, 1), "n_heads": 0, "mixers": ("mamba2",)}
PURE: dict[str, Any] = {"attention": (0, 1), "recurrent": (), "states": (), "n_heads": 4, "mixers": ()}


def a_member(name: str, numbers: Mapping[str, Ends | float | None], part: str = "study", **sizes: Any) -> Member:
    """A model with these numbers in one experiment; None for one that was not measured."""
    points = [
        Point(quantity, None, absent="it was not planted") if ends is None
        else Point(quantity, *ends, n=20) if isinstance(ends, tuple) else Point(quantity, ends)
        for quantity, ends in numbers.items()
    ]  # fmt: skip
    values: dict[str, Any] = {"family": "jamba", "weights": name, "parameters": 1000, "window": None, **HYBRID, **sizes}
    return Member(name=name, asked=(Asked(part, tuple(points), (f"{name} was found.",)),), **values)


def a_zoo(*members: Member) -> Zoo:
    """These models."""
    return Zoo(members, tuple(dict.fromkeys(one.part for member in members for one in member.asked)))
