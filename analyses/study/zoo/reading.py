"""What the zoo takes from each finished experiment but studies: numbers with their intervals, from stored files alone.

Values read off weights, and single places of a map, have no interval. How it fails: `ResultsError` for a folder whose
files are missing or were changed since; what a model has not is a point that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from analyses.circuits.results import HeadCircuits
from analyses.kv_cache.crossover_results import Crossover
from analyses.kv_cache.following import CONVOLUTION, EVERYTHING, KEYS_AND_VALUES, RECURRENT, following, together, whole
from analyses.patching.effects import strongest
from analyses.patching.report import MEMORIES
from analyses.patching.results import PatchResult
from analyses.states.knocked import Knockout
from analyses.states.probe import StateProbes
from analyses.states.sections import best_probe
from analyses.study.capacity.results import CONDITIONS, Capacity
from analyses.study.points import Point, absent, measured
from analyses.study.rankings.curves import Value
from analyses.study.training_curves.measuring import strengths_of
from hybridlens.errors import ResultsError
from hybridlens.results.store import read_artefact, read_run_record

T = TypeVar("T")

REGIONS = {None: "", True: ", needle in the window", False: ", needle beyond the window"}
"""Part of a crossover's prompts -> how the names of its points end."""

MEMORY_POINTS = tuple(f"follows {memory.words}" for memory in (EVERYTHING, KEYS_AND_VALUES, RECURRENT, CONVOLUTION))
"""How often answers tell the needle of the prompt that a memory comes from, against all others."""

TOGETHER = "follows no single memory"
"""How often answers tell the needle that was read, and of single memories that are exchanged none decides it."""

KEPT = "metric kept without the needle's writes"
"""Of a quarter of the recurrent heads, those that hold most of it."""

READ_OFF = "needle read off a state"

STATE_BYTES, KEY_BYTES = "bytes of states and convolutions", "bytes of keys and values a token"


def held(condition: str, facts: int | None = None) -> str:
    """The name of facts held: of one number of facts, or of that at which most are."""
    return f"facts held at most, {condition}" if facts is None else f"facts held of {facts}, {condition}"


def of_capacity(folder: Path) -> list[Point]:
    """Facts held of each number, with attention and without, and the bytes of memory that there is."""
    found = _read(folder, "capacity.json", Capacity.load)
    points = [
        Point(KEY_BYTES, float(found.memory.per_token)),
        Point(STATE_BYTES, float(found.memory.states + found.memory.convolutions)),
        Point("bytes of keys and values of the prompt", float(found.memory.keys)),
    ]
    for condition in CONDITIONS:
        if condition not in found.conditions:
            points += absent([held(condition)], "the model has no attention to take away")
            continue
        points += [_value(held(condition, one.facts), one.held, one.n) for one in found.curve(condition)]
        most = found.most_held(condition)
        points.append(_value(held(condition), most.held, most.n))
    return points


def of_crossover(folder: Path) -> list[Point]:
    """Which memory answers follow, over all prompts, and where its needle is in the window, and beyond it."""
    found = _read(folder, "crossover.json", Crossover.load)
    has = {memory.words: memory for memory in whole(found)}
    points: list[Point] = []
    for inside, where in REGIONS.items():
        if inside is not None and inside not in found.regions:
            continue
        for name in MEMORY_POINTS:
            memory = has.get(name.removeprefix("follows "))
            if memory is None:
                points += absent([name + where], "there is no such memory, or no other to set it against")
                continue
            share = following(found, memory, inside)
            points.append(measured(name + where, share.memory.mean, share.memory.interval, share.n))
            points.append(Point(f"{name}{where}, shift in nats", share.shift, n=share.n))
        if len(has) == 1:
            points += absent([TOGETHER + where], "there is one memory alone")
            continue
        joint = together(found, inside)
        points.append(measured(TOGETHER + where, joint.mean, joint.interval, following(found, EVERYTHING, inside).n))
    return points


def of_patch(folder: Path) -> list[Point]:
    """The strongest patch of each memory, as a share of the difference of the two runs."""
    sweeps = dict(_each(folder, "sweeps/", PatchResult.load))
    points: list[Point] = []
    for memory, names in MEMORIES.items():
        places = [strongest(sweeps[f"{name}.safetensors"])[0] for name in names if f"{name}.safetensors" in sweeps]
        if not places:
            points += absent([f"patched {memory}"], f"the model has no {memory}")
            continue
        best = max(places, key=lambda place: place.effect)
        points.append(Point(f"patched {memory}", best.effect, where=best.words))
    return points


def of_circuits(folder: Path) -> list[Point]:
    """Induction and retrieval strength of the strongest head, and the convolution's tap that keys compose with."""
    found = _read(folder, "circuits.safetensors", HeadCircuits.load)
    return strengths_of(found)


def of_states(folder: Path) -> list[Point]:
    """Whether the answer needs what recurrent heads wrote of the needle, and whether it can be read off a state."""
    knocked = dict(_each(folder, "knockouts/", Knockout.load))
    writes = [one for one in knocked.values() if one.what == "write"]
    points: list[Point] = []
    if writes:
        one = max(writes, key=lambda each: len(each.heads))
        kept = one.value / one.untouched if one.untouched else None
        points += [
            Point(KEPT, kept, absent="the untouched metric is 0" if kept is None else "", where=one.metric),
            Point(f"{KEPT}, p", float(one.p_value), n=len(one.random)),
        ]
    else:
        points += absent([KEPT, f"{KEPT}, p"], "no head was silenced")
    probes = read_artefact(folder, "probes.safetensors", StateProbes.load)
    if probes is None:
        return [*points, *absent([READ_OFF], "no probe was made")]
    best = best_probe(probes)
    return [
        *points,
        Point(READ_OFF, best.accuracy, n=len(probes.positions), where=best.where),
        Point(f"{READ_OFF}, labels shuffled", best.shuffled, n=len(probes.positions)),
        Point(f"{READ_OFF}, p", best.p),
    ]


def _value(name: str, found: Value, n: int) -> Point:
    return Point(name, found.value, found.low, found.high, n)


def _read(folder: Path, name: str, load: Callable[[Path], T]) -> T:
    """An artefact that has to be there."""
    found = read_artefact(folder, name, load)
    if found is None:
        raise ResultsError(f"{folder} holds no {name}; run its command to the end")
    return found


def _each(folder: Path, within: str, load: Callable[[Path], T]) -> Iterator[tuple[str, T]]:
    """The artefacts of a folder within a run's, by their files' names."""
    for name in read_run_record(folder).artefacts:
        if name.startswith(within):
            yield name.removeprefix(within), _read(folder, name, load)
