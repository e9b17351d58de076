"""Experiments on hybrid language models, built on `hybridlens`: each module returns typed results.

`hybridlens` never imports from here. `analyses.cli` is the `hybridlens` command; what takes long is an experiment
(`analyses.experiment`), declared on one mechanism. The modules about heads, and those about directions in activations,
can be imported from here too: ``from analyses import entropy, scores, sparsification, manipulation, steering, probe``.

Modules:
    experiment: the one way to run something long
    heads: attention heads: entropy, rankings, which are kept
    kv_cache: surgery on caches and states, and what it shows
    patching: one run's values put into another's
    stream: the residual stream's basics, at any hook point
    states: what recurrent states hold, of which tokens and for how long
    circuits: what each head does, from its weights alone
    study: the paper's experiments over one model
    commands: the subcommands
    cli: the `hybridlens` command
"""

from importlib import import_module
from typing import Any

from hybridlens.imports import asked

_HOMES = {
    **dict.fromkeys(
        ("entropy", "gathering", "manipulation", "ranking", "scores", "selection", "sparsification"), "heads"
    ),
    **dict.fromkeys(("steering", "probe"), "stream"),
}


def __getattr__(name: str) -> Any:
    """One of the modules named above, loaded when it is asked for."""
    if name in _HOMES:
        return import_module(f"analyses.{_HOMES[name]}.{name}")
    return asked(__name__, name)
