"""The tables of docs/recipes.md, by `hybridlens plan`'s own code; ``python -m tests.benchmarks.recipes`` rewrites them.

Plans of the whole grids take about half a minute of processor time a model. The tests compare the two other tables with
what the code says.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from analyses.experiment.checkpoints import meta_lens
from analyses.experiment.options.planning import PlanConfig
from analyses.study.plan_types import StudyPlan
from analyses.study.planning import PACKAGED, study_plan
from hybridlens.counting import MACHINES, Prices, work_of
from hybridlens.display import size
from hybridlens.engine import Budget, costs_of
from hybridlens.engine.rehearsal import Batch, Pass
from hybridlens.loading import resolve_dtype

PAGE = Path(__file__).parent.parent.parent / "docs" / "recipes.md"
MODELS = ("google/recurrentgemma-2b", "google/recurrentgemma-9b", "ai21labs/AI21-Jamba-Mini-1.6")
MEMORY = {MODELS[0]: "40GB", MODELS[1]: "40GB", MODELS[2]: "30GB"}
GPU, DTYPE, LENGTH, STEPS = "h100", "bfloat16", 4096, 40
TRIAL = {"lengths": (1000, 4000), "depths": (0, 50, 100), "heads": (0, 5)}


def planned(model: str, experiments: tuple[str, ...], **grid: object) -> StudyPlan:
    """One plan on the recipes' machine."""
    given = {"model": model, "experiment": experiments, "gpu": GPU, "memory": MEMORY[model], **grid}
    return study_plan(PlanConfig(**given), DTYPE)


def sizes() -> list[list[str]]:
    """What each model is and does, from its configuration."""
    head = ["", "weights", "a row at 4,096 tokens", "answers a batch", "reading 4,096 tokens"]
    rows = [[*head, f"a decode step of {STEPS}, one row"]]
    for model in MODELS:
        lens = meta_lens(str(PACKAGED / model))
        lens.hf_model.to(resolve_dtype(DTYPE))
        work, costs = work_of(lens.network), costs_of(lens.cfg, lens.dtype)
        prices = Prices(work, costs, lens.dtype, MACHINES[GPU])
        read = prices.reading(Pass((0,), (LENGTH,), LENGTH, False))
        said = prices.answering(Batch((LENGTH,), STEPS, STEPS, False))
        budget = Budget(costs, PlanConfig(model=model, memory=MEMORY[model]).memory)
        rows.append([
            model, size(work.parameters * lens.dtype.itemsize), size(costs.state(LENGTH)),
            str(budget.answering_rows(LENGTH + 40)), f"{read.operations / 1e12:.1f} Tflop, {read.seconds:.2f} s",
            f"{said.operations / STEPS / 1e9:.1f} Gflop, {said.moved / STEPS / 1e9:.1f} GB, "
            f"{said.seconds / STEPS:.3f} s",
        ])  # fmt: skip
    return rows


def trials() -> list[list[str]]:
    """A few cells of figure 2."""
    return _plans({model: planned(model, ("fig2",), **TRIAL) for model in MODELS})


def studies() -> list[list[str]]:
    """The paper's experiments on their whole grids."""
    names = ("fig2", "fig3-jrt", "table1")
    own = {model: names if "recurrentgemma" in model else names[:2] for model in MODELS}
    return _plans({model: planned(model, own[model]) for model in MODELS})


def _plans(plans: dict[str, StudyPlan]) -> list[list[str]]:
    rows = [["", "H100s", "", "cells", "tokens read", "tokens written", "Tflop", "time"]]
    for model, plan in plans.items():
        for part in plan.parts:
            spent = part.expense
            numbers = (part.cells, spent.read, spent.written, round(spent.operations / 1e12))
            rows.append([model, str(plan.gpus), part.experiment, *(f"{n:,}" for n in numbers), in_time(spent.seconds)])
    return rows


def in_time(seconds: float) -> str:
    """A time in two digits."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} seconds"


TABLES: dict[str, Callable[[], list[list[str]]]] = {"sizes": sizes, "trials": trials, "studies": studies}
"""By the name that stands in the page around each."""


def markdown(rows: list[list[str]]) -> str:
    """Rows as a table."""
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]
    return "\n".join(lines)


def held(name: str, page: str) -> str:
    """One of the page's tables."""
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", page, flags=re.DOTALL)
    assert found is not None, f"the page has no table {name}"
    return found[1]


def main() -> None:
    """Rewrite the tables that are named, or all."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(TABLES))
    for name in parser.parse_args().names or TABLES:
        table = markdown(TABLES[name]())
        page, between = PAGE.read_text(encoding="utf-8"), f"<!-- {name} -->\n{{}}\n<!-- end -->"
        PAGE.write_text(page.replace(between.format(held(name, page)), between.format(table)), encoding="utf-8")


if __name__ == "__main__":
    main()
