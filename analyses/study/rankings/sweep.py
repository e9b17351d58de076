"""Rankings compared: the best n heads of each kept statically, n from none to all, and the needle asked for.

`plan` makes the cells, one for each ranking, count and prompt; the engine answers those that come to the same once,
so that rankings cost little where they agree. Other rankings, counts, lengths and needles may join a folder later.

How it fails: see `analyses.experiment`. A folder in which a ranking's name, or a needle's, stands for something else
is refused with one line. A ranking is told by its order, which is all that its cells depend on: scores that differ in
their last bits are the same ranking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from analyses.experiment.options.needles import arguments_of
from analyses.experiment.options.rankings import RankingsConfig
from analyses.experiment.running import Experiment, Progress, quiet, result_of
from analyses.heads.answering import Grid, answer_all
from analyses.heads.ranking import HeadRanking
from analyses.heads.sparsification import check_ranking
from analyses.study.prompts import check_budget
from analyses.study.rankings.calibration import calibration_prompts, counts_of, judging_prompts
from analyses.study.rankings.candidates import random_rankings
from analyses.study.rankings.general import counts_of_tasks, measure
from analyses.study.rankings.making import check_names, make_rankings
from analyses.study.rankings.report import article_of, rankings_table
from analyses.study.rankings.results import (
    RANDOM,
    RUN_TIME,
    Ability,
    RankingComparison,
    comparison,
    is_draw,
    keys_of,
    rows_of,
)
from analyses.study.rankings.words import sentences
from hybridlens import niah
from hybridlens.config import LensConfig
from hybridlens.errors import InputError, UnknownNameError, closest
from hybridlens.model import HybridLens
from hybridlens.results import CellKey, Folder, Manifest, Run, hash_json
from hybridlens.viz.article import Article

Rankings = Mapping[str, HeadRanking]


class Plan(NamedTuple):
    """What a comparison runs."""

    rankings: Mapping[str, HeadRanking]
    """Those wanted, and random draws, by name."""
    counts: tuple[int, ...]
    """Heads kept, from none to all."""
    layers: int
    """Attention layers that share a count."""
    bases: tuple[CellKey, ...]
    """A cell at each prompt."""
    grid: Grid
    """Every cell and its prompt."""
    notes: tuple[str, ...]


class Compared(NamedTuple):
    """What a comparison found, and of which rankings."""

    comparison: RankingComparison
    rankings: Rankings


class RankingsRun(Experiment[RankingsConfig, Compared]):
    """Keep the best n heads of each ranking, n from none to all, and see what is left of retrieval and of the rest.

    Args:
        lens: the model, with a tokenizer.
        options: the comparison's.
        weights_hash: digest of the model's weights; None to work it out.
        given: the rankings by name, in the order in which they are shown; None for those that the options name,
            which are made first.

    Raises:
        InputError, UnknownNameError: see `plan`.
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
        self.counts, self.note = counts_of(lens.cfg, options)
        counts_of_tasks(options, self.counts[-1])
        if given is None:
            check_names(options)
        self.given = None if given is None else chosen(lens, given, options)
        self.calibration = calibration_prompts(lens, options) if given is None else []
        self.prompts = judging_prompts(lens, options)

    @classmethod
    def check(cls, options: RankingsConfig, cfg: LensConfig) -> None:
        """See `Experiment`; counts above the heads too."""
        super().check(options, cfg)
        counts_of(cfg, options)

    @classmethod
    def check_memory(cls, options: RankingsConfig, cfg: LensConfig, dtype: str) -> None:
        """See `Experiment`; names of rankings too, before the weights are read."""
        check_names(options)
        check_budget(options, cfg, dtype)

    def manifest(self) -> Manifest:
        """Rankings, counts, lengths and needles may join later; what a name stands for stays."""
        options = self.options
        named = {} if self.given is None else _orders(self.given)
        for needle in options.hidden:
            rubric = [list(rule) for rule in needle.rubric]
            named[f"the needle {needle.name}"] = [needle.sentence, needle.question, rubric]
        settings = {"batch_size": options.batch_size, "memory": options.memory}
        return self.identity(arguments_of(options), settings, named)

    def expected(self) -> Mapping[CellKey, str]:
        """Known when the rankings are made; no cell is compared before."""
        return {}

    def run(self, folder: Folder, progress: Progress) -> Compared:
        """See `Experiment`."""
        lens, options, given = self.lens, self.options, self.given
        if given is None:
            given = chosen(lens, make_rankings(lens, options, self.calibration, folder), options)
        work = plan(lens, given, options, self.prompts)
        store = Run(folder, {key: prompt.hash for key, prompt in work.grid.items()})
        folder.agree(_orders(given))
        rubrics = {(needle.name, "clean"): needle.rubric for needle in options.hidden}
        cells = answer_all(lens, store, work.grid, rubrics, options, progress, rankings=given)
        names = ("scope", "seed", "filler_rows", "filler_length", "tasks", "task_counts", "task_limit")
        depends = [{name: getattr(options, name) for name in names}, list(work.counts)]
        depends += [list(rows_of(given, options.run_time)), {name: one.order for name, one in given.items()}]
        ability = folder.take("ability.json", depends, Ability.load, lambda: measure(lens, given, work.counts, options))
        found = comparison(
            {cell.key: cell for cell in cells}, work.bases, given, work.counts, work.layers, options.run_time,
            options.phase, ability, work.notes,
        )  # fmt: skip
        return Compared(found, given)

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
    progress: Progress = quiet,
) -> RankingComparison:
    """The comparison of rankings that are given, kept in `folder`, or nowhere; see `RankingsRun` and `result_of`."""
    return result_of(RankingsRun(lens, config, weights_hash, rankings), folder, progress).comparison


