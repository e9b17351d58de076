"""The command that says what a study would take, before any weight is there.

How it fails: see `analyses.study.planning`, in one line.
"""

from __future__ import annotations

from typing import Any

import typer

from analyses.commands.declared import Declared, dtype_option, signed
from analyses.experiment.options.planning import PlanConfig

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
    from analyses.study.planning import study_plan, text_of
    from hybridlens.progress import shown

    dtype = given.pop("dtype")
    options = PlanConfig(**given)
    with shown():
        found = study_plan(options, dtype)
    typer.echo(text_of(found))


plan = signed(_plan, PLAN, [dtype_option()])
