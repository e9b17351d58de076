"""Patching of one prompt pair as an experiment: a stage for each sweep, estimates beside them.

    pair.json                       both prompts, and how the model answers them
    sweeps/NAME.safetensors         `PatchResult`, measured
    attribution/NAME.safetensors    `PatchResult`, estimated by gradients
    edges.safetensors               `EdgeResult`
    direct.safetensors              `DirectAttribution` of the clean prompt

Sweeps can be added to a folder later: which sweeps are made is no part of what the run is.

How it fails: see `analyses.experiment`. Edges and direct attribution are left out, with a warning, where the weights
cannot be read; edges also where blocks are shared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from analyses.experiment.artefacts import Values
from analyses.experiment.options.needles import identity_of
from analyses.experiment.options.patch import PatchConfig
from analyses.experiment.parts import Part, stage
from analyses.experiment.running import Experiment, Progress
from analyses.patching.choosing import WITH_GRADIENT, make_pair, measure
from analyses.patching.direct import DirectAttribution, direct_logit_attribution
from analyses.patching.edges import edge_attribution
from analyses.patching.effects import Patched
from analyses.patching.gradients import attribution_sweep
from analyses.patching.pairs import Pair, own_pair
from analyses.patching.report import article_of, patch_table
from analyses.patching.results import EdgeResult, PatchResult
from analyses.patching.sweeps import SWEEPS, sweep, sweep_of
from hybridlens import niah
from hybridlens.config import LensConfig
from hybridlens.errors import CheckpointError, InputError
from hybridlens.model import HybridLens
from hybridlens.niah import Rubric
from hybridlens.results import Folder, Manifest, hash_json
from hybridlens.viz.article import Article

DEFAULT = (
    "resid_pre", "attn_out", "ssm_out", "mlp_out", "q", "k", "v", "z", "pattern", "k_by_position", "v_by_position",
    "state", "router",
)  # fmt: skip
"""The sweeps that are made unless others are asked for; those of them that a model has."""

MEASURED = 8.0
"""A sweep that is measured takes about as long as so many that are estimated."""

_T = TypeVar("_T")


class PatchRun(Experiment[PatchConfig, Patched]):
    """Which component carries the needle: activations of one prompt put into another, place by place.

    Raises:
        InputError: a pair that cannot be made, or a metric that does not tell its prompts apart.
        UnknownNameError: a sweep or needle that there is not.
    """

    job = "patch"
    unit = "sweep"
    of_heads = False

    def __init__(self, lens: HybridLens, options: PatchConfig, weights_hash: str | None = None) -> None:
        super().__init__(lens, options, weights_hash)
        self.wanted = chosen_sweeps(lens, options.sweeps)
        self.pair, self.rubric = self._pair()
        self.measure = measure(lens, self.pair, self.rubric, options.metric)
        slope = options.metric in WITH_GRADIENT and (options.metric, options.direction) != ("kl", "noise")  # there: 0
        self.estimating = options.attribution and slope
        self.sides = (lens, self.measure.clean, self.measure.corrupt, self.measure.metric)

    def _pair(self) -> tuple[Pair, Rubric | None]:
        """The prompts, and what grades answers to the clean one."""
        options, lens = self.options, self.lens
        own = options.prompts
        if own is not None:
            rubric = None if own.answers is None else niah.full_match_rubric(own.answers[0])
            return own_pair(lens, own.clean, own.corrupt), rubric
        length = niah.shortest_length(lens.tokenizer, seed=options.seed) if options.length is None else options.length
        pair = make_pair(
            lens, options.pair, options.hidden, length, options.depth, options.seed, twin=options.other,
            haystack=options.haystack,
        )  # fmt: skip
        return pair, options.hidden.rubric

    def manifest(self) -> Manifest:
        """See `Experiment`."""
        options = self.options
        needle = None if options.prompts is not None else identity_of(options.hidden)
        arguments = {
            "pair": self.pair.kind if options.prompts is not None else options.pair,
            "needle": needle,
            **{name: getattr(options, name) for name in ("metric", "direction", "depth")},
            "length": len(self.pair.clean_prompt.tokens),
            "prompts (their hash)": hash_json([self.measure.clean, self.measure.corrupt]),
        }
        settings = {"sweeps": self.wanted, "attribution": options.attribution, "batch_size": options.batch_size}
        return self.identity(arguments, settings)

    def run(self, folder: Folder, progress: Progress) -> Patched:
        """See `Experiment`."""
        options, pair = self.options, self.pair
        exact: dict[str, PatchResult] = {}
        estimated: dict[str, PatchResult] = {}
        held = [folder.holds(kind) for kind in ("sweeps", "attribution")]
        names = [name for name in SWEEPS if name in self.wanted or f"{name}.safetensors" in held[0]]
        guessed = [n for n in names if f"{n}.safetensors" in held[1] or (self.estimating and n in self.wanted)]
        total = len(names) + len(guessed) + self.estimating + 1
        progress(0, total)
        folder.take("pair.json", [pair.said], Values.load, lambda: Values(_pair_values(pair)))
        for name in names:
            exact[name] = self._swept(folder, name)
            if name in guessed:
                estimated[name] = self._guessed(folder, name)
            progress(len(exact) + len(estimated), total)
        edges = direct = None
        summed = (self.estimating or pair.answers is not None) and is_sum(self.lens.cfg)
        if self.estimating and any(layer.shared for layer in self.lens.cfg.layers):
            warnings.warn(
                "edge attribution is left out: this model has shared blocks, which read more than the residual "
                "stream and write nothing to it",
                stacklevel=2,
            )
        elif self.estimating and summed:
            edges = _readable("edge", lambda: folder.take(
                "edges.safetensors", "edges", EdgeResult.load,
                lambda: edge_attribution(*self.sides, direction=options.direction),
            ))  # fmt: skip
        if pair.answers is not None and summed:
            difference, right = pair.logit_difference, pair.answers[0]
            direct = _readable("direct", lambda: folder.take(
                "direct.safetensors", "direct", DirectAttribution.load,
                lambda: direct_logit_attribution(self.lens, pair.clean_tokens, [difference, right]),
            ))  # fmt: skip
        progress(total, total)
        answers = pair.texts or None
        points = None if self.rubric is None else niah.score(pair.said[0], self.rubric)
        return Patched(pair, answers, self.measure, exact, estimated, edges, direct, points)

    def parts(self, folder: Folder, wave: int) -> Sequence[Part]:
        """See `Experiment`: each sweep, measured and estimated; edges and direct attribution come with the report."""
        kinds = [("", self._swept), *([(", estimated", self._guessed)] if self.estimating else [])]
        return [
            stage(f"{name}{words}", partial(make, folder, name), 1.0 if words else MEASURED)
            for name in self.wanted
            for words, make in kinds
        ]

    def _swept(self, folder: Folder, name: str) -> PatchResult:
        lens, sides, options = self.lens, self.sides[1:], self.options
        return folder.take(
            f"sweeps/{name}.safetensors", name, PatchResult.load,
            lambda: sweep(lens, name, *sides, direction=options.direction, batch_size=options.batch_size),
        )  # fmt: skip

    def _guessed(self, folder: Folder, name: str) -> PatchResult:
        lens, sides, direction = self.lens, self.sides[1:], self.options.direction
        return folder.take(
            f"attribution/{name}.safetensors", name, PatchResult.load,
            lambda: attribution_sweep(lens, name, *sides, direction=direction),
        )  # fmt: skip

    def page(self, result: Patched, record: Mapping[str, Any]) -> Article:
        """See `Experiment`."""
        return article_of(result, record)

    def table(self, result: Patched) -> Iterable[str]:
        """See `Experiment`."""
        return [patch_table(result, self.options.model)]


def chosen_sweeps(lens: HybridLens, names: Sequence[str] | None) -> list[str]:
    """The sweeps asked for, checked; by default those of `DEFAULT` that the model has.

    Raises:
        UnknownNameError: there is no such sweep, or the model has nothing of the kind.
    """
    if names is None or tuple(names) == ("all",):
        return [name for name in (DEFAULT if names is None else SWEEPS) if SWEEPS[name].hooks(lens)]
    return [sweep_of(lens, name).name for name in names]


def is_sum(cfg: LensConfig) -> bool:
    """Whether the model's stream is a sum of what is written to it; else a warning says what is left out."""
    try:
        cfg.need_sum("edge and direct attribution")
    except InputError as error:
        warnings.warn(f"edge and direct attribution are left out: {error}", stacklevel=3)
        return False
    return True


def _readable(name: str, take: Callable[[], _T]) -> _T | None:
    try:
        return take()
    except CheckpointError as error:  # quantised, or not in memory: the rest can be measured all the same
        warnings.warn(f"{name} attribution is left out: {error}", stacklevel=2)
        return None


def _pair_values(pair: Pair) -> dict[str, Any]:
    return {
        "kind": pair.kind,
        "clean": list(pair.clean_tokens),
        "corrupt": list(pair.corrupt_tokens),
        "tokens": [list(side) for side in pair.strings],
        "needle": list(pair.clean_prompt.needle_span or ()),
        "answers": None if pair.answers is None else list(pair.answers),
        "said": list(pair.said),
        "shown": pair.show().splitlines(),
    }
