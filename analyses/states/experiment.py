"""What states say, as an experiment: every measure of every prompt, then knock-outs and probes of the needle.

    prompts/NAME/spectrum.safetensors   `Spectrum`: half-lives
    prompts/NAME/sizes.safetensors      `Sizes`: norms and ranks over time
    prompts/NAME/flow.safetensors       `Flow`: what each token leaves, writes, finds there and erases
    prompts/NAME/holding.safetensors    `Holding`: shares of the first tokens and of the needle
    hidden.safetensors                  `HiddenHeads`, of one prompt
    knockouts/NAME.safetensors          `Knockout`s beside random heads
    probes.safetensors                  `StateProbes`

How it fails: see `analyses.experiment`. Knock-outs are left out, with a warning, where there are no other heads to
compare with, and where no metric was asked for and the model answers prompts with either needle alike; probes where no
other needle answers the same question in as many tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from analyses.experiment.options.needles import identity_of
from analyses.experiment.options.states import StatesConfig
from analyses.experiment.parts import Part, stage
from analyses.experiment.running import Experiment, Progress
from analyses.kv_cache.pairs import PromptPair, prompt_pairs
from analyses.kv_cache.twins import paired
from analyses.patching.choosing import Measure, make_pair, measure
from analyses.states.flow import Flow, flow
from analyses.states.found import Found, OfPrompt
from analyses.states.holding import Holding, holding
from analyses.states.knocked import Knockout
from analyses.states.knockout import knockout
from analyses.states.looking import DRAWN, LONGEST, HiddenHeads, look, most_held, shown_positions, slowest
from analyses.states.probe import StateProbes, probe_states
from analyses.states.report import article_of, states_table
from analyses.states.silencing import What, recurrent_heads
from analyses.states.sizes import Sizes, sizes
from analyses.states.spectrum import Spectrum, spectrum
from analyses.states.texts import Measurable, needle_prompts, own_prompts
from analyses.states.watching import chosen_layers
from hybridlens import niah
from hybridlens.config import LensConfig
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.results import Folder, Manifest, hash_json
from hybridlens.tokens import check_context
from hybridlens.viz.article import Article


class Silence(NamedTuple):
    """One knock-out that is made."""

    name: str
    what: What
    heads: tuple[tuple[int, int], ...]
    positions: tuple[int, ...]


class StatesRun(Experiment[StatesConfig, Found]):
    """What the recurrent states hold of a text: how long, how much, of which tokens, and who needs it.

    Raises:
        InputError: a model without states, layers that have none, or prompts that do not fit.
    """

    job = "states"
    of_heads = False

    def __init__(self, lens: HybridLens, options: StatesConfig, weights_hash: str | None = None) -> None:
        super().__init__(lens, options, weights_hash)
        self.layers = chosen_layers(lens, options.layers, "what states say")
        self.prompts = self._prompts()
        check_context(max(len(prompt.tokens) for prompt in self.prompts), lens.cfg.n_ctx)

    @classmethod
    def check(cls, options: StatesConfig, cfg: LensConfig) -> None:
        """See `Experiment`; a model without states too."""
        super().check(options, cfg)
        cfg.need_states("what states say")

    def manifest(self) -> Manifest:
        """See `Experiment`."""
        options = self.options
        arguments = {
            "needle": None if options.texts else identity_of(options.hidden),
            "layers": list(self.layers),
            "first": options.first,
            "metric": options.metric,
            "prompts (their hash)": hash_json([list(prompt.tokens) for prompt in self.prompts]),
            **{name: getattr(options, name) for name in ("controls", "haystacks", "shuffles")},
        }
        return self.identity(arguments, {"knockouts": options.knockouts, "probes": options.probes})

    def run(self, folder: Folder, progress: Progress) -> Found:
        """See `Experiment`."""
        total = len(self.prompts) + 3
        found: list[OfPrompt] = []
        for prompt in self.prompts:
            progress(len(found), total)
            found.append(self._measured(folder, prompt))
        hidden = self._hidden(folder, found)
        progress(len(found) + 1, total)
        knocked = self._knocked(folder, found)
        progress(len(found) + 2, total)
        probes = self._probed(folder)
        progress(total, total)
        return Found(tuple(found), hidden, knocked, probes, self.options.first)

    def parts(self, folder: Folder, wave: int) -> Sequence[Part]:
        """See `Experiment`: the measures of each prompt, and the probes; the rest comes with the report."""
        prompts = [stage(prompt.name, partial(self._measured, folder, prompt)) for prompt in self.prompts]
        return [*prompts, stage("probes", partial(self._probed, folder))]

    def page(self, result: Found, record: Mapping[str, Any]) -> Article:
        """See `Experiment`."""
        return article_of(result, record, self.lens)

    def table(self, result: Found) -> Iterable[str]:
        """See `Experiment`."""
        return states_table(result, self.options.model)

    # stages

    def _prompts(self) -> list[Measurable]:
        options, lens = self.options, self.lens
        if options.texts is not None:
            return own_prompts(lens, options.texts)
        length = niah.shortest_length(lens.tokenizer, seed=options.seed) if options.length is None else options.length
        return needle_prompts(lens, options.hidden, length, options.depths, options.seed, options.haystack)

    def _measured(self, folder: Folder, prompt: Measurable) -> OfPrompt:
        """Every measure of one prompt."""
        lens, rows, layers = self.lens, [list(prompt.tokens)], self.layers
        spans = [(0, min(self.options.first, len(prompt.tokens)))]
        if prompt.needle is not None and prompt.needle[0] < spans[0][1]:  # the needle comes first
            spans = [(0, prompt.needle[0])] if prompt.needle[0] else []
        if prompt.needle is not None:
            spans.append(prompt.needle)
        given, place = hash_json([list(prompt.tokens), list(layers)]), f"prompts/{prompt.name}"
        return OfPrompt(
            prompt,
            folder.take(f"{place}/spectrum.safetensors", given, Spectrum.load, lambda: spectrum(lens, rows, layers)),
            folder.take(f"{place}/sizes.safetensors", given, Sizes.load, lambda: sizes(lens, rows, None, layers)),
            folder.take(f"{place}/flow.safetensors", given, Flow.load, lambda: flow(lens, rows, layers)),
            folder.take(f"{place}/holding.safetensors", [given, spans], Holding.load,
                        lambda: holding(lens, rows, spans, None, layers)),
        )  # fmt: skip

    def _hidden(self, folder: Folder, found: list[OfPrompt]) -> HiddenHeads | None:
        """Of the middle prompt; None where it is too long."""
        of = found[len(found) // 2]
        prompt = of.prompt
        if len(prompt.tokens) > LONGEST:
            return None
        heads = slowest(of.spectrum, DRAWN) if prompt.needle is None else most_held(of.holding, -1, DRAWN)
        shown = shown_positions(len(prompt.tokens), prompt.needle)
        given = [list(prompt.tokens), heads, shown]
        made = partial(look, self.lens, prompt.tokens, heads, shown, of.flow.erases)
        return folder.take("hidden.safetensors", given, HiddenHeads.load, made)

    def _knocked(self, folder: Folder, found: list[OfPrompt]) -> dict[str, Knockout]:
        """Writes of the needle, and reads of the last token, by the heads that hold most of it."""
        options, lens = self.options, self.lens
        if options.texts is not None or not options.knockouts:
            return {}
        heads = len(recurrent_heads(lens))
        if heads < 2:
            warnings.warn(
                "knock-outs are left out: the model has no other recurrent head to compare with", stacklevel=2
            )
            return {}
        of = found[len(found) // 2]
        depth = 50 if of.prompt.depth is None else of.prompt.depth
        length = len(of.prompt.tokens)
        pair = make_pair(lens, "needle", options.hidden, length, depth, options.seed, haystack=options.haystack)
        name = options.metric or ("logit-difference" if pair.answers is not None else "kl")
        try:
            one = measure(lens, pair, options.hidden.rubric, name)
        except InputError as error:
            if options.metric is not None:
                raise
            warnings.warn(f"knock-outs are left out: {error}", stacklevel=2)
            return {}
        needle = tuple(range(*pair.clean_prompt.needle_span or (0, 0)))
        made: dict[str, Knockout] = {}
        for n in sorted({1, -(-heads // 4)}):
            chosen = most_held(of.holding, -1, n)
            places: dict[What, tuple[int, ...]] = {"write": needle, "read": (len(one.clean) - 1,)}
            for what, positions in places.items():
                silence = Silence(f"{what}-{n}", what, chosen, positions)
                made[silence.name] = folder.take(
                    f"knockouts/{silence.name}.safetensors", [list(one.clean), name, *silence], Knockout.load,
                    partial(self._silenced, silence, one),
                )  # fmt: skip
        return made

    def _silenced(self, silence: Silence, one: Measure) -> Knockout:
        options = self.options
        return knockout(
            self.lens, list(one.clean), one.metric, silence.heads, silence.positions, silence.what,
            controls=options.controls, seed=options.seed,
        )  # fmt: skip

    def _probed(self, folder: Folder) -> StateProbes | None:
        """Which of two needles a prompt has, from the states after its last token."""
        options = self.options
        if options.texts is not None or not options.probes:
            return None
        if options.haystack is not None:
            warnings.warn("probes are left out: they need an essay for every pair, and a haystack is one", stacklevel=2)
            return None
        try:
            pairs = self._needles_in_essays()
        except InputError as error:
            warnings.warn(f"probes are left out: {error}", stacklevel=2)
            return None
        prompts = [list(side) for pair in pairs for side in (pair.a, pair.b)]
        labels = [needle for _ in pairs for needle in (0, 1)]
        groups = [essay for essay in range(len(pairs)) for _ in (0, 1)]
        made = partial(
            probe_states, self.lens, prompts, labels, groups=groups, layers=self.layers, shuffles=options.shuffles,
            seed=options.seed,
        )  # fmt: skip
        return folder.take("probes.safetensors", hash_json(prompts), StateProbes.load, made)

    def _needles_in_essays(self) -> list[PromptPair]:
        """Prompts with either of two needles, an essay of its own for each pair."""
        options, lens = self.options, self.lens
        length, depths = len(self.prompts[0].tokens), options.depths
        (needles,) = paired([options.hidden], lens.tokenizer)
        return [
            prompt_pairs(
                lens.tokenizer, [length], [depths[essay % len(depths)]], [needles], seed=options.seed + 1 + essay
            )[0]
            for essay in range(options.haystacks)
        ]
