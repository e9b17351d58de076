"""Rankings compared: the best n heads of each kept statically, n from none to all, and the needle asked for.

A run has a cell for each ranking, count and prompt; the engine answers those that come to the same once,
so that rankings cost little where they agree. Other rankings, counts, lengths and needles may join a folder later.
Prompts are added look by look until rankings are told apart, or the budget is spent (`deciding`); a look's portions
are its own, so that its cells depend neither on later looks nor on the budget. Of jobs that share the work each look
is a wave, and what the looks before say is read from all their cells.

How it fails: see `analyses.experiment`. Without lm-eval the usual tasks are left out, with a note. A folder in which
a ranking's name, or a needle's, stands for something else is refused with one line. A ranking is told by its order,
which is all that its cells depend on: scores that differ in their last bits are the same ranking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from analyses.experiment.options.needles import arguments_of
from analyses.experiment.options.rankings import GENERAL_TASKS, RankingsConfig
from analyses.experiment.parts import Part, stage
from analyses.experiment.running import Experiment, Progress, result_of
from analyses.heads.answering import Grid, Rankings, answer_all, answering_parts
from analyses.heads.ranking import check_name, ordering
from analyses.heads.sparsification import check_ranking
from analyses.study.benchmarks.tasks import installed, require
from analyses.study.prompts import check_budget
from analyses.study.rankings.ability import counts_of_tasks, measure
from analyses.study.rankings.calibration import calibration_prompts, counts_of
from analyses.study.rankings.candidates import FROM_WEIGHTS, check_names, kinds_of, make_rankings, random_rankings
from analyses.study.rankings.deciding import Decision, schedule
from analyses.study.rankings.fillers import copied_prompts, named
from analyses.study.rankings.report import article_of, rankings_table
from analyses.study.rankings.results import (
    RANDOM,
    RUN_TIME,
    Ability,
    RankingComparison,
    comparison,
    decision_of,
    is_draw,
    keys_of,
    rows_of,
)
from analyses.study.rankings.words import sentences
from hybridlens import niah
from hybridlens.config import LensConfig
from hybridlens.display import Piece, Table
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.results import Cell, CellKey, Folder, Manifest, Run, hash_json
from hybridlens.viz.article import Article
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot


ABILITIES = 4
"""One part in so many of the work on the cells is about what the abilities take."""


WITHOUT_TASKS = (
    f"{' and '.join(GENERAL_TASKS)} were left out: they need lm-eval, which is not installed. Install "
    "hybridlens[benchmarks] and give the same command again: it adds them."
)


class _Compared(NamedTuple):
    """Fields of `Compared`."""

    comparison: RankingComparison
    rankings: Rankings


class Compared(Plotted, _Compared):
    """What a comparison found, and of which rankings."""

    __slots__ = ()

    def summary(self) -> str:
        """What was compared."""
        return self.comparison.summary()

    def table(self) -> Table:
        """A row for each ranking and number of heads kept."""
        return self.comparison.table()

    def view(self) -> tuple[Piece, ...]:
        """Area and heads needed of each ranking."""
        return self.comparison.view()

    def plot(self) -> Plot:
        """Accuracy against heads kept."""
        return self.comparison.plot()


class RankingsRun(Experiment[RankingsConfig, Compared]):
    """Keep the best n heads of each ranking, n from none to all, and see what is left of retrieval and of the rest.

    Args:
        lens: the model, with a tokenizer.
        options: the comparison's.
        weights_hash: digest of the model's weights; None to work it out.
        given: the rankings by name, in the order in which they are shown; None for those that the options name,
            which are made first.

    Raises:
        InputError, UnknownNameError: see `chosen` and the modules that make rankings and prompts; other tasks than the
            usual two, without lm-eval.
    """

    job = "rankings"
    unit = "cell"

    def __init__(
        self,
        lens: HybridLens,
        options: RankingsConfig,
        weights_hash: str | None = None,
        given: Rankings | None = None,
    ) -> None:
        super().__init__(lens, options, weights_hash)
        self.counts, note = counts_of(lens.cfg, options)
        self.notes = () if note is None else (note,)
        self.layers = len(lens.cfg.attention_layers) if options.scope == "model" else 1
        run_time = [n for n in self.counts if n % self.layers == 0]
        if options.run_time and len(run_time) < len(self.counts):
            self.notes += (
                f"{RUN_TIME} keeps equally many heads of each layer, and so was run at "
                f"{', '.join(map(str, run_time))} heads; rankings are compared with it at these counts.",
            )
        counts_of_tasks(options, self.counts[-1])
        self.without_tasks = options.tasks == GENERAL_TASKS and not installed()
        if options.tasks and not self.without_tasks:
            require()
        self.ties: tuple[str, ...] = ()
        if given is None:
            check_names(options)
        self.given = None if given is None else self._chosen(given)
        self.calibration = calibration_prompts(lens, options) if given is None else []
        self.schedule, self.looks = _looks(options)
        self.copied = cache(partial(copied_prompts, lens, options))
        self.copied(0)  # what is wrong with prompts is refused now

    @classmethod
    def waves_of(cls, options: RankingsConfig) -> int:
        """The rankings, then the looks."""
        return 1 + len(_looks(options)[1])

    @classmethod
    def check(cls, options: RankingsConfig, cfg: LensConfig) -> None:
        """See `Experiment`; counts above the heads too."""
        super().check(options, cfg)
        counts_of(cfg, options)

    @classmethod
    def check_memory(cls, options: RankingsConfig, cfg: LensConfig, dtype: str) -> None:
        """See `Experiment`; names of rankings too, before the weights are read."""
        if set(check_names(options)) & set(FROM_WEIGHTS):
            cfg.need_stream_heads(f"ranking heads by {', '.join(FROM_WEIGHTS)}")
        check_budget(options, cfg, dtype)

    def manifest(self) -> Manifest:
        """Rankings, counts, lengths and needles may join later; what a name stands for stays."""
        options = self.options
        named: dict[str, Any] = {} if self.given is None else dict(_orders(self.given))
        for needle in options.hidden:
            rubric = [list(rule) for rule in needle.rubric]
            named[f"the needle {needle.name}"] = [needle.sentence, needle.question, rubric]
        settings = {name: getattr(options, name) for name in ("batch_size", "memory", "precision", "prompts")}
        return self.identity(arguments_of(options), settings, named)

    def expected(self) -> Mapping[CellKey, str]:
        """Known when the rankings are made; no cell is compared before."""
        return {}

    def run(self, folder: Folder, progress: Progress) -> Compared:
        """See `Experiment`."""
        lens, options, given = self.lens, self.options, self.given
        if given is None:
            given = self._made(folder)
        bases: list[CellKey] = []
        cells: dict[CellKey, Cell] = {}
        decision: Decision | None = None
        for look in range(len(self.looks)):
            new, grid = self.grid(given, look)
            store = Run(folder, _hashes(grid))
            folder.agree(_orders(given))
            told = partial(_further, progress, len(cells))
            answered = answer_all(lens, store, grid, self._rubrics(look), options, told, rankings=given)
            cells |= {cell.key: cell for cell in answered}
            bases += new
            decision = self._decision(cells, bases, given)
            if not _goes_on(decision, cells, given, self.counts[-1]):
                break
        assert decision is not None  # there is a first look
        depends = [decision.precision, decision.look, list(decision.names), decision.difference.tolist()]
        folder.keep("decision.json", depends, decision)
        ability = self._ability(folder, given)
        left_out = (WITHOUT_TASKS,) if self.without_tasks and not ability.tasks else ()
        found = comparison(
            cells, bases, given, self.counts, self.layers, options.run_time,
            options.phase, decision, ability, (*self.notes, *left_out, *self.ties),
        )  # fmt: skip
        return Compared(found, given)

    def parts(self, folder: Folder, wave: int) -> Sequence[Part]:
        """See `Experiment`: the rankings, then portions of each look's cells, and with the first the abilities.

        A look that those before make needless has no part; nor one before which cells are missing, which `run` makes.
        """
        lens, options = self.lens, self.options
        if wave == 0:
            kinds = () if self.given is not None else kinds_of(options)
            return [stage(", ".join(kind), partial(self._made, folder, kind)) for kind in kinds]
        given = self.given or self._made(folder)
        look = wave - 1
        if look and not self._open_after(folder, given, look - 1):
            return []
        _, grid = self.grid(given, look)
        store = Run(folder, _hashes(grid))
        portions = answering_parts(lens, store, grid, self._rubrics(look), options, given)
        if look:
            return portions
        tokens = sum(portion.size for portion in portions)
        return [stage("abilities", partial(self._ability, folder, given), tokens / ABILITIES), *portions]

    def _open_after(self, folder: Folder, given: Rankings, look: int) -> bool:
        """Whether the looks up to one are whole, here and beside, and leave something open."""
        bases: list[CellKey] = []
        grid: dict[CellKey, niah.Prompt] = {}
        for at in range(look + 1):
            new, cells = self.grid(given, at)
            bases += new
            grid |= cells
        hashes = _hashes(grid)
        near = {cell.key: cell for cell in Run(folder, hashes).cells}
        every = {**folder.elsewhere, **folder.beside, **near}
        found = {key: every[key] for key, prompt in hashes.items() if key in every and every[key].prompt_hash == prompt}
        return len(found) == len(grid) and _goes_on(self._decision(found, bases, given), found, given, self.counts[-1])

    def _decision(self, cells: Mapping[CellKey, Cell], bases: Sequence[CellKey], given: Rankings) -> Decision:
        options = self.options
        rule = options.precision, self.schedule
        return decision_of(cells, bases, given, self.counts, self.layers, options.run_time, *rule)

    def _made(self, folder: Folder, names: Sequence[str] | None = None) -> Rankings:
        """The rankings that the options name, checked, and random ones; of some names, these alone and unchecked."""
        lens, options = self.lens, self.options
        made = make_rankings(lens, options, self.calibration, folder, names)
        return made if names is not None else self._chosen(made)

    def _chosen(self, rankings: Rankings) -> Rankings:
        """Those that are compared; `ties` becomes what is to be said of equal scores."""
        found, self.ties = chosen(self.lens, rankings, self.options)
        return found

    def _copies(self, look: int) -> range:
        """The copies of the grid that a look adds."""
        done, first = (self.looks[look - 1] if look else 0), self.looks[0]
        return range(done // first, self.looks[look] // first)

    def _rubrics(self, look: int) -> dict[tuple[str, str], niah.Rubric]:
        hidden = self.options.hidden
        return {(named(one.name, copy), "clean"): one.rubric for copy in self._copies(look) for one in hidden}

    def _ability(self, folder: Folder, given: Rankings) -> Ability:
        """The abilities; without lm-eval those stored with their tasks, else without."""
        options, name = self.options, "ability.json"
        if self.without_tasks and not folder.made_of(name, self._ability_depends(given, options)):
            options = options.but(tasks=())
        made = partial(measure, self.lens, given, self.counts, options)
        return folder.take(name, self._ability_depends(given, options), Ability.load, made)

    def _ability_depends(self, given: Rankings, options: RankingsConfig) -> list[Any]:
        names = ("scope", "seed", "filler_rows", "filler_length", "tasks", "task_counts", "task_limit")
        depends: list[Any] = [{name: getattr(options, name) for name in names}, list(self.counts)]
        return [*depends, list(rows_of(given, options.run_time)), {name: one.order for name, one in given.items()}]

    def grid(self, given: Rankings, look: int = 0) -> tuple[list[CellKey], Grid]:
        """A cell at each prompt that a look adds, and every cell of every row with its prompt."""
        options = self.options
        phase = "prefill" if options.phase == "both" else "generation"
        bases = {
            CellKey(options.model, phase, 0, p.length, p.depth, False, needle=needle, scope=options.scope): p
            for copy in self._copies(look)
            for needle, made in self.copied(copy).items()
            for p in made
        }
        grid = {
            key: prompt
            for name in (*((RUN_TIME,) if options.run_time else ()), *given)
            for base, prompt in bases.items()
            for key in keys_of(name, self.counts, base, self.layers).values()
        }
        return list(bases), grid

    def page(self, result: Compared, record: Mapping[str, Any]) -> Article:
        """See `Experiment`."""
        return article_of(result.comparison, result.rankings, record)

    def table(self, result: Compared) -> Iterable[str]:
        """See `Experiment`."""
        return [rankings_table(result.comparison), *sentences(result.comparison)]


def compare(
    lens: HybridLens,
    rankings: Rankings,
    config: RankingsConfig,
    folder: Path | None = None,
    weights_hash: str | None = None,
    progress: Progress | None = None,
) -> RankingComparison:
    """The comparison of rankings that are given, kept in `folder`, or nowhere; see `RankingsRun` and `result_of`."""
    return result_of(RankingsRun(lens, config, weights_hash, rankings), folder, progress).comparison


def chosen(lens: HybridLens, rankings: Rankings, config: RankingsConfig) -> tuple[Rankings, tuple[str, ...]]:
    """The rankings that are compared, checked, and random draws after them; and what is to be said of equal scores.

    A ranking by which all heads score the same is no order, and is left out.

    Raises:
        InputError: no ranking that orders heads, one without a name or of another model's heads, or a name that is
            taken.
        UnknownNameError: a ranking is wanted that is not given.
    """
    wanted = tuple(rankings) if config.rankings is None else config.rankings
    for name in wanted:
        check_name(name, rankings, "was not given")
    found = {name: ranking for name, ranking in rankings.items() if name in wanted}
    for name, ranking in found.items():
        if not name or name in (RUN_TIME, RANDOM):
            raise InputError(f"a ranking is named {name!r}, a name that has another meaning here; give it another")
        check_ranking(lens, ranking)
    found, ties = ordering(found)
    if not found and ties and not config.run_time:
        raise InputError(f"there is no ranking to compare: {' '.join(ties)}")
    if config.draws and not any(map(is_draw, found)):
        found |= random_rankings(lens, config.draws, config.seed)
    if not found and not config.run_time:
        raise InputError("no ranking was given, expected at least one to compare")
    return found, ties


def _looks(options: RankingsConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The schedule of looks, and those of them that the budget allows."""
    planned = schedule(options.first, options.precision)
    return planned, tuple(n for n in planned if n <= max(options.prompts, options.first))


def _goes_on(decision: Decision, cells: Mapping[CellKey, Cell], given: Rankings, most: int) -> bool:
    """Whether another look is wanted: something is open, and the untouched model answers at all."""
    return bool(decision.open) and any(
        cell.score for cell in cells.values() if cell.ranking in given and cell.k == most
    )


def _further(progress: Progress, before: int, done: int, total: int) -> None:
    """Tell of one look's cells as of those after others."""
    progress(before + done, before + total)


def _hashes(grid: Grid) -> dict[CellKey, str]:
    return {key: prompt.hash for key, prompt in grid.items()}


def _orders(rankings: Rankings) -> dict[str, str]:
    """A digest of the order of each ranking's heads, 16 hex digits."""
    return {f"the ranking {name}": hash_json(one.order)[:16] for name, one in rankings.items()}
