"""Studies: the paper's experiments over one model, as cells, typed results, verdicts and a report.

`config` holds the options, `grids` and `experiments` say which cells each experiment needs, `running` has them
answered; `groups`, `view_types` and `views` make figures of cells, `evidence`, `claim_rules` and `verdict` judge the
paper's claims, and `explorer`, `sections`, `benchmark_section` and `report` write the page.
"""

from analyses.study.config import StudyConfig
from analyses.study.running import (
    StudyResult,
    answers,
    boundaries,
    fig2,
    jrt,
    maps,
    needles,
    run,
    scopes,
    semantics,
    table1,
)

__all__ = [
    "StudyConfig",
    "StudyResult",
    "answers",
    "boundaries",
    "fig2",
    "jrt",
    "maps",
    "needles",
    "run",
    "scopes",
    "semantics",
    "table1",
]
