"""The command that says what a study would take, before any weight is there.

How it fails: see `analyses.study.planning`, in one line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from analyses.commands.declared import Declared, dtype_option, signed
from analyses.experiment.options.planning import PlanConfig

if TYPE_CHECKING:
    from analyses.study.plan_types import StudyPlan

PLAN = Declared(
    "plan",
    PlanConfig,
    "",
    """What the paper's experiments would take: tokens, operations, bytes, answers a batch, memory and hours.

    The options are those of reproduce, and what is planned is what it would run. Needs the configuration only, no
    weights; the paper's three models are known without a network. Hours are an estimate, with what it assumes.
    """,
)


def _plan(**given: Any) -> None:
    from analyses.study.planning import study_plan
    from hybridlens.progress import shown

    dtype = given.pop("dtype")
    options = PlanConfig(**given)
    with shown():
        found = study_plan(options, dtype)
    typer.echo(text_of(found))


plan = signed(_plan, PLAN, [dtype_option()])


def text_of(found: StudyPlan) -> str:
    """A plan as text for a terminal."""
    from analyses.experiment.text import columns

    table = found.table()
    rows = [list(table.columns), *[[_cell(value) for value in row] for row in table.rows]]
    return "\n".join([columns(rows), *found.lines()])


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if _large(value) else str(value)


def _large(value: object) -> bool:
    return isinstance(value, float) and value >= 100
