"""Curves of training that are written down, not measured: what rules and pages are tried on."""

from collections.abc import Mapping, Sequence

from analyses.study.points import Point
from analyses.study.training_curves.results import (
    CONTROLS,
    INTACT,
    QUANTITIES,
    SILENT,
    Measured,
    RunCurves,
)

REACH = 0.1
"""Of the intervals of shares, on either side."""


def a_run(
    curves: Mapping[str, Sequence[float]],
    name: str = "a-run",
    attention: bool = True,
    steps: int = 1000,
    every: int = 100,
) -> RunCurves:
    """A run whose quantities have these values at its kept steps; controls are 0, the rest was not measured.

    Args:
        curves: quantity -> a value for each kept step, all equally many.
        name: of the run.
        attention: whether the model has any.
        steps: that the run was to go.
        every: steps between those kept.
    """
    count = len(next(iter(curves.values())))
    held = {**{CONTROLS[q]: [0.0] * count for q in (INTACT, SILENT) if q in curves}, **curves}

    def point(quantity: str, at: int) -> Point:
        if quantity not in held:
            return Point(quantity, None, absent="it was not planted")
        value = held[quantity][at]
        if not QUANTITIES[quantity].share:
            return Point(quantity, value)
        reach = 0.05 if quantity in CONTROLS.values() else REACH
        return Point(quantity, value, max(0.0, value - reach), min(1.0, value + reach), 48)

    checkpoints = tuple(
        Measured((at + 1) * every, 0, tuple(point(quantity, at) for quantity in QUANTITIES)) for at in range(count)
    )
    return RunCurves(name, "tiny-granite", 0, steps, attention, (160, 256), checkpoints)
