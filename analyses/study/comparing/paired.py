"""Accuracies of several studies side by side, condition by condition, prompt by prompt where the prompts are the same.

A prompt is the same where its place and its hash are: text, tokens and needle. Differences are then taken on those
prompts alone, each drawn again with both its scores; else the two means are taken for independent, which makes the
interval no narrower than it should be. Conditions are named by what is kept: "all heads", "k = 2", "no head".

How it fails: pure; a condition that fewer than two studies have is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from analyses.study.comparing.reading import StoredStudy
from analyses.study.groups import Estimate, Group, Place, accuracy, compare, selected
from analyses.study.measured import Condition
from hybridlens.display import Displayed
from hybridlens.results import Cell
from hybridlens.results.cells import MODES, PHASES

ALL = "all heads"
Name = tuple[str, str, str, str]
"""Version, heads kept in words, what is done while reading and while answering."""


class _Difference(NamedTuple):
    """Fields of `Difference`."""

    estimate: Estimate
    paired: bool


class Difference(Displayed, _Difference):
    """One study's accuracy less the first's.

    Attributes:
        estimate: the difference; its `n` is the prompts that both have where it is paired, else of the smaller study.
        paired: whether it is over the prompts that both have.
    """

    __slots__ = ()


class _SideBySide(NamedTuple):
    """Fields of `SideBySide`."""

    condition: str
    accuracies: tuple[Estimate | None, ...]
    differences: tuple[Difference | None, ...]


class SideBySide(Displayed, _SideBySide):
    """One condition in several studies.

    Attributes:
        condition: in words.
        accuracies: one for each study; None where it was not run.
        differences: each study less the first that has the condition; None for that and where it was not run.
    """

    __slots__ = ()


def side_by_side(studies: Sequence[StoredStudy]) -> list[SideBySide]:
    """Every condition of figure 2 and table 1 that two studies or more have, in the order of the paper."""
    found = [conditions(study) for study in studies]
    names = dict.fromkeys(name for one in found for name in sorted(one, key=_order))
    rows: list[SideBySide] = []
    for name in sorted(names, key=_order):
        here = [one.get(name) for one in found]
        first = next(one for one in here if one is not None)
        if sum(one is not None for one in here) < 2:
            continue
        differences = [None if one is None or one is first else difference(one, first) for one in here]
        means = tuple(None if one is None else accuracy(one) for one in here)
        rows.append(SideBySide(_words(name), means, tuple(differences)))
    return rows


def conditions(study: StoredStudy) -> dict[Name, Group]:
    """The conditions of figure 2 and table 1 of a study, by name; those without a needle's score are left out."""
    found: dict[Name, Group] = {}
    for cell in selected(study.cells, study.base, "reading", "answering"):
        one = found.setdefault(_name(cell, study.base.n_heads), Group())
        if cell.depth is not None:
            place = cell.length, float(cell.depth)
            one.scores[place] = float(cell.score)
            one.prompts[place] = cell.prompt_hash
    return {name: one for name, one in found.items() if one.scores}


def difference(one: Group, other: Group) -> Difference | None:
    """A condition's accuracy in one study less that in another."""
    same = shared(one.prompts, other.prompts)
    if same:
        found = compare(one.within(same), other.within(same))
        return None if found is None else Difference(found, True)
    means = accuracy(one), accuracy(other)
    if means[0] is None or means[1] is None:
        return None
    return Difference(apart(means[0], means[1]), False)


def shared(one: Mapping[Place, str], other: Mapping[Place, str]) -> set[Place]:
    """The places at which two studies have the same prompt."""
    return {place for place, prompt in one.items() if other.get(place) == prompt}


def apart(a: Estimate, b: Estimate) -> Estimate:
    """`a` less `b`, which are independent: the distances of the ends add as those of a right angle's sides."""
    mean = a.mean - b.mean
    low = mean - math.hypot(a.mean - a.low, b.high - b.mean)
    high = mean + math.hypot(a.high - a.mean, b.mean - b.low)
    return Estimate(mean, low, high, min(a.n, b.n))


def _name(cell: Cell, n_heads: int) -> Name:
    phase, k, reading, answering = Condition.of(cell)
    if k == n_heads:
        return PHASES[0], ALL, reading, answering  # the untouched model is the same in either version
    return phase, f"k = {k}" if k else "no head", reading, answering


def _order(name: Name) -> tuple[int, int, int, int]:
    phase, kept, reading, answering = name
    k = -1 if kept == ALL else -int(kept.removeprefix("k = ")) if kept.startswith("k") else 0
    first = -(10**9) if kept == ALL else k
    return PHASES.index(phase), MODES.index(reading) * len(MODES) + MODES.index(answering), first, 0


def _words(name: Name) -> str:
    phase, kept, reading, answering = name
    changed = "" if (reading, answering) == ("keep", "keep") else f", {reading} while reading, {answering} answering"
    return f"{kept}{'' if kept == ALL else f', {phase}'}{changed}"
