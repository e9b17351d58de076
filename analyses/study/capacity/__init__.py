"""Recall as the number of facts grows: what a state of fixed size can hold, beside keys and values that grow.

`forms` has the facts and tells which of them an answer gives, `prompts` puts 1, 2, … of them into prompts of one
length, `experiment` has these answered with attention and without, `results` has what was found as typed values with
their formula, and `sections` and `report` make the page.
"""

from analyses.experiment.options.capacity import CapacityConfig
from analyses.study.capacity.experiment import CapacityRun, capacity
from analyses.study.capacity.results import SILENT, UNTOUCHED, Capacity, FactAnswer, MemorySizes, Recall

__all__ = [
    "SILENT",
    "UNTOUCHED",
    "Capacity",
    "CapacityConfig",
    "CapacityRun",
    "FactAnswer",
    "MemorySizes",
    "Recall",
    "capacity",
]
