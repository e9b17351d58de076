"""One checkpoint measured: retrieval with attention and without, which memory answers follow, strengths from weights.

Each by the function that the project has for it: needle prompts are answered as cells (`analyses.heads.answering`), at
every head and at none, while reading and answering alike; memories of two prompts are exchanged by
`analyses.kv_cache.crossover` and read by `following`; strengths are those of `analyses.circuits`, recurrent layers
taken for linear at their mean over filler text: at rest a delta rule and a short convolution pass nothing on.
The prompts are made once for a run and are the same at each of its steps. There are as many without a needle as with
one, of essays of other seeds where the filler is the built-in one: of few, nothing could be told apart.

The tap: of the lags of the recurrent layers' convolutions, the one through which some head's keys compose most with
some earlier layer: K-composition beyond chance, times the lag's share of the layer's linear path, as induction strength
weighs the lag-1 tap.

How it fails: prompts that do not fit the model raise `InputError` when they are made, before anything is measured. What
a model lacks is a `Point` that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from analyses.circuits.composition import KINDS
from analyses.circuits.results import HeadCircuits
from analyses.circuits.running import circuits
from analyses.experiment.filler import linearising_text
from analyses.experiment.options.curves import CurvesConfig
from analyses.experiment.running import check_tokenizer
from analyses.heads.answering import answer_cells
from analyses.kv_cache import following as memories
from analyses.kv_cache.crossover import crossover
from analyses.kv_cache.following import following, kinds, whole
from analyses.kv_cache.mixes import Mix, mixes
from analyses.kv_cache.pairs import PromptPair, prompt_pairs
from analyses.kv_cache.twins import paired
from analyses.study.points import Point, absent, measured
from analyses.study.prompts import longest, prompts_of
from analyses.study.rankings.calibration import SEED_STEP
from analyses.study.training_curves.results import (
    ANSWERS,
    COMPOSED,
    CONTROLS,
    CONVOLUTIONS,
    EVERYTHING,
    INDUCTION,
    INTACT,
    KEYS,
    SILENT,
    STATES,
    STRENGTH,
    TAP,
    Measured,
)
from analyses.study.training_curves.runs import Training
from hybridlens import niah
from hybridlens.config import LensConfig
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.niah import MAX_SCORE
from hybridlens.results import Cell, CellKey, bootstrap_interval, hash_json

MEMORIES = dict(
    zip((memories.EVERYTHING, *memories.KINDS.values()), (EVERYTHING, KEYS, STATES, CONVOLUTIONS), strict=True)
)
"""What a crossover calls a memory -> the quantity that says how often answers follow it."""


@dataclass(frozen=True)
class Prompts:
    """What every checkpoint of a run is asked.

    Attributes:
        needles: name -> prompts with this needle, and without any.
        pairs: prompts that differ in their needle alone; none where the needles have no twins.
        lengths: tokens.
        alone: why there are no pairs; empty where there are.
        more: more prompts without any needle, of other essays, so that there are as many as with one.
    """

    needles: dict[str, list[niah.Prompt]]
    pairs: tuple[PromptPair, ...]
    lengths: tuple[int, ...]
    alone: str = ""
    more: tuple[dict[str, list[niah.Prompt]], ...] = ()

    @property
    def hash(self) -> str:
        """Digest of all tokens."""
        grids = (self.needles, *self.more)
        asked = [{name: [prompt.hash for prompt in made] for name, made in grid.items()} for grid in grids]
        return hash_json([asked, [[pair.a, pair.b] for pair in self.pairs]])


def make_prompts(lens: HybridLens, options: CurvesConfig) -> Prompts:
    """The prompts of a run, for the tokenizer and sizes of one of its checkpoints.

    Raises:
        InputError: no tokenizer, or see `analyses.study.prompts` and `hybridlens.niah.grid`.
    """
    check_tokenizer(lens, options.model)
    how: dict[str, Any] = {"template": options.template, "haystack": options.haystack, "seed": options.seed}
    lengths = options.lengths
    if lengths is None:
        least = max(niah.shortest_length(lens.tokenizer, options.depths, needle=one, **how) for one in options.hidden)
        lengths = tuple(dict.fromkeys((least, max(least, longest(lens, options)))))
    needles = {one.name: prompts_of(lens, options, one, lengths=lengths, control=True) for one in options.hidden}
    more = tuple(
        {
            one.name: list(
                niah.controls(lens.tokenizer, lengths, options.depths, None, one, options.template, seed=seed)
            )
            for one in options.hidden
        }
        for seed in ([] if options.haystack else [options.seed + SEED_STEP * i for i in range(1, len(options.depths))])
    )
    try:
        twins = paired(options.hidden, lens.tokenizer)
    except InputError as error:  # of needles of a user's own, of which the rest can be measured
        return Prompts(needles, (), lengths, str(error), more)
    pairs = prompt_pairs(lens.tokenizer, lengths, options.depths, twins, options.haystack, options.template,
                         options.seed)  # fmt: skip
    return Prompts(needles, tuple(pairs), lengths, more=more)


def measure(lens: HybridLens, prompts: Prompts, options: CurvesConfig, training: Training, step: int) -> Measured:
    """Everything of one checkpoint.

    Args:
        lens: the model as it was at that step.
        prompts: of the run.
        options: lengths of answers, sizes of batches.
        training: the run.
        step: which checkpoint.
    """
    points = [*answered(training, step), *told(lens, prompts, options), *followed(lens, prompts, options)]
    at = training.log.get(step)
    return Measured(step, None if at is None else at.stage, (*points, *strengths(lens, options.seed)))


def answered(training: Training, step: int) -> list[Point]:
    """Accuracy on the answers of training documents, as it was logged."""
    scores = training.recent(step)
    if not scores:
        return absent([ANSWERS], "the run's log has no line of this step")
    return [measured(ANSWERS, sum(scores) / len(scores), bootstrap_interval(scores), len(scores))]


def told(lens: HybridLens, prompts: Prompts, options: CurvesConfig) -> list[Point]:
    """Retrieval with all heads and with none, and the same without a needle."""
    conditions = {INTACT: lens.cfg.n_heads, **({SILENT: 0} if lens.cfg.attention_layers else {})}
    grids = [
        {
            CellKey(options.model, "prefill", k, prompt.length, prompt.depth, prompt.control, needle=name): prompt
            for k in conditions.values()
            for name, made in asked.items()
            for prompt in made
        }
        for asked in (prompts.needles, *prompts.more)
    ]
    rubrics = {(needle.name, "clean"): needle.rubric for needle in options.hidden}
    limits = options.max_new_tokens, options.memory, options.batch_size
    cells = [cell for grid in grids for some in answer_cells(lens, grid, list(grid), rubrics, *limits) for cell in some]
    points: list[Point] = []
    for name, control in CONTROLS.items():
        if name in conditions:
            points += [_scored(name, cells, conditions[name], False), _scored(control, cells, conditions[name], True)]
        else:
            points += absent([name, control], f"no layer of this {lens.cfg.family} model has attention to silence")
    return points


def _scored(quantity: str, cells: Sequence[Cell], k: int, control: bool) -> Point:
    scores = [cell.score / MAX_SCORE for cell in cells if cell.k == k and cell.control == control]
    return measured(quantity, sum(scores) / len(scores), bootstrap_interval(scores), len(scores))


def followed(lens: HybridLens, prompts: Prompts, options: CurvesConfig) -> list[Point]:
    """Which memory answers follow."""
    try:
        chosen = whole_mixes(lens.cfg)
    except InputError as error:  # a model that remembers nothing
        return absent(list(MEMORIES.values()), str(error))
    if not prompts.pairs:
        return absent(list(MEMORIES.values()), prompts.alone)
    more: dict[str, Any] = {} if options.batch_size is None else {"rows": options.batch_size}
    found = crossover(
        lens, prompts.pairs, chosen, max_new_tokens=options.max_new_tokens, done=lambda cells: None, **more
    )
    has, points = whole(found), list[Point]()
    for memory, quantity in MEMORIES.items():
        if memory in has:
            share = following(found, memory)
            points.append(measured(quantity, share.memory.mean, share.memory.interval, share.n))
        else:
            held = [memories.KINDS[kind] for kind in kinds(found)]
            why = "nothing to set {} against" if memory in held else "no {}"
            points += absent([quantity], f"this {lens.cfg.family} model has {why.format(memory.words)}")
    return points


def whole_mixes(cfg: LensConfig) -> list[Mix]:
    """The mixes of whole kinds of memory: what sets each against all others.

    Raises:
        InputError: the model has nothing to mix.
    """
    return [mix for mix in mixes(cfg, by_layer=False) if not mix.name.startswith("only ")]


def strengths(lens: HybridLens, seed: int = 0) -> list[Point]:
    """Induction and retrieval strength of the strongest head, and the tap, from weights; the seed is of the filler."""
    try:
        lens.cfg.need_stream_heads("circuits of heads")
    except InputError as error:
        return absent([INDUCTION, STRENGTH, TAP, *COMPOSED], str(error))
    return strengths_of(circuits(lens, linearising_text(lens, seed), progress=lambda done, total: None))


def strengths_of(found: HeadCircuits) -> list[Point]:
    """The same of circuits that are at hand."""
    return [_strongest(INDUCTION, found.induction), _strongest(STRENGTH, found.retrieval), *tap_of(found)]


def _strongest(quantity: str, scores: torch.Tensor) -> Point:
    value = float(scores.max())
    return Point(quantity, value) if value == value else absent([quantity], "the weights give no number")[0]


def tap_of(found: HeadCircuits) -> list[Point]:
    """The lag that keys compose most through, and by how much through each; see the module."""
    lags = found.lag_share.shape[1]
    if not found.lag_share.numel():
        return absent([TAP, *COMPOSED], "no recurrent layer has a linear path that keys could compose with")
    composed = found.composition.excess_recurrent[KINDS.index("k")] * found.lag_share
    by_lag = composed.nan_to_num(nan=0.0).flatten(0, -2).amax(dim=0).clamp(min=0.0)
    best = int(by_lag.argmax())
    tap = Point(TAP, float(best)) if by_lag[best] > 0 else absent([TAP], "no head's keys compose beyond chance")[0]
    points = [Point(name, float(value)) for name, value in zip(COMPOSED, by_lag, strict=False)]
    return [tap, *points, *absent(COMPOSED[lags:], f"convolutions of this model reach {lags} tokens")]
