"""Activation patching: which component carries a behaviour, by putting one run's values into another.

Modules:
    targets: what a patch replaces: hook points and indices, checked
    metrics: what is measured of a patched run
    writers: writers and readers: the two ends of a path through the residual stream
    results: PatchResult: values with named axes, normalised; EdgeResult: an estimate for every two ends
    over: from hook points and axes to targets
    alignment: two prompts side by side
    schedule: which patches go into which forward pass
    snapshot: the untouched run that patches start from
    running: activation_patch: many patches in one forward pass
    sweeps: the ready sweeps by name
    slopes: gradients of a metric by activations, in one run or between two
    gradients: attribution patching: every patch estimated from gradients
    ablation: zeros, means and other prompts' values put in
    pairs: prompt pairs from the needle benchmark
    path_inputs: what a reader reads when single writers' outputs are another run's
    paths: path_patch: what one part tells another, directly
    edges: edge attribution: every path estimated from gradients
    circuit: some of the edges, as a value
    circuit_choice: edges chosen by score or at random
    circuit_runs: circuits run, all other edges corrupt
    circuit_curves: faithfulness and completeness by size
    agreement: how well estimates agree with measured values
    direct: direct logit attribution: what each part adds to a logit
    choosing: pairs and metrics by name
    effects: everything that patching one pair gives, and the share of the difference that a patch moves
    maps: heatmaps of the report
    sections: the report's sections
    report: the report, section by section
    experiment: all of it, sweep by sweep
"""

from functools import partial
from typing import TYPE_CHECKING

from hybridlens.imports import asked

if not TYPE_CHECKING:  # which goes by the names that there are
    __getattr__ = partial(asked, __name__)
