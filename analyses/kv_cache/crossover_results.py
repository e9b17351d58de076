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
from typing import NamedTuple

from analyses.experiment.artefacts import Stored
from analyses.kv_cache.mixes import Mix
from hybridlens.boundary import Seed, public
from hybridlens.errors import ResultsError
from hybridlens.results import Interval, bootstrap_interval


@dataclass(frozen=True)
class CrossCell:
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

    @property
    def leaning(self) -> float:
        """By how much B's first words are likelier than A's: log-probability of B's less A's, in nats."""
        return self.logprob_b - self.logprob_a


class Share(NamedTuple):
    """A share of answers, 0 to 1, with its interval."""

    mean: float
    interval: Interval

    @classmethod
    def of(cls, scores: Sequence[float], seed: int) -> Share:
        """The mean of scores from 0 to 1; the seed is that of the interval's draws."""
        return cls(sum(scores) / len(scores), bootstrap_interval(scores, seed=seed))


class Shares(NamedTuple):
    """What a mixed state tells."""

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


@dataclass(frozen=True, eq=False)
class Crossover(Stored, text=True):
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


def _is_inside(cell: CrossCell, inside: bool | None) -> bool:
    """Whether a cell's needle is seen whole (True), or not at all (False), by the last token; None: either, or part."""
    return inside is None or cell.seen == (1.0 if inside else 0.0)
