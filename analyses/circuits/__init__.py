"""Head circuits from weights: what every attention head copies, matches and composes with, before any run.

`circuits` gives a `HeadCircuits`, whose metrics rank heads.

Modules:
    vocabulary: sums over the vocabulary that all heads share
    eigen: copying and matching
    positions: what a head prefers by distance
    sums: sums over the real tokens of a text, layer by layer
    paths: recurrent layers as linear paths, lag by lag, and how far off that is
    grams: writers and readers of the stream as Gram matrices
    chance: composition that chance alone would give
    composition: which writer composes with which head, beyond chance
    strength: induction and retrieval strength
    gates: how far an output gate at rest is off
    results: HeadCircuits, and the rankings that follow
    labels: what metrics and scores mean, and what is to be known of a model's
    running: all of it, stage by stage
    sections: the report's sections
    composition_section: the report's section on composition
    report: the report, section by section
    experiment: the same, kept in a folder
"""

from analyses.circuits.results import METRICS, HeadCircuits
from analyses.circuits.running import circuits

__all__ = ["METRICS", "HeadCircuits", "circuits"]
