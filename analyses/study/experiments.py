"""Which cells each experiment of the paper needs, and the prompts they are made from.

An experiment is a row of data, `EXPERIMENTS`; a study is the union of the cells of those that are wanted, each
cell once. Experiments that hold a cell in common share it, as its prompt is the same in all (`analyses.study.grids`).

How it fails: an experiment that the model, its semantics or its context rule out raises `InputError` where it was
named, and is left out with a note where all were asked for. Everything here is known before a model is loaded but
for the prompts, which need its tokenizer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from analyses.experiment.options.needles import PAPER, VERSIONS
from analyses.experiment.options.study import StudyConfig
from analyses.heads.entropy import SEMANTICS, check_semantics
from analyses.study.grids import Cells, Grids, LackingError
from analyses.study.prompts import check_heads
from analyses.study.views import ANSWERINGS, READINGS, Base
from hybridlens import niah
from hybridlens.config import LensConfig
from hybridlens.decoding import BOUNDARIES
from hybridlens.display import Displayed, Table, listed, many
from hybridlens.errors import InputError, UnknownNameError, closest
from hybridlens.model import HybridLens
from hybridlens.results import CellKey

JRT_KS = (0, 1, 2)
"""Heads kept beside all in figure 3."""

NOTHING_TO_SILENCE = "no attention: nothing to silence, so that every prompt is answered by the model as it is (k = 0)"
"""What becomes of sweeps over the heads kept in a model without any."""

THEIRS = ("recurrentgemma", "jamba")
"""Families of the authors' models."""

MANIPULATED = ("recurrentgemma",)
"""Those in which their code manipulates attention weights; on Jamba it sets attributes that nothing reads. A family of
which they say nothing is treated as these are."""


class Experiment(NamedTuple):
    """One experiment.

    Attributes:
        name: on the command line.
        title: what a report calls it.
        phases: the versions of top-k that it has.
        published: of the authors' families, those that have it under published semantics, as then have all others;
            None for all.
        cells: its cells, in the order they are run.
        without: what it lacks in a model without attention; None where it asks something there too.
    """

    name: str
    title: str
    phases: tuple[str, ...]
    published: tuple[str, ...] | None
    cells: Callable[[Grids, Sequence[str]], Cells]
    without: str | None = None


@dataclass(frozen=True)
class Study(Displayed):
    """What a study runs.

    Attributes:
        cells: every cell and its prompt, in the order they are run.
        experiments: names of those that run.
        base: what the study holds fixed, for the views.
        notes: what was chosen or left out, one sentence each.
    """

    cells: dict[CellKey, niah.Prompt]
    experiments: tuple[str, ...]
    base: Base
    notes: tuple[str, ...]

    def summary(self) -> str:
        """How many cells of which experiments."""
        return f"{many(len(self.cells), 'cell')} of {listed(self.experiments, 8)}"

    def table(self) -> Table:
        """A row a cell, in the order they are run."""
        return Table(CellKey._fields, list(self.cells))


def _few(n_heads: int, *ks: int) -> list[int]:
    """Those k that a model of `n_heads` heads has, and all its heads, ascending."""
    return sorted({k for k in (*ks, n_heads) if k <= n_heads})


def _modes(n_heads: int) -> list[dict[str, Any]]:
    """The combinations of table 1."""
    return [
        {"phase": "generation", "k": n_heads, "reading": reading, "answering": answering}
        for reading in READINGS
        for answering in ANSWERINGS
    ]


def _sweep(ks: Iterable[int], phases: Sequence[str] = ("generation",), **fields: Any) -> list[dict[str, Any]]:
    """Top-k at every k in each of the phases."""
    return [{"phase": phase, "k": k, **fields} for phase in phases for k in ks]


def _fig2(grids: Grids, phases: Sequence[str]) -> Cells:
    return grids.cells(grids.prompts(), _sweep(grids.ks, phases))


def _jrt(grids: Grids, phases: Sequence[str]) -> Cells:
    pairs, ks = grids.jrt_lengths(), _few(grids.n_heads, *JRT_KS)
    once, twice = [first for first, _ in pairs], [second for _, second in pairs]
    yield from grids.cells(grids.prompts(), _sweep(ks, phases), lengths=once)
    chosen = ", ".join(f"{a} → {b}" for a, b in pairs)
    grids.notes.append(f"fig3-jrt: lengths read once → read twice, with equal contexts: {chosen} tokens.")
    if len(pairs) < len(grids.lengths):
        left = ", ".join(str(length) for length in grids.lengths if length not in once)
        grids.notes.append(f"fig3-jrt: {left} tokens read twice are more than the model's context; left out.")
    yield from grids.cells(grids.prompts(jrt=True, lengths=twice), _sweep(ks, phases, jrt=True))


