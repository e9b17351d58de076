"""Experiments on hybrid language models, built on `hybridlens`: each module returns typed results.

`hybridlens` never imports from here. `analyses.cli` is the `hybridlens` command; what takes long is an experiment
(`analyses.experiment`), declared on one mechanism. The modules about heads can be imported from here too:
``from analyses import entropy, scores, sparsification, manipulation``.
"""

from importlib import import_module
from typing import Any

_HEADS = ("entropy", "gathering", "manipulation", "ranking", "scores", "selection", "sparsification")


def __getattr__(name: str) -> Any:
    """One of the modules about heads, loaded when it is asked for."""
    if name in _HEADS:
        return import_module(f"analyses.heads.{name}")
    raise AttributeError(f"module 'analyses' has no attribute {name!r}")
