"""What the verdicts rest on: a study's cells and benchmark scores, as estimates, and the rule that judges them.

A claim becomes `Check`s: an estimate with its 95 % interval, moved so that the claim's threshold is 0, and the side
on which the claim puts it. `judge` holds a claim true when every interval lies on its side, false when one lies on
the other, and says why where neither is so.

How it fails: an interval is over prompts or documents of one model; several tests of one claim are each made at
95 %, with no correction. What was not run is None and never decides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

from analyses.study.benchmarks.results import NORMAL, BenchmarkRow
from analyses.study.groups import Base, Estimate, Group, Groups, Place, accuracy, chance, grouped, selected
from analyses.study.views import curves, modes
from hybridlens.display import Displayed
from hybridlens.display.markup import cut
from hybridlens.results import Cell, paired_difference
from hybridlens.viz.entries import signed

Outcome: TypeAlias = Literal["holds", "fails", "not tested here"]

GLUE_TASKS = ("cola", "mnli", "mnli_mismatch", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli")

PAPER_MODELS = {
    "RG-2B": (re.compile(r"recurrentgemma-2b(-it)?$"), 10),
    "RG-9B": (re.compile(r"recurrentgemma-9b(-it)?$"), 16),
    "Jamba": (re.compile(r"jamba-mini-1\.6$"), 32),
}
"""The paper's names of its models -> how the name of a checkpoint ends, and its heads in a layer."""


class ModelFacts(NamedTuple):
    """What verdicts have to know of a model.

    Attributes:
        name: what `--model` was given.
        family: as in its `LensConfig`.
        window: keys that attention sees; None: all.
        base: what the study holds fixed.
        beside: whether there are states beside attention, which could hold a needle.
    """

    name: str
    family: str
    window: int | None
    base: Base
    beside: bool = True

    @property
    def paper_name(self) -> str | None:
        """What the paper calls this model; None where it is none of its three.

        The paper does not say which of RecurrentGemma's checkpoints it took, plain or instruction-tuned.
        """
        mine, n_heads = self.name.lower().rstrip("/"), self.base.n_heads
        return next((name for name, (end, n) in PAPER_MODELS.items() if end.search(mine) and n == n_heads), None)


class Check(NamedTuple):
    """One measured quantity and where a claim puts it.

    Attributes:
        words: what was measured, with its value and interval.
        estimate: it, less the threshold; None where it was not run.
        above: whether the claim puts it above 0, or below.
    """

    words: str
    estimate: Estimate | None
    above: bool

    @property
    def holds(self) -> bool | None:
        """Whether the interval lies on the claim's side; None where it does not lie on one."""
        if self.estimate is None or math.isnan(self.estimate.low):
            return None
        low, high = self.estimate.low > 0, self.estimate.high < 0
        return self.above if low else not self.above if high else None


class _Finding(NamedTuple):
    """Fields of `Finding`."""

    measured: str
    outcome: Outcome
    reason: str


class Finding(Displayed, _Finding):
    """What came of a claim: what was measured in words, the outcome, and what speaks against it or leaves it open."""

    __slots__ = ()

    def summary(self) -> str:
        """The outcome, and what was measured."""
        return f"{self.outcome}: {cut(self.measured, 120)}"


def judge(tests: Sequence[Check]) -> Finding:
    """The outcome of a claim that needs all of the tests."""
    words = "; ".join(test.words for test in tests if test.estimate is not None) or "–"
    missing = "; ".join(test.words for test in tests if test.estimate is None)
    against, straddling = (
        ", ".join(dict.fromkeys(test.words.split(":")[0] for test in tests if test.holds is side))
        for side in (False, None)
    )
    if against:
        return Finding(words, "fails", f"against it: {against}")
    if missing or not tests:
        return untested(f"not run: {missing or 'any cell of it'}", words)
    if straddling:
        return untested(f"undecided: the interval holds the threshold in {straddling}", words)
    return Finding(words, "holds", "")


def untested(reason: str, measured: str = "–") -> Finding:
    """A claim that the evidence cannot decide."""
    return Finding(measured, "not tested here", reason)


def less(estimate: Estimate | None, threshold: float) -> Estimate | None:
    """An estimate with its threshold moved to 0."""
    if estimate is None:
        return None
    mean, low, high, n = estimate
    return Estimate(mean - threshold, low - threshold, high - threshold, n)


def percent(name: str, group: Group) -> str:
    """An accuracy in words: "k = 0: 1.5 % (0.0 to 4.2), n = 100, chance 0.0 %"; its name alone where it was not run."""
    found, floor = accuracy(group), chance(group)
    if found is None:
        return name
    chance_level = "" if floor is None else f", chance {100 * floor:.1f} %"
    interval = f"{100 * found.low:.1f} to {100 * found.high:.1f}"
    return f"{name}: {100 * found.mean:.1f} % ({interval}), n = {found.n}{chance_level}"