def plan(lens: HybridLens, chosen: Rankings, config: RankingsConfig, prompts: Mapping[str, list[niah.Prompt]]) -> Plan:
    """The cells of a comparison and their prompts.

    Args:
        lens: the model, with a tokenizer.
        chosen: rankings and random draws by name, in the order in which they are shown.
        config: the comparison's.
        prompts: that judge, by the needle's name.
    """
    counts, note = counts_of(lens.cfg, config)
    layers = len(lens.cfg.attention_layers) if config.scope == "model" else 1
    phase = "prefill" if config.phase == "both" else "generation"
    bases = {
        CellKey(config.model, phase, 0, p.length, p.depth, False, needle=needle, scope=config.scope): p
        for needle, made in prompts.items()
        for p in made
    }
    names = (*((RUN_TIME,) if config.run_time else ()), *chosen)
    grid = {
        key: prompt
        for name in names
        for base, prompt in bases.items()
        for key in keys_of(name, counts, base, layers).values()
    }
    notes = [] if note is None else [note]
    run_time = [n for n in counts if n % layers == 0]
    if config.run_time and len(run_time) < len(counts):
        notes.append(
            f"{RUN_TIME} keeps equally many heads of each layer, and so was run at {', '.join(map(str, run_time))} "
            "heads; rankings are compared with it at these counts."
        )
    return Plan(chosen, counts, layers, tuple(bases), grid, tuple(notes))


def chosen(lens: HybridLens, rankings: Rankings, config: RankingsConfig) -> dict[str, HeadRanking]:
    """The rankings that are compared, checked, and random draws after them.

    Raises:
        InputError: no ranking, one without a name or of another model's heads, or a name that is taken.
        UnknownNameError: a ranking is wanted that is not given.
    """
    wanted = tuple(rankings) if config.rankings is None else config.rankings
    for name in wanted:
        if name not in rankings:
            raise UnknownNameError(
                f"ranking {name!r} was not given{closest(name, rankings)}; there is {', '.join(rankings) or 'none'}"
            )
    found = {name: ranking for name, ranking in rankings.items() if name in wanted}
    for name, ranking in found.items():
        if not name or name in (RUN_TIME, RANDOM):
            raise InputError(f"a ranking is named {name!r}, a name that has another meaning here; give it another")
        check_ranking(lens, ranking)
    if config.draws and not any(map(is_draw, found)):
        found |= random_rankings(lens, config.draws, config.seed)
    if not found and not config.run_time:
        raise InputError("no ranking was given, expected at least one to compare")
    return found


def ranking_hash(ranking: HeadRanking) -> str:
    """A digest of the order of a ranking's heads, 16 hex digits."""
    return hash_json(ranking.order)[:16]


def _orders(rankings: Rankings) -> dict[str, Any]:
    return {f"the ranking {name}": ranking_hash(one) for name, one in rankings.items()}
