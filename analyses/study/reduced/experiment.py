"""The smallest module that retrieves, as an experiment: attention replaced by less, without training and with a little.

Modules: the whole one, none; the best n heads of each ranking; narrow heads; few bits; windows; the best keys. Where at
least two kinds keep retrieval, the cheapest of each kind that does, all at once, is one more. Each module's answers are
a part, kept as it is finished, and so is every stretch of a fine-tune; modules that come to the same are answered once.

Fine-tuned is every module but those of heads by other rankings than the first; the whole one, with as many steps, is
their control. Rankings are made on prompts that share nothing with those that judge
(`analyses.study.rankings.calibration`).

How it fails: see `analyses.experiment`; a model that cannot be fine-tuned here is refused before the folder is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch

from analyses.experiment.options.needles import arguments_of, identity_of
from analyses.experiment.options.reduce import ReduceConfig
from analyses.experiment.parts import Part, stage
from analyses.experiment.room import room
from analyses.experiment.running import Experiment, Progress
from analyses.heads.ranking import HeadRanking, ordering
from analyses.study.prompts import check_budget, prompts_of
from analyses.study.rankings.calibration import calibration_prompts, prompt_lengths
from analyses.study.rankings.candidates import FROM_WEIGHTS, check_names, kinds_of, make_rankings
from analyses.study.reduced import tuning
from analyses.study.reduced.answering import Answers, answer
from analyses.study.reduced.reductions import (
    EVERYTHING,
    FewBits,
    KeepHeads,
    LastKeys,
    NarrowHeads,
    Reduction,
    Together,
    TopKeys,
    value_of,
)
from analyses.study.reduced.report import article_of, modules_table
from analyses.study.reduced.results import ReducedModules
from analyses.study.reduced.shapes import Cost, cost_of, shapes_of
from hybridlens import machine
from hybridlens.config import LensConfig
from hybridlens.display import many
from hybridlens.engine import Budget, costs_of
from hybridlens.errors import InputError
from hybridlens.hooks import Edit
from hybridlens.model import HybridLens
from hybridlens.results import Folder, Manifest, hash_json
from hybridlens.tiny.documents import Source
from hybridlens.viz.article import Article

MODULES = "modules.json"


class Module(NamedTuple):
    """One row of the result."""

    name: str
    reduction: Reduction
    tuned: bool

    @property
    def kind(self) -> str:
        """Of `results.KINDS`."""
        return "all" if self.reduction == EVERYTHING else self.reduction.kind

    @property
    def slug(self) -> str:
        """Of its files."""
        return self.reduction.slug + ("-tuned" if self.tuned else "")


class ReduceRun(Experiment[ReduceConfig, ReducedModules]):
    """What is left of retrieval when attention is replaced by less, and the smallest module that keeps it.

    Raises:
        InputError: latent attention, counts above the model's heads, or a model that cannot be fine-tuned here.
    """

    job = "reduce"
    unit = "module"
    waves = 2

    def __init__(self, lens: HybridLens, options: ReduceConfig, weights_hash: str | None = None) -> None:
        super().__init__(lens, options, weights_hash)
        ranked = options.ranked
        check_names(ranked)
        self.counts = counts_of(lens.cfg, options)
        self.shapes = shapes_of(lens)
        if options.steps:
            tuning.check_tunable(lens)
        lengths = prompt_lengths(lens, ranked)
        made = {
            needle.name: prompts_of(lens, ranked, needle, lengths=lengths, control=True) for needle in options.hidden
        }
        both = [(name, prompt) for name, prompts in made.items() for prompt in prompts]
        both.sort(key=lambda one: one[1].control)  # those without a needle behind all others
        self.needles, self.prompts = [name for name, _ in both], [prompt for _, prompt in both]
        self.asked = sum(not prompt.control for prompt in self.prompts)
        self.context = max(len(prompt.tokens) for prompt in self.prompts)
        self.seen = min(self.context, lens.cfg.window or self.context)
        self.calibration = calibration_prompts(lens, ranked)
        self.plan = tuning.TuningPlan(options.steps, options.tokens, options.rate, options.seed, self.context)
        self.ties: tuple[str, ...] = ()
        self._edits: dict[Reduction, list[Edit]] = {}
        self._reductions: dict[str, Reduction] = {}

    @classmethod
    def check(cls, options: ReduceConfig, cfg: LensConfig) -> None:
        """See `Experiment`; counts above the heads too."""
        super().check(options, cfg)
        counts_of(cfg, options)

    @classmethod
    def check_memory(cls, options: ReduceConfig, cfg: LensConfig, dtype: str) -> None:
        """See `Experiment`; names of rankings too, before the weights are read."""
        if set(check_names(options.ranked)) & set(FROM_WEIGHTS):
            cfg.need_stream_heads(f"ranking heads by {', '.join(FROM_WEIGHTS)}")
        check_budget(options, cfg, dtype)

    def manifest(self) -> Manifest:
        """What is replaced by what may grow in a later session: each module's file says what it was made of."""
        options = self.options
        arguments = {
            **arguments_of(options),
            "needles": [identity_of(needle) for needle in options.hidden],
            "prompts (their hash)": hash_json([prompt.hash for prompt in self.prompts]),
        }
        settings = {"batch_size": options.batch_size, "memory": options.memory, "save_every": options.save_every}
        return self.identity(arguments, settings)

    def run(self, folder: Folder, progress: Progress) -> ReducedModules:
        """See `Experiment`."""
        rankings, self.ties = ordering(self._rankings(folder))
        modules = self._modules(rankings)
        total, known = len(modules), dict[str, Answers]()

        progress(0, total)
        for done, module in enumerate(modules, start=1):
            if module.slug not in known:
                known[module.slug] = self._answers(folder, module)
            progress(done, total)
        several = self._together(self._result(modules, known))
        for module in several:
            known[module.slug] = self._answers(folder, module)
        found = self._result([*modules, *several], known)
        rows = [[one.name, one.tuned, value_of(one.reduction)] for one in (*modules, *several)]
        folder.keep(MODULES, [rows, list(self.plan), self.options.share, list(self.ties)], found)
        return found

    def parts(self, folder: Folder, wave: int) -> Sequence[Part]:
        """See `Experiment`: the rankings, then each module; those of several kinds at once are left to the end."""
        if wave == 0:
            return [
                stage(", ".join(kind), partial(self._rankings, folder, kind)) for kind in kinds_of(self.options.ranked)
            ]
        rankings, _ = ordering(self._rankings(folder))
        distinct = {module.slug: module for module in self._modules(rankings)}
        answered, steps = sum(len(prompt.tokens) for prompt in self.prompts), self.options.steps * self.options.tokens
        return [
            stage(slug, partial(self._answers, folder, module), answered + 3.0 * steps * module.tuned)
            for slug, module in distinct.items()
        ]

    def page(self, result: ReducedModules, record: Mapping[str, Any]) -> Article:
        """See `Experiment`."""
        return article_of(result, record)

    def table(self, result: ReducedModules) -> Iterable[str]:
        """See `Experiment`."""
        return modules_table(result)

    def _rankings(self, folder: Folder, names: Sequence[str] | None = None) -> dict[str, HeadRanking]:
        return make_rankings(self.lens, self.options.ranked, self.calibration, folder, names)

    def _modules(self, rankings: Mapping[str, HeadRanking]) -> list[Module]:
        """All but those of several kinds at once: untrained, then fine-tuned; what takes nothing away is left out."""
        options, whole = self.options, Module("all attention", EVERYTHING, False)
        heads = {
            name: [
                Module(f"{many(n, 'head')} by {name}", KeepHeads(tuple(sorted(ranking.best(n)))), False)
                for n in self.counts
            ]
            for name, ranking in rankings.items()
        }
        smaller: list[Reduction] = [
            *map(NarrowHeads, (width for width in options.widths if width < self.lens.cfg.d_head)),
            *map(FewBits, options.bits),
            *map(LastKeys, (window for window in options.windows if window < self.seen)),
            *map(TopKeys, (keys for keys in options.keys if keys < self.seen)),
        ]
        others = [whole, *(Module(one.name, one, False) for one in smaller)]
        none = Module("no attention", KeepHeads(()), False)
        trained = [*others, *next(iter(heads.values()), [])] if options.steps else []
        untrained = [*others, none, *(module for some in heads.values() for module in some)]
        return [*untrained, *(module._replace(tuned=True) for module in trained)]

    def _together(self, found: ReducedModules) -> list[Module]:
        """The cheapest of each kind that keeps retrieval, at once; none where fewer than two kinds do."""
        made: list[Module] = []
        for tuned in (False, True):
            by_kind: dict[str, Reduction] = {}
            kept = [i for i in found.among(tuned) if found.keeps(i) and found.kinds[i] != "all"]
            for i in sorted(kept, key=lambda i: found.cost(i), reverse=True):
                by_kind[found.kinds[i]] = self._reductions[found.names[i]]
            if len(by_kind) > 1:
                both = Together(tuple(by_kind.values()))
                made.append(Module(both.name, both, tuned))
        return made

    def _result(self, modules: Sequence[Module], known: Mapping[str, Answers]) -> ReducedModules:
        self._reductions.update({module.name: module.reduction for module in modules})
        costs = [self._cost(module.reduction) for module in modules]
        scores = torch.stack([known[module.slug].scores for module in modules])
        return ReducedModules(
            model=self.options.model,
            context=self.context,
            names=tuple(module.name for module in modules),
            kinds=tuple(module.kind for module in modules),
            tuned=tuple(module.tuned for module in modules),
            token_bytes=torch.tensor([cost.token_bytes for cost in costs]),
            multiplications=torch.tensor([cost.multiplications for cost in costs]),
            scores=scores[:, : self.asked].contiguous(),
            controls=scores[:, self.asked :].contiguous(),
            share=self.options.share,
            steps=self.options.steps,
            notes=self.ties,
        )

    def _cost(self, reduction: Reduction) -> Cost:
        return cost_of([reduction.shape(self.lens, layer) for layer in self.shapes], self.context)

    def _of(self, reduction: Reduction) -> list[Edit]:
        """Its edits, made of the untouched weights."""
        if reduction not in self._edits:
            self._edits[reduction] = reduction.edits(self.lens)
        return self._edits[reduction]

    def _answers(self, folder: Folder, module: Module) -> Answers:
        """What one module answers, made now or before."""
        depends: list[Any] = [value_of(module.reduction), *([list(self.plan)] if module.tuned else [])]
        file = f"answers/{module.slug}{f'-{self.plan.steps}' if module.tuned else ''}.json"
        return folder.take(file, depends, Answers.load, partial(self._said, folder, module))

    def _said(self, folder: Folder, module: Module) -> Answers:
        options, lens = self.options, self.lens
        longest = self.context + options.max_new_tokens
        costs, on = costs_of(lens.cfg, lens.dtype), machine.devices_of(lens.hf_model)
        held = room(folder, options.memory, on, lambda found: Budget(costs, found).check(longest)).here
        say = partial(
            answer, lens, self.prompts, {needle.name: needle.rubric for needle in options.hidden}, self.needles,
            self._of(module.reduction), options.max_new_tokens, held, options.batch_size,
        )  # fmt: skip
        if not module.tuned:
            return say()
        with tuning.swapped(lens, self._tuned(folder, module.reduction).weights):
            return say()

    @cached_property
    def _source(self) -> Source:
        return tuning.documents(self.lens, self.plan)

    def _tuned(self, folder: Folder, reduction: Reduction) -> tuning.Tuned:
        """A module's trained weights, made now or before; on the way a state is kept every so many steps."""
        plan, every, name = self.plan, self.options.save_every, f"{reduction.slug}-{self.plan.steps}"
        depends = [value_of(reduction), list(plan)]

        def file(step: int) -> str:
            return f"tuning/{name}/step-{step:05d}.safetensors"

        def made() -> tuning.Tuned:
            edits, source = self._of(reduction), self._source
            stops = [*range(every, plan.steps, every), plan.steps]
            state = next(
                filter(None, (folder.stored(file(s), depends, tuning.Tuned.load) for s in stops[-2::-1])), None
            )
            state = tuning.begin(self.lens) if state is None else state
            for stop in stops:
                if stop > state.step:
                    state = tuning.tune(self.lens, edits, plan, source, state, stop)
                    if stop < plan.steps:
                        folder.put(file(stop), depends, state)
            return replace(state, first={}, second={})

        found = folder.take(f"tuned/{name}.safetensors", depends, tuning.Tuned.load, made)
        folder.drop(f"tuning/{name}")
        return found


def counts_of(cfg: LensConfig, options: ReduceConfig) -> tuple[int, ...]:
    """Numbers of heads left, from one to all but one.

    Raises:
        InputError: one is none or above the heads there are.
    """
    most = cfg.n_heads * len(cfg.attention_layers)
    if options.counts is None:
        return tuple(1 << i for i in range(most.bit_length()) if 1 << i < most)
    if not 1 <= min(options.counts) <= max(options.counts) <= most:
        raise InputError(f"--counts {','.join(map(str, options.counts))} given, expected 1..{most}, the model's heads")
    return tuple(sorted({1, *options.counts}))
