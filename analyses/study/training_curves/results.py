"""`TrainingCurves`: what was measured of every kept checkpoint of one or more runs of training.

A checkpoint is measured once and kept as numbers: a `Point` for each of `QUANTITIES`, with its 95 % interval over
prompts where it is a mean of such. What a model has not (attention to take away, a state, a convolution) has no number
but the reason why.

How it fails: points are of the prompts that were run, the same at every step, so neighbouring steps share their luck.
Strengths are those of the strongest head, with no interval; recurrent layers are linearised over the same filler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from analyses.circuits.strength import RETRIEVAL
from analyses.experiment.artefacts import Stored
from analyses.study.points import Point
from analyses.study.training_curves.runs import RECENT
from hybridlens.display import Displayed, Piece, Table, listed, many
from hybridlens.errors import ResultsError, UnknownNameError, closest
from hybridlens.viz.entries import Value
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

ANSWERS = "answers while training"
INTACT, SILENT = "retrieval", "retrieval without attention"
CONTROLS = {INTACT: "retrieval, needle left out", SILENT: "retrieval without attention, needle left out"}
"""Of each kind of retrieval, what the same scores where there is nothing to retrieve."""
EVERYTHING, KEYS, STATES, CONVOLUTIONS = (
    f"follows {what}" for what in ("everything", "keys and values", "recurrent states", "convolution inputs")
)
INDUCTION, STRENGTH, TAP = "induction strength", "retrieval strength", "tap"
COMPOSED = tuple(f"composition at lag {lag}" for lag in range(4))
"""Through each tap of a convolution; the longest of any family has four."""


class Quantity(NamedTuple):
    """What is measured."""

    words: str
    share: bool = True
    """Whether it goes from 0 to 1."""


QUANTITIES: Mapping[str, Quantity] = {
    ANSWERS: Quantity(f"answer tokens foretold in training documents, mean of the last {RECENT} steps of a level"),
    INTACT: Quantity("points of 5 for telling the needle, as a share"),
    CONTROLS[INTACT]: Quantity("the same where filler stands in the needle's place"),
    SILENT: Quantity("points as a share while no head speaks, in reading and in answering"),
    CONTROLS[SILENT]: Quantity("the same where filler stands in the needle's place"),
    EVERYTHING: Quantity("answers that tell the needle that was read, against a twin of it that was not"),
    KEYS: Quantity("answers that tell the needle that keys and values come from, against all other memories"),
    STATES: Quantity("answers that tell the needle that recurrent states come from, against all other memories"),
    CONVOLUTIONS: Quantity("answers that tell the needle that convolutions remember, against all other memories"),
    INDUCTION: Quantity("K-composition with a lag-1 writer × copying, of the strongest head", share=False),
    STRENGTH: Quantity(f"{RETRIEVAL}, of the strongest head", share=False),
    TAP: Quantity("lag of the convolution's tap through which some head's keys compose most", share=False),
    **dict.fromkeys(
        COMPOSED,
        Quantity("K-composition beyond chance × the lag's share of the layer's linear path, the largest", share=False),
    ),
}
"""Everything that is measured, by name."""


@dataclass(frozen=True)
class Measured(Displayed, Stored, text=True):
    """What was measured of one checkpoint.

    Attributes:
        step: of training.
        stage: level of the curriculum, from 0; None where the run has no log of this step.
        points: one for each of `QUANTITIES`, in their order.
    """

    step: int
    stage: int | None
    points: tuple[Point, ...]

    def summary(self) -> str:
        """The step, and its retrieval."""
        told = ", ".join(self.of(name).summary() for name in (INTACT, SILENT))
        return f"step {self.step}: {told}"

    def of(self, quantity: str) -> Point:
        """One of its points.

        Raises:
            UnknownNameError: there is no such quantity.
        """
        found = next((point for point in self.points if point.quantity == quantity), None)
        if found is None:
            known = ", ".join(point.quantity for point in self.points)
            raise UnknownNameError(f"quantity {quantity!r} does not exist{closest(quantity, QUANTITIES)}; {known}")
        return found


@dataclass(frozen=True)
class RunCurves(Displayed):
    """The curves of one run.

    Attributes:
        name: of the run.
        architecture: which tiny model was trained.
        seed: of the run.
        steps: that it was to go.
        attention: whether the model has any.
        lengths: tokens of the needle prompts.
        checkpoints: by step.
    """

    name: str
    architecture: str
    seed: int
    steps: int
    attention: bool
    lengths: tuple[int, ...]
    checkpoints: tuple[Measured, ...]

    def summary(self) -> str:
        """How far it was measured, and what it retrieves at the end."""
        last = self.checkpoints[-1]
        return f"{self.name}, {many(len(self.checkpoints), 'checkpoint')} up to {last.summary()}"

    def table(self) -> Table:
        """A row a step and quantity."""
        return Table(COLUMNS[1:], [row[1:] for row in self.rows()], MEANINGS)

    def rows(self) -> list[tuple[str | int | float | None, ...]]:
        """A row a step and quantity, under `COLUMNS`."""
        return [
            (self.name, one.step, one.stage, p.quantity, p.value, p.low, p.high, p.n, p.absent)
            for one in self.checkpoints
            for p in one.points
        ]

    def curve(self, quantity: str) -> dict[int, Point]:
        """Step -> what was measured, by step; steps at which it was not are left out.

        Raises:
            UnknownNameError: there is no such quantity.
        """
        points = {one.step: one.of(quantity) for one in self.checkpoints}
        return {step: point for step, point in points.items() if point.value is not None}

    def absent(self, quantity: str) -> str:
        """Why a quantity was measured at no step; empty where it was at some. Errors as `curve`."""
        if self.curve(quantity):
            return ""
        return "; ".join(dict.fromkeys(one.of(quantity).absent for one in self.checkpoints))


COLUMNS = ("run", "step", "stage", "quantity", "value", "low", "high", "n", "absent")
MEANINGS = {
    "step": "of training",
    "stage": "level of the curriculum, from 0",
    "low": "end of the 95 % interval over prompts (of training answers, over steps)",
    "high": "its other end",
    "n": "prompts, pairs of prompts or steps",
    "absent": "why it was not measured",
}


@dataclass(frozen=True)
class TrainingCurves(Plotted, Stored, text=True):
    """Curves of runs of training beside each other.

    Attributes:
        runs: in the order in which they were named.
    """

    runs: tuple[RunCurves, ...]

    def summary(self) -> str:
        """How many runs and checkpoints."""
        checkpoints = sum(len(run.checkpoints) for run in self.runs)
        names = listed([run.name for run in self.runs], 4)
        return f"{many(len(self.runs), 'run')} of training, {names}; {many(checkpoints, 'checkpoint')}"

    def table(self) -> Table:
        """A row a run, step and quantity."""
        return Table(COLUMNS, [row for run in self.runs for row in run.rows()], MEANINGS)

    def view(self) -> tuple[Piece, ...]:
        """Of each run, the quantities that were measured, a column each, over steps."""
        pieces: list[Piece] = []
        for run in self.runs:
            names = [name for name in QUANTITIES if run.curve(name)]
            shares = tuple(name for name in names if QUANTITIES[name].share)
            rows = [(one.step, *(one.of(name).value for name in names)) for one in run.checkpoints]
            meanings = {name: QUANTITIES[name].words for name in names}
            pieces.append(Table(("step", *names), rows, meanings, shares, title=run.name, note=_missing(run)))
        return tuple(pieces)

    def plot(self, quantity: str = INTACT) -> Plot:
        """One quantity over the steps of training, a line a run, bands over 95 % intervals.

        Raises:
            UnknownNameError: there is no such quantity.
            ResultsError: it was measured in no run, saying why.
        """
        from hybridlens.viz.charts import Curve, step_chart
        from hybridlens.viz.plot import Plot

        curves = [Curve(run.name, values(run, quantity)) for run in self.runs if run.curve(quantity)]
        if not curves:
            reasons = "; ".join(f"{run.name}: {run.absent(quantity)}" for run in self.runs)
            raise ResultsError(f"{quantity} was not measured ({reasons})")
        return Plot(step_chart(curves, quantity, QUANTITIES[quantity].share))


def values(run: RunCurves, quantity: str) -> dict[int, Value]:
    """A curve as figures take it, with its control for the level of chance."""
    control = run.curve(CONTROLS[quantity]) if quantity in CONTROLS else {}
    nan = math.nan
    return {
        step: Value(
            point.known,
            nan if point.low is None else point.low,
            nan if point.high is None else point.high,
            point.n,
            control[step].known if step in control else nan,
        )
        for step, point in run.curve(quantity).items()
    }


def _missing(run: RunCurves) -> str:
    """What was not measured, and why, by reason."""
    reasons: dict[str, list[str]] = {}
    for name in QUANTITIES:
        if reason := run.absent(name):
            reasons.setdefault(reason, []).append(name)
    return " ".join(f"Not measured: {listed(names, 6)} ({reason})." for reason, names in reasons.items())
