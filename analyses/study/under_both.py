"""The paper's claims under clean and under published semantics, side by side, those on which the two part first.

A study has one semantics of its own. Its experiment "semantics" runs the sweep of figure 2 and table 1 under the other
as well, on the authors' prompts where that is published, and here the same rules judge those cells. What the paper
found and what its method measures may part, and then a reader of either alone is misled.

The other semantics has fewer prompts. So that a claim is not said to turn on semantics where it turns on which prompts
were run, the study's own cells are judged once more at the very places and conditions that the other has. A claim of
several conditions may stay open for one of them; `splits` has the conditions one by one: those in which retrieval is
kept under one semantics and lost under the other, by the rule of the tipping point, half of the untouched accuracy.

How it fails: a study without such cells has nothing to set side by side, and gets none. Of what the authors' code
has no counterpart of (benchmarks, reading twice, the prefill version) the other semantics says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from analyses.heads.entropy import SEMANTICS
from analyses.study.evidence import Check, ModelFacts, Outcome
from analyses.study.explorer import condition_words
from analyses.study.groups import Base, Estimate, Group, accuracy, compare, grouped
from analyses.study.measured import Condition
from analyses.study.verdict import Verdict, verdicts
from hybridlens.display import Displayed
from hybridlens.display.markup import cut
from hybridlens.results import Cell
from hybridlens.viz.entries import signed
from hybridlens.viz.words import percent

DECIDED = ("holds", "fails")


class _UnderBoth(NamedTuple):
    """Fields of `UnderBoth`."""

    own: Verdict
    other: Verdict
    shared: Outcome
    semantics: str


class UnderBoth(Displayed, _UnderBoth):
    """One claim under both semantics.

    Attributes:
        own: the verdict under the study's own semantics, on all that it ran.
        other: the verdict under the other one.
        shared: what becomes of the claim under the study's own semantics at the places and conditions of the other.
        semantics: the study's own: "clean" or "published".
    """

    __slots__ = ()

    @property
    def differs(self) -> bool:
        """Whether the other semantics tested the claim with another outcome, and which prompts were run is not why."""
        return bool(self.other.said) and self.other.outcome not in (self.own.outcome, self.shared)

    @property
    def turns(self) -> bool:
        """Whether the claim holds under one semantics and fails under the other."""
        return self.differs and {self.own.outcome, self.other.outcome} == set(DECIDED)

    @property
    def clean(self) -> Verdict:
        """The verdict under clean semantics."""
        return self.own if self.semantics == "clean" else self.other

    @property
    def published(self) -> Verdict:
        """The verdict under published semantics."""
        return self.other if self.semantics == "clean" else self.own

    def summary(self) -> str:
        """What becomes of the claim under either."""
        words = f"{self.clean.outcome} (clean), {self.published.outcome} (published)"
        return f"{self.own.id} {words}: {cut(self.own.claim, 90)}"


def under_both(cells: Sequence[Cell], own: Sequence[Verdict], facts: ModelFacts) -> list[UnderBoth]:
    """Every claim under both semantics: those that turn first, then those that differ, in the order of the claims.

    Args:
        cells: a study's, of any experiments.
        own: the verdicts under its own semantics, one a claim.
        facts: of the model, with the study's own semantics.

    Returns:
        one a claim; nothing where no cell was run under the other semantics.
    """
    semantics = facts.base.semantics
    theirs = {cell.key._replace(semantics=semantics): cell for cell in cells if cell.semantics != semantics}
    if not theirs:
        return []
    everywhere = facts.base._replace(lengths=())  # the two may meet beyond the main grid
    other = facts._replace(base=everywhere._replace(semantics=other_than(semantics)))
    judged = verdicts(list(theirs.values()), (), other)
    shared = verdicts([cell for cell in cells if cell.key in theirs], (), facts._replace(base=everywhere))
    found = [
        UnderBoth(mine, away, here.outcome, semantics) for mine, away, here in zip(own, judged, shared, strict=True)
    ]
    return sorted(found, key=lambda one: 0 if one.turns else 1 if one.differs else 2)


class _Split(NamedTuple):
    """Fields of `Split`."""

    words: str
    clean: Estimate
    published: Estimate
    change: Estimate
    lost: str


class Split(Displayed, _Split):
    """One condition in which retrieval is kept under one semantics and lost under the other.

    Attributes:
        words: the condition: "Binary while reading, keep while answering".
        clean: accuracy under clean semantics.
        published: under published semantics.
        change: the second less the first, place by place.
        lost: the semantics under which it is lost.
    """

    __slots__ = ()

    def summary(self) -> str:
        """The condition, both accuracies and their difference."""
        kept = other_than(self.lost)
        here, there = (getattr(self, name).mean for name in (kept, self.lost))
        change = f"{signed(100 * self.change.mean)} points ({signed(100 * self.change.low, 100 * self.change.high)})"
        return (
            f"{self.words}: retrieval is kept under {kept} semantics ({percent(here)}) and lost under {self.lost} "
            f"semantics ({percent(there)}); published less clean {change}"
        )


def splits(cells: Sequence[Cell], base: Base) -> list[Split]:
    """The conditions in which retrieval is kept under one semantics and lost under the other, largest change first.

    Kept: at least half of the untouched model's accuracy under the same semantics at the same places; lost: under half;
    either with its whole 95 % interval.
    """
    sides = {name: _conditions(cells, base, name) for name in SEMANTICS}
    whole = Condition("generation", base.n_heads)
    found: list[Split] = []
    for condition in sorted(sides["clean"].keys() & sides["published"].keys(), key=lambda one: one.place):
        kept = {
            name: Check("", compare(side[condition], side.get(whole, Group()), 0.5), above=True).holds
            for name, side in sides.items()
        }
        clean, published = (sides[name][condition] for name in SEMANTICS)
        means, change = (accuracy(clean), accuracy(published)), compare(published, clean)
        if set(kept.values()) == {True, False} and means[0] and means[1] and change:
            lost = next(name for name, holds in kept.items() if not holds)
            found.append(Split(condition_words(condition, base.n_heads), means[0], means[1], change, lost))
    return sorted(found, key=lambda one: -abs(one.change.mean))


def _conditions(cells: Sequence[Cell], base: Base, semantics: str) -> dict[Condition, Group]:
    """The scores of one semantics by condition, where the other has them too."""
    theirs = {cell.key._replace(semantics=semantics) for cell in cells if cell.semantics != semantics}
    mine = [cell for cell in cells if cell.semantics == semantics and cell.key in theirs]
    everywhere = base._replace(lengths=())
    return dict(grouped(mine, everywhere, Condition.of, "reading", "answering", semantics=semantics))


def other_than(semantics: str) -> str:
    """The other of the two semantics."""
    return next(name for name in SEMANTICS if name != semantics)
