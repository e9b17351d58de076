"""The experiments that are commands."""

from __future__ import annotations

from analyses.commands.declared import Declared
from analyses.experiment.options.circuits import CircuitsConfig
from analyses.experiment.options.crossover import CrossoverConfig
from analyses.experiment.options.patch import PatchConfig

CROSSOVER = Declared(
    "crossover",
    CrossoverConfig,
    "analyses.kv_cache.experiment:CrossoverRun",
    """Which memory holds the needle: keys and values of one prompt, recurrent states of another, and which is told.

    The same command goes on where a run was stopped.
    """,
    "crossover",
)

CIRCUITS = Declared(
    "circuits",
    CircuitsConfig,
    "analyses.circuits.experiment:CircuitsRun",
    "What each attention head does, from its weights: copying, matching, previous token, composition, induction.",
    "circuits",
)

PATCH = Declared(
    "patch",
    PatchConfig,
    "analyses.patching.experiment:PatchRun",
    """Which component carries the needle: activations of one prompt put into another, place by place.

    The same command goes on where a run was stopped, and other sweeps may be added to its folder.
    """,
    "patch",
)

EXPERIMENTS: tuple[Declared, ...] = (CIRCUITS, PATCH, CROSSOVER)
