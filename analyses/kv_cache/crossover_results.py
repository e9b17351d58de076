"""`Crossover`: which needle a model told from each mixture of two memories, as a typed result on disk.

Every answer is a cell. Shares are means over cells with the 95 % intervals of `hybridlens.results.statistics`
(bootstrap, widened where so few prompts may all be of one kind by chance); cells are prompts, each with its own filler,
depth and pair of needles.

How it fails: a share of no cells raises `ResultsError`, a file that holds no crossover `InputError`. Cells of one
pair of needles are more alike than others, so that intervals over few pairs are too narrow for a claim about all
needles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from analyses.experiment.artefacts import Stored
from analyses.kv_cache.mixes import Mix
from hybridlens.boundary import Seed, public
from hybridlens.display import Displayed, Piece, Table, many, number
from hybridlens.display.markup import cut
from hybridlens.errors import ResultsError
from hybridlens.results import Interval, bootstrap_interval
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot


@dataclass(frozen=True)
class CrossCell(Displayed):
    """One answer from one mixed state.

    Attributes:
        mix: its name.
        pair: of which needles.
        length: tokens of the prompts.
        depth: of the needle, in percent.
        seen: the share of the needle's tokens that the prompt's last token still sees, 0 to 1.
        told: "A", "B" or "neither".
        score_a: points of the answer by A's rubric, 0 to 5.
        score_b: by B's.
        logprob_a: natural logarithm of the probability of A's first words that B lacks (`telling`).
        logprob_b: of B's in their place.
        text: the answer.
    """

    mix: str
    pair: str
    length: int
    depth: int
    seen: float
    told: str
    score_a: float
    score_b: float
    logprob_a: float
    logprob_b: float
    text: str

    def summary(self) -> str:
        """What was answered under which mix."""
        where = f"{cut(self.mix, 40)}, {self.pair}, {self.length} tokens, depth {self.depth} %"
        return f"{where}: told {self.told} {cut(self.text.strip(), 50)!r}"

    @property
    def leaning(self) -> float:
        """By how much B's first words are likelier than A's: log-probability of B's less A's, in nats."""
        return self.logprob_b - self.logprob_a


class _Share(NamedTuple):
    """Fields of `Share`."""

    mean: float
    interval: Interval


class Share(Displayed, _Share):
    """A share of answers, 0 to 1, with its interval."""

    __slots__ = ()

    def summary(self) -> str:
        """The share and its interval, in percent."""
        return f"{self.mean:.1%}, 95 %: {self.interval.low:.1%} to {self.interval.high:.1%}"

    @classmethod
    def of(cls, scores: Sequence[float], seed: int) -> Share:
        """The mean of scores from 0 to 1; the seed is that of the interval's draws."""
        return cls(sum(scores) / len(scores), bootstrap_interval(scores, seed=seed))


class _Shares(NamedTuple):
    """Fields of `Shares`."""

    a: Share
    b: Share
    neither: Share
    likelier_b: Share
    """From which B's first words are likelier than A's, whatever was answered."""
    leaning: float
    """Of the answers, on average. Words differ in how likely they are by themselves, so read it beside the leaning of
    the unmixed states."""
    n: int
    """Answers."""


class Shares(Displayed, _Shares):
    """What a mixed state tells."""

    __slots__ = ()

    def summary(self) -> str:
        """What is told, in percent."""
        told = f"A {self.a.mean:.0%}, B {self.b.mean:.0%}, neither {self.neither.mean:.0%}"
        return f"{told} of {many(self.n, 'answer')}; B's words likelier in {self.likelier_b.mean:.0%}"

    def table(self) -> Table:
        """A row for each share, with its interval."""
        rows = [(what, one.mean, *one.interval) for what, one in zip(self._fields[:4], self[:4], strict=True)]
        note = f"leaning {number(self.leaning)} nats, over {many(self.n, 'answer')}"
        return Table(("tells", "share", "low", "high"), rows, heat=("share",), note=note)


