"""Typed results on disk: cells, their provenance, and runs that go on where they stopped.

`cells` holds the value types and their checks, `provenance` what a run needs to be run again, `statistics`
how sure a mean is, `summary` the numbers that a report states, `record` what makes two runs the same, `folder` the
locked folder with its signed artefacts, `files` and `store` the cells in it. How it fails:
`hybridlens.errors.ResultsError`.
"""

from hybridlens.results.cells import Cell, CellKey, cell_problem
from hybridlens.results.folder import Folder
from hybridlens.results.provenance import environment, hash_json, hash_weights, write_atomic, write_json
from hybridlens.results.record import Manifest
from hybridlens.results.statistics import Interval, bootstrap_interval, paired_difference
from hybridlens.results.store import Run, StoredRun, read_cells, read_run
from hybridlens.results.summary import (
    AccuracyPoint,
    Finding,
    TippingInterval,
    accuracy_points,
    finding,
    ks_of,
    phases_of,
    tipping_interval,
    tipping_point,
)

__all__ = [
    "Cell",
    "CellKey",
    "cell_problem",
    "environment",
    "hash_json",
    "hash_weights",
    "write_atomic",
    "write_json",
    "Folder",
    "Manifest",
    "Run",
    "StoredRun",
    "read_cells",
    "read_run",
    "Interval",
    "bootstrap_interval",
    "paired_difference",
    "AccuracyPoint",
    "Finding",
    "TippingInterval",
    "accuracy_points",
    "finding",
    "phases_of",
    "ks_of",
    "tipping_interval",
    "tipping_point",
]
