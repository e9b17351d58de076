"""The engine: many prompts under many treatments, with nothing computed twice.

`Sweep.run` takes `Job`s and gives `Answer`s. Prompts are read along prefix trees, conditions that differ only
in answering share one reading, and rows under different treatments decode in one batch, within a budget of
memory. What a treatment does is said by a `Treating`; nothing here knows any experiment.

Modules:
    tree: prefix trees of token sequences
    budget: a number of bytes as sizes of batches, blocks and snapshots
    work: jobs and answers, and how a treatment becomes edits
    reading: prompts read along their prefix trees, with snapshots of the state
    answering: many rows decode at once; rows that have ended make room
    sweep: all of it together
    rehearsal: a sweep without its model: what it would read and write
"""

from hybridlens.engine.budget import Budget, Costs, costs_of, in_words, parse_memory
from hybridlens.engine.reading import Tally
from hybridlens.engine.rehearsal import Rehearsal
from hybridlens.engine.sweep import Answered, Sweep
from hybridlens.engine.tree import distinct_prefixes
from hybridlens.engine.work import Answer, Job, Spans, Treating

__all__ = [
    "Answer",
    "Answered",
    "Budget",
    "Costs",
    "Job",
    "Rehearsal",
    "Spans",
    "Sweep",
    "Tally",
    "Treating",
    "costs_of",
    "distinct_prefixes",
    "in_words",
    "parse_memory",
]
