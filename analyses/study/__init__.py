"""Studies: the paper's experiments over one model, as cells, typed results, verdicts and a report.

Modules:
    groups: cells picked by their keys and put together by condition
    measured: conditions, and accuracies and differences under them
    view_types: the paper's figures as types
    views: the paper's figures, from cells
    prompts: the prompts of an experiment, from its options
    grids: the main grid, and coarser or other ones that share with it
    experiments: which cells each experiment needs
    benchmarks: GLUE, MMLU and local tasks against heads kept
    evidence: cells and scores as estimates
    claim_rules: the paper's claims as rules
    verdict: which claims hold
    explorer: every answer, to look through
    under_both: the same claims under both semantics, those that differ first
    finding: what a study found, in sentences
    sections: the report's sections
    benchmark_section: the report's section on benchmarks
    verdict_section: the report's section on verdicts
    report: the report, section by section
    niah: figure 2 with one needle
    running: all of it in a folder, or an experiment as a function
    comparing: several studies side by side, from what they stored
    plan_types: what a study would take, as types
    planning: what a study would take on a machine, before any weight is there
    paper_models: configurations of the paper's models
    rankings: which ranking of heads keeps retrieval
    capacity: recall as the number of facts grows
    points: a number that was measured of a model, or why there is none
    training_curves: checkpoints of training, measured one after the other
    reduced: attention replaced by less: the smallest module that retrieves
    zoo: many models, the same questions of each
    overview: a folder of results as a whole: one page that leads to every report
"""

from analyses.experiment.options.study import StudyConfig
from analyses.study.comparing import compare_studies
from analyses.study.running import StudyRun, answers, boundaries, fig2, jrt, maps, needles, scopes, semantics, table1

__all__ = [
    "StudyConfig",
    "StudyRun",
    "answers",
    "boundaries",
    "compare_studies",
    "fig2",
    "jrt",
    "maps",
    "needles",
    "scopes",
    "semantics",
    "table1",
]
