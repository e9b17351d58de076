"""Recall as the number of facts grows: what a state of fixed size can hold, beside keys and values that grow.

Modules:
    forms: facts with a key and a value, and which of them an answer gives
    prompts: 1, 2, … facts in prompts of one length, and their controls
    results: recall, confusion and facts held, as a typed result
    sections: the report's sections
    report: the report, section by section
    experiment: all of it
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
