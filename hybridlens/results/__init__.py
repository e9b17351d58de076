"""Typed results on disk: cells, their provenance, and runs that go on where they stopped.

How it fails: `hybridlens.errors.ResultsError`.

Modules:
    statistics: bootstrap intervals over prompts
    cells: one cell, and what makes it valid
    summary: accuracy, chance level, tipping point, and how sure they are
    file_digests: SHA-256 of large files, kept while they stay what they are
    provenance: versions, hashes, files that are never half-written
    record: what a run is, and how two are told apart
    files: the journal and the table
    settled: what is asked of the machine once for a whole run
    locks: one process at a time writes a folder
    folder: a run's folder: locked, refused, its artefacts signed
    store: a run's cells: resume, damage, refusal
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
