"""A study: the paper's experiments over one model, answered by the engine into one folder, and what they say.

`StudyRun` answers every cell that the wanted experiments need and the folder lacks, runs the benchmarks and judges the
paper's claims. Each experiment is also a function here (`fig2`, `table1`, …) that takes a lens and returns its typed
result, with or without a folder.

How it fails: see `analyses.experiment`. A study that was killed goes on with the same command, and loses the
portion in hand (`analyses.heads.portions`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, TypeVar

from analyses.experiment.options.needles import arguments_of
from analyses.experiment.options.study import StudyConfig
from analyses.experiment.parts import Part
from analyses.experiment.running import Experiment, Progress, result_of
from analyses.heads.answering import answer_all, answering_parts
from analyses.study import views
from analyses.study.benchmarks.running import BenchmarkRun
from analyses.study.evidence import ModelFacts
from analyses.study.experiments import Study, check_study, plan, rubrics_of
from analyses.study.prompts import check_budget
from analyses.study.report import Judged, page_of, score_table
from analyses.study.under_both import splits, under_both
from analyses.study.verdict import verdicts
from analyses.study.verdict_section import verdict_table
from hybridlens.config import LensConfig
from hybridlens.display import many
from hybridlens.engine import Tally
from hybridlens.model import HybridLens
from hybridlens.results import Cell, CellKey, Folder, Manifest, Run
from hybridlens.viz.article import Article

T = TypeVar("T")


class StudyRun(Experiment[StudyConfig, Judged]):
    """The paper's experiments, and what they say of its claims.

    Raises:
        InputError: see `analyses.study.experiments.plan` and `analyses.study.benchmarks.running`.
    """

    job = "reproduce"
    unit = "cell"
    of_heads = False

    def __init__(self, lens: HybridLens, options: StudyConfig, weights_hash: str | None = None) -> None:
        super().__init__(lens, options, weights_hash)
        base = views.Base(lens.cfg.n_heads, options.semantics, options.boundary)
        self.study = plan(lens, options) if options.wanted != () else Study({}, (), base, ())
        benchmarks = options.benchmarks
        self.benchmarks = None if benchmarks is None else BenchmarkRun(lens, benchmarks, self.weights_hash)

    @classmethod
    def check(cls, options: StudyConfig, cfg: LensConfig) -> None:
        """See `Experiment`; experiments that the model does not have too."""
        super().check(options, cfg)
        if options.wanted != () or options.benchmarks is None:
            check_study(options, cfg)
        if options.benchmarks is not None:
            BenchmarkRun.check(options.benchmarks, cfg)

    @classmethod
    def check_memory(cls, options: StudyConfig, cfg: LensConfig, dtype: str) -> None:
        """See `Experiment`."""
        check_budget(options, cfg, dtype)

    def manifest(self) -> Manifest:
        """Experiments, lengths, k's and needles may be added later; what a name stands for may not change."""
        options, study = self.options, self.study
        named: dict[str, Any] = {}
        for name, semantics in dict.fromkeys((key.needle, key.semantics) for key in study.cells):
            needle = options.needle_of(name, semantics)
            rubric = [list(rule) for rule in needle.rubric]
            named[f"the needle {name} ({semantics})"] = [needle.sentence, needle.question, rubric]
        if self.benchmarks is not None:
            named |= self.benchmarks.manifest().growing or {}
        settings = {
            "experiments": list(study.experiments),
            "lengths": list(study.base.lengths),
            **{name: getattr(options, name) for name in ("semantics", "boundary", "batch_size", "memory")},
        }
        return self.identity(arguments_of(options), settings, named)

    def expected(self) -> Mapping[CellKey, str]:
        """See `Experiment`."""
        return {key: prompt.hash for key, prompt in self.study.cells.items()}

    def run(self, folder: Folder, progress: Progress) -> Judged:
        """See `Experiment`."""
        lens, options, study = self.lens, self.options, self.study
        notes, costs = list(study.notes), list[Tally]()
        if folder.complete and set(study.experiments) - asked_for(folder.record):
            folder.begin()  # one whose cells others have left is part of the report all the same
        store = Run(folder, self.expected())
        pairs = 0 if self.benchmarks is None else self.benchmarks.pairs
        total = len(study.cells) + pairs
        cells = answer_all(
            lens, store, study.cells, rubrics_of(options, study.cells), options,
            lambda done, _: progress(done, total), costs.append,
        )  # fmt: skip
        if costs:
            notes.append(cost_words(sum(costs, Tally())))
        rows = ()
        if self.benchmarks is not None:
            rows = self.benchmarks.run(folder, lambda done, _: progress(len(cells) + done, total)).rows
        beside = bool(lens.cfg.state_layers)
        facts = ModelFacts(options.model, lens.cfg.family, lens.cfg.window, study.base, beside)
        judged = verdicts(cells, rows, facts)
        return Judged(study, cells, rows, judged, notes, under_both(cells, judged, facts))

    def parts(self, folder: Folder, wave: int) -> Sequence[Part]:
        """See `Experiment`: portions of the cells, and each task and k of the benchmarks."""
        options, cells = self.options, self.study.cells
        store = Run(folder, self.expected())
        made = answering_parts(self.lens, store, cells, rubrics_of(options, cells), options)
        return made if self.benchmarks is None else [*made, *self.benchmarks.parts(folder, wave)]

    def page(self, result: Judged, record: Mapping[str, Any]) -> Article:
        """See `Experiment`."""
        return page_of(result, record, asked_for(record) | set(result.study.experiments))

    def table(self, result: Judged) -> Iterable[str]:
        """See `Experiment`."""
        scores = [] if self.benchmarks is None else [score_table(result.benchmarks, self.options.model)]
        parted = [one.summary() for one in splits(result.cells, result.study.base)] if result.both else []
        left = [note for note in result.notes if note.startswith("left out: ")]
        return [*scores, *parted, verdict_table(result.verdicts, self.options.model, result.both), *left]


