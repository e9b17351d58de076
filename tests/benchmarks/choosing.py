"""Which combination of signals retrieval strength is: chosen on one model, tested on the other.

``python -m tests.benchmarks.choosing [--chosen-on tiny-jamba] [--tested-on tiny-recurrentgemma]`` ranks the heads of
either model by each of `COMBINATIONS`, keeps the best n of each, n from none to all, and prints the areas under the
curves of needle accuracy with their intervals. The choice is the largest area on the first model; what it is worth is
its place on the second, which had no say.

How it fails: areas whose intervals overlap are not told apart; of equal ones the first in the list is chosen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from analyses.circuits import HeadCircuits, circuits
from analyses.circuits.strength import RETRIEVAL
from analyses.experiment.checkpoints import open_model
from analyses.experiment.options.rankings import RankingsConfig
from analyses.experiment.text import columns
from analyses.heads.ranking import HeadRanking
from analyses.study.rankings.results import RankingComparison
from analyses.study.rankings.sweep import compare

Signals = Callable[[str], Tensor]

COMBINATIONS: Mapping[str, Callable[[Signals], Tensor]] = {
    "matching × copying": lambda of: of("matching") * of("copying"),
    "matching × copying share": lambda of: of("matching") * of("copying_share"),
    "induction matching × copying": lambda of: of("induction_match") * of("copying"),
    "induction matching × copying share": lambda of: of("induction_match") * of("copying_share"),
    "induction matching + copying": lambda of: of("induction_match") + of("copying"),
    "induction matching × induction": lambda of: of("induction_match") * of("induction"),
    "the better matching × copying": lambda of: torch.maximum(of("matching"), of("induction_match")) * of("copying"),
    "induction × copying share": lambda of: of("induction") * of("copying_share"),
}
"""What was tried for retrieval strength, of metrics that count where above 0."""


def combined(found: HeadCircuits, name: str) -> HeadRanking:
    """The heads by a combination."""
    scores = COMBINATIONS[name](lambda metric: found.score(metric).clamp(min=0))
    return HeadRanking(scores, found.layers, name, lower_is_better=False)


def areas(model: str, seed: int = 0) -> RankingComparison:
    """Every combination's curve on a model.

    Args:
        model: an embedded checkpoint, a folder, or a hub id.
        seed: of the prompts.
    """
    lens = open_model(model, "cpu", "float32")
    found = circuits(lens, model=model)
    rankings = {name: combined(found, name) for name in COMBINATIONS}
    config = RankingsConfig(model=model, run_time=False, draws=0, filler_rows=0, tasks=(), seed=seed, prompts=1)
    return compare(lens, rankings, config)


def best(found: RankingComparison) -> str:
    """The combination of the largest area; of equal ones, the first."""
    return max(found.names, key=lambda name: found.area[found.place(name)].value)


def main() -> None:
    """Make the choice and the test, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chosen-on", default="tiny-jamba")
    parser.add_argument("--tested-on", default="tiny-recurrentgemma")
    options = parser.parse_args()
    chosen: str | None = None
    for model in (options.chosen_on, options.tested_on):
        found = areas(model)
        chosen = best(found) if chosen is None else chosen
        rows = [["combination", "area", "95 %", ""]]
        for name in sorted(found.names, key=lambda name: -found.area[found.place(name)].value):
            value = found.area[found.place(name)]
            mark = "chosen" if name == chosen else ""
            rows.append([name, f"{value.value:.3f}", f"{value.low:.3f} to {value.high:.3f}", mark])
        print(f"{model}: area under accuracy against heads kept\n{columns(rows, left=1)}\n")
    if chosen != RETRIEVAL:
        print(f"{chosen} was chosen here; retrieval strength is {RETRIEVAL}")


if __name__ == "__main__":
    main()
