"""Studies: the paper's experiments over one model, as cells, typed results, verdicts and a report.

`prompts`, `grids` and `experiments` say which cells each experiment needs, `running` and `niah` have them answered;
`groups`, `view_types` and `views` make figures of cells, `evidence`, `claim_rules` and `verdict` judge the paper's
claims, `under_both` sets both semantics side by side, and `explorer`, `sections`, `benchmark_section`,
`verdict_section` and `report` say what the page holds. `comparing` sets several studies side by side.
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