def asked_for(record: Mapping[str, Any]) -> set[str]:
    """The experiments that the sessions of a record asked for."""
    return {name for session in record["sessions"] for name in session["settings"].get("experiments") or ()}


def cost_words(cost: Tally) -> str:
    """One sentence about what reading the prompts of a session cost."""
    if not cost.distinct:
        return "Nothing was left to read."
    dropped = many(cost.dropped, "snapshot was", "snapshots were")
    again = f" For want of memory {dropped} dropped and read again." if cost.dropped else ""
    return (
        "What prompts begin with alike was read once for each treatment of the heads: "
        f"{many(cost.prefilled, 'token was', 'tokens were')} read, {cost.prefilled / cost.distinct:.3f} times as many "
        f"as are distinct.{again}"
    )


def answers(
    lens: HybridLens,
    experiment: str,
    folder: Path | None = None,
    model: str = "model",
    weights_hash: str | None = None,
    **options: Any,
) -> tuple[list[Cell], views.Base]:
    """The cells of one experiment, answered, and what its view holds fixed.

    Args:
        lens: the model, with a tokenizer.
        experiment: a name of `analyses.study.experiments.EXPERIMENTS`.
        folder: where to keep the cells, and to go on from; None to keep none.
        model: what results call the model.
        weights_hash: digest of its weights; None to work it out.
        options: those of `StudyConfig`.

    Raises:
        InputError, ResultsError: see `analyses.experiment`.
    """
    config = StudyConfig(model=model, experiments=(experiment,), **options)
    found = result_of(StudyRun(lens, config, weights_hash), folder)
    return found.cells, found.study.base


def _asked(experiment: str, view: Callable[[list[Cell], views.Base], T]) -> Callable[Concatenate[HybridLens, ...], T]:
    """A function that takes what `answers` takes but the experiment, and gives this one's view."""

    def ask(lens: HybridLens, **options: Any) -> T:
        return view(*answers(lens, experiment, **options))

    ask.__doc__ = f"{view.__doc__}\n\nOptions are those of `answers`."
    return ask


# Each experiment as a function: its typed result.
fig2 = _asked("fig2", views.fig2)
jrt = _asked("fig3-jrt", views.jrt)
table1 = _asked("table1", views.table1)
maps = _asked("maps", views.maps)
needles = _asked("needles", views.needles)
scopes = _asked("scope", views.scopes)
boundaries = _asked("boundary", views.boundaries)
semantics = _asked("semantics", views.semantics_difference)
