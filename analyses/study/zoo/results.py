"""`Zoo`: many models side by side, every number of each with its interval, as a saved result.

`read_zoo` gathers the finished experiments of a folder; a saved `Zoo` holds all that the page and the rules need.

How it fails: `ResultsError` for a run that is missing, damaged or of other weights than its neighbours; what was not
asked of a model stands there with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analyses.experiment.artefacts import Stored
from analyses.study.points import Point
from analyses.study.zoo.making import Subject
from analyses.study.zoo.of_study import RETRIEVAL, SILENT
from analyses.study.zoo.parts import PARTS
from hybridlens.boundary import public
from hybridlens.config import LensConfig
from hybridlens.display import Displayed, Piece, Table, listed, many
from hybridlens.errors import ResultsError, UnknownNameError, closest
from hybridlens.results.store import read_run_record

FILE = "zoo.json"


@dataclass(frozen=True)
class Asked(Displayed):
    """One experiment of one model.

    Attributes:
        part: of `PARTS`.
        points: its numbers; none where it was not asked.
        finding: the first sentences of its report.
        absent: why it was not asked; empty where it was.
    """

    part: str
    points: tuple[Point, ...]
    finding: tuple[str, ...] = ()
    absent: str = ""

    def summary(self) -> str:
        """How many numbers, or why there are none."""
        return f"{self.part}: {self.absent or many(len(self.points), 'number')}"


@dataclass(frozen=True)
class Member(Displayed):
    """One model.

    Attributes:
        name: its own.
        family: as in its `LensConfig`.
        weights: digest of its weights and configuration.
        parameters: 0 where no experiment says it.
        n_heads: of an attention layer, 0 without.
        attention: its attention layers.
        states: its layers that remember by a recurrent state.
        recurrent: its layers with a recurrence or a convolution of any kind.
        mixers: what mixes tokens, of each kind of layer in a word.
        window: keys that attention sees; None for all.
        asked: one for each experiment, in the order of `PARTS`.
    """

    name: str
    family: str
    weights: str
    parameters: int
    n_heads: int
    attention: tuple[int, ...]
    states: tuple[int, ...]
    recurrent: tuple[int, ...]
    mixers: tuple[str, ...]
    window: int | None
    asked: tuple[Asked, ...]

    @property
    def kind(self) -> str:
        """What it is made of: "hybrid", "attention alone" or "recurrence alone"."""
        if not self.attention:
            return "recurrence alone"
        return "hybrid" if self.recurrent else "attention alone"

    def points(self) -> Iterator[tuple[str, Point]]:
        """Every number, after the name of its experiment."""
        return ((one.part, point) for one in self.asked for point in one.points)

    def of(self, quantity: str) -> Point:
        """One of its numbers; where it was not asked, a point that says why."""
        found = next((point for _, point in self.points() if point.quantity == quantity), None)
        if found is not None:
            return found
        why = "; ".join(f"{one.part}: {one.absent}" for one in self.asked if one.absent)
        return Point(quantity, None, absent=why or "it was not run")

    def summary(self) -> str:
        """Its kind, and retrieval with attention and without."""
        return f"{self.name} ({self.kind}): {self.of(RETRIEVAL).summary()}; {self.of(SILENT).summary()}"


@dataclass(frozen=True)
class Zoo(Displayed, Stored, text=True):
    """Models side by side.

    Attributes:
        members: in the order they were given.
        parts: the experiments that were asked for.
    """

    members: tuple[Member, ...]
    parts: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models."""
        return tuple(member.name for member in self.members)

    @public
    def member(self, name: str) -> Member:
        """One model.

        Raises:
            UnknownNameError: there is none of this name.
        """
        found = next((member for member in self.members if member.name == name), None)
        if found is None:
            raise UnknownNameError(f"no model {name!r} here{closest(name, self.names)}; there is {listed(self.names)}")
        return found

    def summary(self) -> str:
        """Which models, and how many numbers."""
        numbers = sum(1 for member in self.members for _ in member.points())
        return f"{many(len(self.members), 'model')} ({listed(self.names, 9)}), {many(numbers, 'number')}"

    def table(self) -> Table:
        """A row for every number of every model."""
        rows = [
            (member.name, part, point.quantity, point.value, point.low, point.high, point.n, point.where, point.absent)
            for member in self.members
            for part, point in member.points()
        ]
        return Table(COLUMNS, rows, MEANINGS)

    def view(self) -> tuple[Piece, ...]:
        """Retrieval of every model, with attention and without."""
        rows = [
            (member.name, member.kind, *(getattr(member.of(name), end) for name in (RETRIEVAL, SILENT)
                                         for end in ("value", "low", "high")))
            for member in self.members
        ]  # fmt: skip
        columns = ("model", "kind", "retrieval", "low", "high", "without attention", "its low", "its high")
        return (Table(columns, rows, heat=("retrieval", "without attention")),)


COLUMNS = ("model", "part", "quantity", "value", "low", "high", "n", "where", "absent")
MEANINGS = {
    "part": "the experiment that it comes from",
    "low": "end of the 95 % interval",
    "high": "its other end",
    "n": "prompts, pairs of prompts, needles or documents",
    "absent": "why it was not measured",
}


def read_zoo(
    folder: Path, subjects: Sequence[Subject], parts: Sequence[str], refused: Mapping[tuple[str, str], str]
) -> Zoo:
    """The experiments that a folder holds, all of them finished.

    Args:
        folder: each model has a folder in it, each of its experiments a folder in that.
        subjects: the models.
        parts: names of experiments.
        refused: (model's name, part) -> why it was not asked.

    Raises:
        ResultsError: see the module.
    """
    return Zoo(tuple(_member(folder / one.name, one, parts, refused) for one in subjects), tuple(parts))


def _member(folder: Path, subject: Subject, parts: Sequence[str], refused: Mapping[tuple[str, str], str]) -> Member:
    asked: list[Asked] = []
    parameters: dict[int, None] = {}
    weights: dict[str, str] = {}
    for name in PARTS:
        if name not in parts:
            continue
        if (subject.name, name) in refused:
            asked.append(Asked(name, (), absent=refused[subject.name, name]))
            continue
        record = read_run_record(folder / name)
        if record.status != "complete":
            raise ResultsError(f"{folder / name} is not finished; the same command goes on")
        if name != "circuits":  # whose weights are read and hashed in another way
            weights[record.weights_hash] = name
        if "parameters" in record.facts:
            parameters[int(record.facts["parameters"])] = None
        asked.append(Asked(name, tuple(PARTS[name].read(folder / name)), tuple(record.finding)))
    if len(weights) > 1:
        raise ResultsError(f"{folder}: {' and '.join(weights.values())} were run on different weights; remove one")
    return Member(
        name=subject.name,
        family=subject.cfg.family,
        weights=subject.digest,
        parameters=next(iter(parameters), 0),
        n_heads=subject.cfg.n_heads,
        attention=tuple(subject.cfg.attention_layers),
        states=tuple(subject.cfg.state_layers),
        recurrent=tuple(subject.cfg.ssm_layers),
        mixers=_mixers(subject.cfg),
        window=subject.cfg.window,
        asked=tuple(asked),
    )


def _mixers(cfg: LensConfig) -> tuple[str, ...]:
    """The kinds of recurrence of a model, in the order of its layers."""
    return tuple(dict.fromkeys(recurrent.kind for recurrent in cfg.recurrences))