def points(name: str, found: Estimate | None) -> str:
    """A difference in words: "mmlu: −6.0 points (−8.1 to −3.9)"; its name alone where it was not run."""
    if found is None:
        return name
    if math.isnan(found.low):
        return f"{name}: {signed(100 * found.mean)} points, no interval"
    return f"{name}: {signed(100 * found.mean)} points ({signed(100 * found.low, 100 * found.high)})"


class Evidence:
    """Everything measured of a model, put together as the claims ask for it.

    Args:
        cells: a study's, of any experiments.
        rows: benchmark scores, the main metric of each task first.
        facts: of the model.
    """

    def __init__(self, cells: Sequence[Cell], rows: Sequence[BenchmarkRow], facts: ModelFacts) -> None:
        self.cells = cells
        self.facts = facts
        self.base = facts.base
        self.n_heads = facts.base.n_heads
        self._rows: dict[tuple[str, int], BenchmarkRow] = {}
        for row in rows:
            self._rows.setdefault((row.task, row.k), row)

    @cached_property
    def curves(self) -> dict[str, Groups[int]]:
        """Version -> k -> scores, of figure 2."""
        return curves(self.cells, self.base)

    def full(self, phase: str = "generation") -> Group:
        """Scores of the untouched model, which are the same in either version."""
        both = (self.curves[phase], *self.curves.values())
        return next((curve[self.n_heads] for curve in both if self.n_heads in curve), Group())

    @cached_property
    def modes(self) -> Groups[tuple[str, str]]:
        """(reading, answering) -> scores, of table 1."""
        return modes(self.cells, self.base)

    @cached_property
    def twice(self) -> Groups[int]:
        """k -> scores, read twice, generation version."""
        return grouped(self.cells, self.base, lambda cell: cell.k, phase="generation", jrt=True)

    def beyond_window(self, window: int) -> tuple[set[Place], set[Place]]:
        """Places of needles that have left attention's window when answering begins, and of those still in it.

        A needle that is partly in it is in neither. Clean prompts have exactly as many tokens as their length.
        """
        mine = selected(self.cells, self.base, "reading", "answering", "scope", "boundary", semantics="clean")
        spans = {
            (cell.length, float(cell.depth)): (cell.needle_start, cell.needle_end)
            for cell in mine
            if cell.depth is not None and cell.needle_start is not None and cell.needle_end is not None
        }
        gone = {place for place, (_, end) in spans.items() if end <= place[0] - window}
        held = {place for place, (start, _) in spans.items() if start >= place[0] - window}
        return gone, held

    def sparse_k(self, tasks: Sequence[str]) -> int | None:
        """Of the k that some task was run at between none and all heads, that nearest to 15 %."""
        ks = {k for task, k in self._rows if task in tasks and 0 < k < self.n_heads}
        return min(sorted(ks), key=lambda k: abs(k - 0.15 * self.n_heads), default=None)

    def present(self, tasks: Sequence[str]) -> list[str]:
        """Those of the tasks that were run with all heads."""
        return [task for task in tasks if (task, self.n_heads) in self._rows]

    def change(self, task: str, k: int, reference: int | None = None) -> Estimate | None:
        """A task's score at k less that at `reference`, all heads unless given; None where one was not run.

        Document by document where the rows hold `scores`; else from the standard errors, as of independent samples,
        which makes the interval too wide. Where neither is known its ends are NaN.
        """
        here = self._rows.get((task, k))
        there = self._rows.get((task, self.n_heads if reference is None else reference))
        if here is None or there is None:
            return None
        mean = here.value - there.value
        if here.scores is not None and there.scores is not None and len(here.scores) == len(there.scores):
            return Estimate(mean, *paired_difference(here.scores, there.scores), len(here.scores))
        errors = [self._stderr(row) for row in (here, there)]
        wide = math.nan if None in errors else NORMAL * math.hypot(*(e for e in errors if e is not None))
        return Estimate(mean, mean - wide, mean + wide, here.n)

    def _stderr(self, row: BenchmarkRow) -> float | None:
        """A row's standard error; of a group without one, that of the mean over its tasks' main metrics."""
        if row.stderr is not None or row.task != "glue":
            return row.stderr
        parts = [part for task in GLUE_TASKS if (part := self._rows.get((task, row.k))) is not None]
        errors = [part.stderr for part in parts if part.stderr is not None]
        return math.hypot(*errors) / len(errors) if errors and len(errors) == len(parts) else None


Rule: TypeAlias = Callable[[Evidence], Finding]