@dataclass(frozen=True, eq=False)
class Crossover(Plotted, Stored, text=True):
    """Answers from mixed states.

    Attributes:
        model: the model's signature.
        mixes: what came from prompt B.
        cells: one answer for each mix and pair of prompts.
        max_new_tokens: of each answer.
    """

    model: str
    mixes: tuple[Mix, ...]
    cells: tuple[CrossCell, ...]
    max_new_tokens: int

    def summary(self) -> str:
        """How many mixes and pairs, and what the untouched and the wholly exchanged state tell."""
        pairs = len(self.cells) // max(1, len(self.mixes))
        ends = [f"{cut(mix.name, 30)}: {self._told(mix.name)}" for mix in (self.mixes[:1] if self.mixes else ())]
        return f"{many(len(self.mixes), 'mix', 'mixes')} × {many(pairs, 'prompt pair')}; {''.join(ends)}"

    def _told(self, mix: str) -> str:
        told = [cell.told for cell in self.answers(mix)]
        return ", ".join(f"{which} {told.count(which) / len(told):.0%}" for which in ("A", "B", "neither"))

    def table(self) -> Table:
        """A row an answer."""
        columns = (
            "mix",
            "pair",
            "length",
            "depth",
            "seen",
            "told",
            "score_a",
            "score_b",
            "logprob_a",
            "logprob_b",
            "text",
        )
        meanings = {"seen": "share of the needle that the last token still sees", "told": "which needle", **_UNITS}
        return Table(columns, [tuple(getattr(cell, name) for name in columns) for cell in self.cells], meanings)

    def view(self) -> tuple[Piece, ...]:
        """What each mix tells, over all prompts; `shares` has the intervals."""
        rows: list[tuple[str | float, ...]] = []
        for mix in self.mixes:
            cells = self.answers(mix.name)
            told = [sum(cell.told == which for cell in cells) / len(cells) for which in ("A", "B", "neither")]
            rows.append((mix.name, len(cells), *told, sum(cell.leaning for cell in cells) / len(cells)))
        columns = ("mix", "answers", "tells A", "tells B", "neither", "leaning")
        meanings = {"leaning": "log-probability of B's first words less A's, in nats"}
        return (Table(columns, rows, meanings, ("tells A", "tells B", "neither")),)

    def plot(self, inside: bool | None = None, group: str = "whole model") -> Plot:
        """Which needle is told under each mix of a group, with 95 % intervals over prompts.

        Args:
            inside: as in `shares`.
            group: of `Mix.group`: the whole model, or "layer 3".

        Raises:
            ResultsError: no mix of that group has answers.
        """
        from hybridlens.viz.charts import bar_chart
        from hybridlens.viz.entries import Value
        from hybridlens.viz.plot import Plot

        there = {cell.mix for cell in self.cells if _is_inside(cell, inside)}
        names = [mix.name for mix in self.mixes if mix.group == group and mix.name in there]
        if not names:
            groups = ", ".join(dict.fromkeys(repr(mix.group) for mix in self.mixes))
            raise ResultsError(f"no answers under mixes of group {group!r}; there is {groups}")
        found = [self.shares(name, inside) for name in names]
        bars = {
            f"tells {side}": [Value(one.mean, *one.interval, shares.n) for one, shares in zip(told, found, strict=True)]
            for side, told in (("A", [s.a for s in found]), ("B", [s.b for s in found]))
        }
        return Plot(bar_chart(names, bars, "what comes from which prompt", "answers that tell the needle, %"))

    @public
    def shares(self, mix: str, inside: bool | None = None, *, seed: Seed = 0) -> Shares:
        """The shares of answers that tell A, B and neither under one mix.

        Args:
            mix: its name.
            inside: True for prompts whose whole needle the last token still sees, False for those of whose needle
                it sees nothing; None for all.
            seed: of the intervals' draws, 0 or more.

        Raises:
            InputError: a seed below 0.
            ResultsError: there are no such answers.
        """
        cells = self.answers(mix, inside)

        def share(hits: Iterable[bool]) -> Share:
            return Share.of([float(hit) for hit in hits], seed)

        a, b, neither = (share(cell.told == which for cell in cells) for which in ("A", "B", "neither"))
        likelier = share(cell.leaning > 0 for cell in cells)
        return Shares(a, b, neither, likelier, sum(cell.leaning for cell in cells) / len(cells), len(cells))

    def answers(self, mix: str, inside: bool | None = None) -> list[CrossCell]:
        """The cells of one mix, which are at least one; arguments and errors as in `shares`."""
        cells = [cell for cell in self.cells if cell.mix == mix and _is_inside(cell, inside)]
        if not cells:
            where = {None: "", True: " with the needle inside the window", False: " with the needle outside the window"}
            there = ", ".join(repr(mix.name) for mix in self.mixes)
            raise ResultsError(f"no answer under mix {mix!r}{where[inside]}; there are {there}")
        return cells

    @property
    def regions(self) -> list[bool]:
        """True where some needle is seen whole by the last token, False where some is not seen at all."""
        return [inside for inside in (True, False) if any(_is_inside(cell, inside) for cell in self.cells)]

    def by_mix(self, inside: bool | None = None) -> dict[str, Shares]:
        """`shares` of every mix that has answers, in order."""
        there = {cell.mix for cell in self.cells if _is_inside(cell, inside)}
        return {mix.name: self.shares(mix.name, inside) for mix in self.mixes if mix.name in there}


_UNITS = {
    "score_a": "points by A's rubric, 0 to 5",
    "score_b": "by B's",
    "logprob_a": "of A's first words that B lacks, nats",
    "logprob_b": "of B's in their place",
}


def _is_inside(cell: CrossCell, inside: bool | None) -> bool:
    """Whether a cell's needle is seen whole (True), or not at all (False), by the last token; None: either, or part."""
    return inside is None or cell.seen == (1.0 if inside else 0.0)
