"""Counting before running: operations of a model from its sizes, and what a rehearsed sweep comes to on a machine.

`work_of` counts a model, which needs no memory for its weights; `Prices` puts a price on the passes and batches of an
`engine.Rehearsal`, with the peaks and measured shares of `machines`.

Modules:
    work: floating-point operations from a model's sizes
    machines: what machines can do, and what share was reached
    rehearsed: tokens, operations, bytes and seconds of a rehearsed sweep
"""

from hybridlens.counting.machines import MACHINES, SPARE, Machine, machine_of
from hybridlens.counting.rehearsed import Expense, Prices, Shape
from hybridlens.counting.work import LayerWork, ModelWork, pairs, work_of

__all__ = [
    "MACHINES",
    "SPARE",
    "Expense",
    "LayerWork",
    "Machine",
    "ModelWork",
    "Prices",
    "Shape",
    "machine_of",
    "pairs",
    "work_of",
]
