"""What the zoo takes from a study: retrieval at every k, table 1, reading twice, several needles, general tasks.

Everything is a `Point` with its interval over prompts (over needles where it says so), a share of the highest score.
Without a needle, the same is asked with filler in its place; what is above that control is taken length by length.

How it fails: `ResultsError` for a folder without a finished study; what a study does not hold is a point that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from analyses.study import views
from analyses.study.claim_rules import GENERAL
from analyses.study.comparing.reading import StoredStudy, read_study
from analyses.study.groups import Estimate, Group, accuracy, chance, once
from analyses.study.measured import Accuracies, Differences
from analyses.study.points import Point, absent
from analyses.study.under_both import other_than
from hybridlens import niah
from hybridlens.errors import ResultsError
from hybridlens.results import TippingInterval, bootstrap_interval, paired_difference
from hybridlens.results.cells import PHASES

T = TypeVar("T")

RETRIEVAL, SILENT = "retrieval", "retrieval without attention"
ABOVE = ", above its control"
CONTROL = ", no needle"
NO_ATTENTION = "the model has no attention to silence"


def at(phase: str, k: int) -> str:
    """The name of retrieval with k heads kept in one version: "retrieval, generation version, k = 2"."""
    return f"retrieval, {phase} version, k = {k}"


def mode(reading: str, answering: str, semantics: str = "clean") -> str:
    """The name of a cell of table 1: "table 1, keep while reading, omit while answering, clean"."""
    return f"table 1, {reading} while reading, {answering} while answering, {semantics}"


def of_study(folder: Path) -> list[Point]:
    """The numbers of one study.

    Raises:
        ResultsError: see the module.
    """
    study = read_study(folder)
    made = (_kept, _curves, _tipping, _table1, _twice, _needles, _general)
    return [point for make in made for point in make(study)]


def point(name: str, found: Estimate | None, why: str = "it was not run") -> Point:
    """An estimate as a point."""
    return Point(name, None, absent=why) if found is None else Point(name, *found)


def above_control(name: str, group: Group) -> Point:
    """Each score less that of the prompt of its length without a needle, with the interval over prompts.

    One prompt without a needle stands beside all depths of its length, so that their differences share its luck.
    """
    pairs = [(group.scores[length, depth], group.controls[length]) for length, depth in once(group)
             if length in group.controls]  # fmt: skip
    if not pairs:
        return Point(name, None, absent="no prompt without a needle was run")
    mine, guessed = ([pair[i] / niah.MAX_SCORE for pair in pairs] for i in (0, 1))
    low, high = paired_difference(mine, guessed)
    return Point(name, (sum(mine) - sum(guessed)) / len(pairs), low, high, len(pairs))


def _kept(study: StoredStudy) -> Iterator[Point]:
    """Retrieval as the model is, and with no head at all while reading and answering alike."""
    n_heads, curves = study.base.n_heads, study.evidence.curves
    whole = study.evidence.full()
    for name, group in ((RETRIEVAL, whole), (SILENT, curves["prefill"].get(0, Group()))):
        if name == SILENT and not n_heads:
            yield from absent([name, name + CONTROL, name + ABOVE], NO_ATTENTION)
            continue
        yield point(name, accuracy(group))
        floor = chance(group)
        yield Point(name + CONTROL, floor, n=len(group.controls), absent="" if floor is not None else "it was not run")
        yield above_control(name + ABOVE, group)


def _curves(study: StoredStudy) -> Iterator[Point]:
    for phase in PHASES:
        for k, group in study.evidence.curves[phase].items():
            yield point(at(phase, k), accuracy(group))


def _tipping(study: StoredStudy) -> Iterator[Point]:
    """The largest k at which accuracy is under half of that with all heads."""
    for phase in PHASES:
        name = f"tipping point, {phase} version"
        curve = study.evidence.curves[phase]
        found = views.tipping(curve)
        spread = views.tipping_spread(study.cells, study.base, phase)
        if not study.base.n_heads:
            yield Point(name, None, absent=NO_ATTENTION)
        elif found is None or spread is None:
            yield Point(name, None, absent="accuracy falls under half at no k that was run")
        else:
            n = len(next(iter(curve.values())).scores)
            yield Point(name, float(found), *_ends(spread), n=n)


def _ends(spread: TippingInterval) -> tuple[float, float]:
    """The interval of a tipping point, -1 for none."""
    low, high = (-1.0 if end is None else float(end) for end in (spread.low, spread.high))
    return low, high


def _table1(study: StoredStudy) -> Iterator[Point]:
    """Every combination, on the main grid, and under the other semantics on all prompts that were run under them."""
    own = study.base.semantics
    for semantics in (own, other_than(own)):
        base = study.base if semantics == own else study.base._replace(semantics=semantics, lengths=())
        found = views.modes(study.cells, base)
        for reading in views.READINGS:
            for answering in views.ANSWERINGS:
                if (group := found[reading, answering]).scores:
                    yield point(mode(reading, answering, semantics), accuracy(group))


def _twice(study: StoredStudy) -> Iterator[Point]:
    """Read twice with all heads and with none, and what that gains over reading once, prompt by prompt."""
    found = _made(lambda: views.jrt(study.cells, study.base))
    n_heads = study.base.n_heads
    for k in dict.fromkeys((n_heads, 0)):
        which = "read twice" if k == n_heads else "read twice without attention"
        if found is None or k not in found.ks:
            yield from absent([which, f"{which}, gain over once"], "it was not run")
            continue
        i = found.ks.index(k)
        yield _entry(which, found.accuracy, 1, i)
        yield _entry(f"{which}, gain over once", found.gain, i)


def _needles(study: StoredStudy) -> Iterator[Point]:
    """The mean over needles, with its interval over needles, with all heads and with none while answering."""
    found = _made(lambda: views.needles(study.cells, study.base))
    for k in dict.fromkeys((study.base.n_heads, 0)):
        name = f"mean over needles, k = {k}"
        if found is None or k not in found.ks:
            yield Point(name, None, absent="several needles were not run")
            continue
        means = found.accuracy.mean[:, found.ks.index(k)].tolist()
        yield Point(name, sum(means) / len(means), *bootstrap_interval(means), n=len(means))


def _general(study: StoredStudy) -> Iterator[Point]:
    """General tasks with all heads, and what becomes of them without."""
    evidence, n_heads = study.evidence, study.base.n_heads
    for task in evidence.present(GENERAL):
        row = next(row for row in study.rows if (row.task, row.k) == (task, n_heads))
        interval = bootstrap_interval(row.scores) if row.scores is not None else (None, None)
        yield Point(task, row.value, *interval, n=row.n)
        name = f"{task}, without attention less with"
        yield point(name, evidence.change(task, 0), NO_ATTENTION) if n_heads else Point(name, None, absent=NO_ATTENTION)


def _entry(name: str, found: Accuracies | Differences, *place: int) -> Point:
    """One entry of accuracies or differences."""
    return Point(name, *(float(getattr(found, end)[place]) for end in ("mean", "low", "high")), n=int(found.n[place]))


def _made(make: Callable[[], T]) -> T | None:
    """A view, or None where the study lacks its experiment."""
    try:
        return make()
    except ResultsError:
        return None