def _table1(grids: Grids, phases: Sequence[str]) -> Cells:
    if grids.config.semantics == "published":
        _as_theirs(grids, "table1")
    return grids.cells(grids.prompts(), _modes(grids.n_heads))


def _as_theirs(grids: Grids, name: str) -> None:
    """Note, in an experiment's section, which model's manipulations are published ones for a model not of theirs."""
    family = grids.lens.cfg.family
    if family not in THEIRS:
        theirs = " and ".join(MANIPULATED)
        grids.notes.append(
            f"{name}: published manipulations are those of {theirs} models; the authors ran no {family}."
        )


def _maps(grids: Grids, phases: Sequence[str]) -> Cells:
    yield from _fig2(grids, phases)
    if lacking(EXPERIMENTS["table1"], grids.config.semantics, grids.lens.cfg) is None:
        yield from _table1(grids, phases)


def _needles(grids: Grids, phases: Sequence[str]) -> Cells:
    ks = _few(grids.n_heads, *JRT_KS, grids.n_heads // 2)
    for needle in grids.config.hidden:
        lengths = None if needle.name == PAPER else grids.some_lengths
        yield from grids.coarse(grids.prompts(needle.name, lengths=lengths), _sweep(ks, phases, needle=needle.name))


def _scope(grids: Grids, phases: Sequence[str]) -> Cells:
    for scope in ("layer", "model"):
        yield from grids.coarse(grids.prompts(), _sweep(grids.ks, phases, scope=scope))


def _boundary(grids: Grids, phases: Sequence[str]) -> Cells:
    own = grids.config.boundary
    for boundary in (own, *(name for name in BOUNDARIES if name != own)):
        yield from grids.coarse(grids.prompts(), _sweep(grids.ks, phases, boundary=boundary))


def _semantics(grids: Grids, phases: Sequence[str]) -> Cells:
    own = grids.config.semantics
    other = next(name for name in SEMANTICS if name != own)
    try:
        check_semantics(other, grids.lens.dtype)
    except InputError as error:
        raise LackingError(f"semantics compares {own} with {other}: {error}") from error
    conditions, lengths = _sweep(grids.ks, phases), grids.other_lengths(other)
    if lacking(EXPERIMENTS["table1"], "published", grids.lens.cfg) is None:
        conditions += _modes(grids.n_heads)
        _as_theirs(grids, "semantics")
    elif not grids.n_heads:
        grids.notes.append("semantics: no attention, so that the two differ in their prompts alone.")
    else:
        grids.notes.append(
            f"semantics: without table 1, which has no published semantics in {grids.lens.cfg.family} models."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", niah.RepeatedPromptWarning)  # `apart` leaves them out
        ours, theirs = grids.apart(grids.prompts(lengths=lengths), grids.prompts(semantics=other, lengths=lengths))
    places = sum(depth is not None for _, depth in ours)
    grids.notes.append(
        f"semantics: {many(places, 'prompt')} of {', '.join(map(str, lengths))} tokens: lengths that both builders can "
        "make, and depths at which each of them makes another prompt."
    )
    yield from grids.cells(ours, conditions)
    yield from grids.cells(theirs, ({**condition, "semantics": other} for condition in conditions))


EXPERIMENTS: Mapping[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment("fig2", "Accuracy against heads kept (figure 2)", VERSIONS, None, _fig2),
        Experiment("fig3-jrt", "Just read twice (figure 3)", ("generation",), None, _jrt),
        Experiment("table1", "Manipulated attention weights (table 1)", ("generation",), MANIPULATED, _table1,
                   "no weights to manipulate"),
        Experiment("maps", "Retrieval maps (figures 4 to 7 and 10)", VERSIONS, None, _maps),
        Experiment("needles", "Several needles", ("generation",), None, _needles),
        Experiment("scope", "Heads that compete in their layer, or in the model", ("generation",), (), _scope,
                   "no heads that compete"),
        Experiment("boundary", "Where generation begins", ("generation",), None, _boundary,
                   "nothing to silence from either boundary on"),
        Experiment("semantics", "Clean and published semantics", ("generation",), None, _semantics),
    )
}  # fmt: skip
"""The experiments by name, in the order in which their cells are run."""


def lacking(experiment: Experiment, semantics: str, cfg: LensConfig) -> str | None:
    """Why a model has no such experiment under these semantics, and how to mend it if it can be; None where it has."""
    family = cfg.family
    if experiment.without is not None and not cfg.attention_layers:
        return f"{experiment.name} has nothing to ask of a model without attention: {experiment.without}"
    if semantics != "published" or experiment.published is None or family in experiment.published:
        return None
    if experiment.published and family not in THEIRS:
        return None
    where = f"in {family} models" if experiment.published else "in any model"
    return (
        f"{experiment.name} has no published semantics {where}: the authors' code does not do it there; "
        "use --semantics clean"
    )


def check_study(config: StudyConfig, cfg: LensConfig) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Which experiments run on a model, with which phases, as far as its sizes tell.

    Args:
        config: the study's.
        cfg: the model's sizes; no weights are needed.

    Returns:
        name -> phases; and a note for each experiment left out.

    Raises:
        UnknownNameError: an experiment does not exist.
        InputError: one is named twice; one that was named lacks a phase, or the semantics in this family; none is
            left; or k is out of range.
    """
    check_heads(config.heads, cfg.n_heads, config.model)
    names = tuple(EXPERIMENTS) if config.wanted is None else config.wanted
    for name in names:
        if name not in EXPERIMENTS:
            raise UnknownNameError(
                f"experiment {name!r} does not exist{closest(name, EXPERIMENTS)}; "
                f"expected one of {', '.join(EXPERIMENTS)}"
            )
        if names.count(name) > 1:
            raise InputError(f"experiment {name} is named more than once; name each once")
    running: dict[str, tuple[str, ...]] = {}
    notes: list[str] = [] if cfg.attention_layers else [f"left out: {NOTHING_TO_SILENCE}"]
    for name in sorted(names, key=list(EXPERIMENTS).index):
        experiment = EXPERIMENTS[name]
        asked = experiment.phases if config.phases is None else config.phases
        without = [phase for phase in asked if phase not in experiment.phases]
        has = tuple(phase for phase in experiment.phases if phase in asked)
        reason = lacking(experiment, config.semantics, cfg)
        if without and (config.wanted is not None or not has):
            reason = f"{name} has no {without[0]} version; use --phase {experiment.phases[0]}"
        if reason is None:
            running[name] = has if cfg.attention_layers else has[:1]
        elif config.wanted is not None:
            raise InputError(reason)
        else:
            notes.append(f"left out: {reason}")
    if not names:
        raise InputError(f"no experiment is named, expected some of {', '.join(EXPERIMENTS)}")
    if not running:
        raise InputError(f"no experiment is left to run: {'; '.join(notes)}")
    return running, tuple(notes)


def plan(lens: HybridLens, config: StudyConfig) -> Study:
    """Everything that a study runs.

    Args:
        lens: the model, with a tokenizer.
        config: the study's.

    Raises:
        InputError: see `check_study` and `analyses.study.prompts.prompts_of`; a needle that does not fit the grid.
        UnknownNameError: an experiment does not exist.
    """
    phases, left = check_study(config, lens.cfg)
    grids, notes = Grids(lens, config), list(left)
    cells: dict[CellKey, niah.Prompt] = {}
    for name in tuple(phases):
        try:
            cells |= dict(EXPERIMENTS[name].cells(grids, phases[name]))
        except LackingError as error:
            if config.wanted is not None:
                raise
            notes.append(f"left out: {error}")
            del phases[name]
    pairs = grids.jrt_lengths() if "fig3-jrt" in phases else ()
    base = Base(lens.cfg.n_heads, config.semantics, config.boundary, jrt_lengths=pairs, lengths=grids.lengths)
    return Study(cells, tuple(phases), base, (*notes, *grids.notes))


def rubrics_of(config: StudyConfig, keys: Iterable[CellKey]) -> dict[tuple[str, str], niah.Rubric]:
    """The rubrics that grade cells, by the needle's name and semantics."""
    pairs = dict.fromkeys((key.needle, key.semantics) for key in keys)
    return {(name, semantics): config.needle_of(name, semantics).rubric for name, semantics in pairs}
