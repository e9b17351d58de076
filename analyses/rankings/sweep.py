"""Rankings compared: the best n heads of each kept statically, n from none to all, and the needle asked for.

`plan` makes the cells, one for each ranking, count and prompt; the engine answers those that come to the same once,
so that rankings cost little where they agree. With a folder, cells are stored batch by batch, and a run that was
killed goes on with the same call; other rankings, counts, lengths and needles may join later.

How it fails: what can be checked is checked before the folder is touched. A folder in which a ranking's name, or a
needle's, stands for something else is refused with one line. A ranking is told by its order, which is all that its
cells depend on: scores that differ in their last bits are the same ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from analyses.niah_report import model_facts
from analyses.ranking import HeadRanking
from analyses.rankings.candidates import random_rankings
from analyses.rankings.config import RankingsConfig, counts_of, judging_prompts
from analyses.rankings.general import measure
from analyses.rankings.results import RANDOM, RUN_TIME, RankingComparison, comparison, is_draw, keys_of
from analyses.runner import Grid, Settings, answer_cells
from analyses.sparsification import check_ranking
from hybridlens import niah
from hybridlens.errors import InputError, UnknownNameError, closest
from hybridlens.model import HybridLens
from hybridlens.results import Cell, CellKey, Manifest, Run, hash_json, hash_weights

Progress = Callable[[int, int], None]


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


def quiet(done: int, total: int) -> None:
    """Progress that nobody watches."""


def plan(lens: HybridLens, rankings: Mapping[str, HeadRanking], config: RankingsConfig) -> Plan:
    """The cells of a comparison and their prompts.

    Args:
        lens: the model, with a tokenizer.
        rankings: by name, in the order in which they are shown.
        config: the comparison's.

    Raises:
        InputError: no ranking, one without a name or of another model's heads, a name that is taken, a count above
            the heads there are; or see `analyses.niah_config.make_grid`.
        UnknownNameError: a ranking is wanted that is not given.
    """
    counts, note = counts_of(lens, config)
    chosen = _chosen(lens, rankings, config)
    layers = len(lens.cfg.attention_layers) if config.scope == "model" else 1
    phase = "prefill" if config.phase == "both" else "generation"
    prompts = judging_prompts(lens, config)
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


def _chosen(lens: HybridLens, rankings: Mapping[str, HeadRanking], config: RankingsConfig) -> dict[str, HeadRanking]:
    """The rankings that are compared, checked, and random draws after them."""
    wanted = tuple(rankings) if config.rankings is None else config.rankings
    for name in wanted:
        if name not in rankings:
            raise UnknownNameError(
                f"ranking {name!r} was not given{closest(name, rankings)}; there is {', '.join(rankings) or 'none'}"
            )
    chosen = {name: ranking for name, ranking in rankings.items() if name in wanted}
    for name, ranking in chosen.items():
        if not name or name in (RUN_TIME, RANDOM):
            raise InputError(f"a ranking is named {name!r}, a name that has another meaning here; give it another")
        check_ranking(lens, ranking)
    if config.draws and not any(map(is_draw, chosen)):
        chosen |= random_rankings(lens, config.draws, config.seed)
    if not chosen and not config.run_time:
        raise InputError("no ranking was given, expected at least one to compare")
    return chosen


def compare(
    lens: HybridLens,
    rankings: Mapping[str, HeadRanking],
    config: RankingsConfig,
    folder: Path | None = None,
    weights_hash: str | None = None,
    progress: Progress = quiet,
) -> RankingComparison:
    """Keep the best n heads of each ranking, n from none to all, and see what is left of retrieval and of the rest.

    Args:
        lens: the model, with a tokenizer.
        rankings: by name, in the order in which they are shown.
        config: the comparison's.
        folder: where cells are kept, and gone on from; None to keep none.
        weights_hash: digest of the model's weights; None to work it out where `folder` is given.
        progress: called with the cells done and the cells in all, first before any is run.

    Raises:
        InputError, UnknownNameError: see `plan`, `filler_loss` and `task_scores`.
        ResultsError: the folder holds something else, or cannot be written.
    """
    work = plan(lens, rankings, config)
    if folder is None:
        cells = _answered(lens, work, config, progress)
        ability = measure(lens, work.rankings, work.counts, config)
    else:
        digest = hash_weights(lens.hf_model.state_dict()) if weights_hash is None else weights_hash
        cells = _stored(lens, work, config, folder, digest, progress)
        ability = measure(lens, work.rankings, work.counts, config, folder, digest)
    by_key = {cell.key: cell for cell in cells}
    return comparison(
        by_key, work.bases, work.rankings, work.counts, work.layers, config.run_time, config.phase, ability, work.notes
    )


def _answered(lens: HybridLens, work: Plan, config: RankingsConfig, progress: Progress) -> list[Cell]:
    """Every cell, kept nowhere."""
    cells: list[Cell] = []
    progress(0, len(work.grid))
    for batch in _answers(lens, work, config, list(work.grid)):
        cells += batch
        progress(len(cells), len(work.grid))
    return cells


def _stored(
    lens: HybridLens, work: Plan, config: RankingsConfig, folder: Path, weights_hash: str, progress: Progress
) -> list[Cell]:
    """Every cell, from the folder or answered and put there."""
    manifest = make_manifest(lens, work, config, weights_hash)
    with Run.open(folder, manifest, {key: prompt.hash for key, prompt in work.grid.items()}) as store:
        progress(len(store.done & work.grid.keys()), len(work.grid))
        for batch in _answers(lens, work, config, store.todo):
            store.add(batch)
            progress(len(store.done & work.grid.keys()), len(work.grid))
        store.finish()
        return store.cells


def _answers(lens: HybridLens, work: Plan, config: RankingsConfig, todo: list[CellKey]) -> Iterator[list[Cell]]:
    rubrics = {(needle.name, "clean"): needle.rubric for needle in config.hidden}
    settings = Settings(config.memory, config.batch_size)
    return answer_cells(lens, work.grid, todo, rubrics, config.max_new_tokens, settings, rankings=work.rankings)


def ranking_hash(ranking: HeadRanking) -> str:
    """A digest of the order of a ranking's heads, 16 hex digits."""
    return hash_json(ranking.order)[:16]


def make_manifest(lens: HybridLens, work: Plan, config: RankingsConfig, weights_hash: str) -> Manifest:
    """What the comparison is. Rankings, counts, lengths and needles may join later; what a name stands for stays."""
    arguments: dict[str, Any] = {
        "haystack": "built-in essays" if config.haystack is None else f"sha256 {config.haystack.hash[:16]}",
        "template": config.template,
        "max_new_tokens": config.max_new_tokens,
        "dtype": str(lens.dtype).removeprefix("torch."),
    }
    named: dict[str, Any] = {f"the ranking {name}": ranking_hash(one) for name, one in work.rankings.items()}
    for needle in config.hidden:
        rubric = [list(rule) for rule in needle.rubric]
        named[f"the needle {needle.name}"] = [needle.sentence, needle.question, rubric]
    return Manifest(
        model=config.model,
        arguments=arguments,
        seed=config.seed,
        max_score=niah.MAX_SCORE,
        config_hash=hash_json(lens.hf_model.config.to_diff_dict()),
        weights_hash=weights_hash,
        job="rankings",
        command=config.command,
        settings={"batch_size": config.batch_size, "memory": config.memory, "device": str(lens.device)},
        facts=model_facts(lens) | {"rankings": {name: one.source for name, one in work.rankings.items()}},
        growing=named,
    )
