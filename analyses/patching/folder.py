"""A folder with the patching of one prompt pair: a file a sweep, estimates beside them, `run.json`, the report.

    pair.json                       both prompts, and how the model answers them
    sweeps/NAME.safetensors         `PatchResult`, measured
    attribution/NAME.safetensors    `PatchResult`, estimated by gradients
    edges.safetensors               `EdgeResult`
    direct.safetensors              `DirectAttribution` of the clean prompt

Each file is written as it is finished, so that a killed run goes on sweep by sweep, and sweeps can be added to a folder
later: which sweeps are made is no part of what the run is.

How it fails: a folder that holds another pair, metric, direction or model is refused with `ResultsError` before
anything is computed; a file that cannot be read is made again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from analyses.checkpoints import weights_hash
from analyses.folders import finish, made, opened
from analyses.patching.alignment import token_strings
from analyses.patching.choosing import METRICS, PAIRS, WITH_GRADIENT, Measure, check_name, make_pair, measure
from analyses.patching.direct import direct_logit_attribution
from analyses.patching.direct_results import DirectAttribution
from analyses.patching.edge_results import EdgeResult
from analyses.patching.edges import edge_attribution
from analyses.patching.gradients import attribution_sweep
from analyses.patching.pairs import Pair
from analyses.patching.results import DIRECTIONS, PatchResult, check_direction
from analyses.patching.running import BATCH
from analyses.patching.sweeps import SWEEPS, sweep, sweep_of
from hybridlens import niah
from hybridlens.errors import CheckpointError, InputError
from hybridlens.model import HybridLens
from hybridlens.results import hash_json
from hybridlens.results.provenance import write_json
from hybridlens.results.record import Manifest

DEFAULT = (
    "resid_pre", "attn_out", "ssm_out", "mlp_out", "q", "k", "v", "z", "pattern", "k_by_position", "v_by_position",
    "state", "router",
)  # fmt: skip
"""The sweeps that are made unless others are asked for; those of them that a model has."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class PatchConfig:
    """Every option.

    Attributes:
        model: what results call the model.
        pair: one of `analyses.patching.choosing.PAIRS`.
        needle: name of the clean prompt's.
        sweeps: names of `SWEEPS`; None for those of `DEFAULT` that the model has, ("all",) for all that it has.
        metric: one of `analyses.patching.choosing.METRICS`.
        direction: "denoise" or "noise".
        length: tokens of the prompts; None for the shortest of the benchmark.
        depth: of the needle, in percent.
        attribution: whether sweeps, and edges, are estimated by gradients too.
        batch_size: patches in one forward pass; changes no result beyond rounding.
        seed: of the filler.
        command: the command line, to be recorded.

    Raises:
        InputError: batches of less than one patch.
        UnknownNameError: a pair, metric or direction that does not exist.
    """

    model: str
    pair: str = "needle"
    needle: str = "paper"
    sweeps: tuple[str, ...] | None = None
    metric: str = METRICS[0]
    direction: str = "denoise"
    length: int | None = None
    depth: int = 50
    attribution: bool = True
    batch_size: int = BATCH
    seed: int = 0
    command: str = ""

    def __post_init__(self) -> None:
        """Refuse what no model could do."""
        check_name("--pair", self.pair, PAIRS)
        check_name("--metric", self.metric, METRICS)
        check_direction(self.direction, DIRECTIONS)
        if self.batch_size < 1:
            raise InputError(f"batches of {self.batch_size} patches given, expected at least 1")


class Patched(NamedTuple):
    """Everything that a folder holds."""

    pair: Pair
    answers: tuple[str, str] | None
    """The tokens in which the two answers part, as text."""
    measure: Measure
    exact: dict[str, PatchResult]
    """By sweep, in the order of `SWEEPS`."""
    estimated: dict[str, PatchResult]
    edges: EdgeResult | None
    direct: DirectAttribution | None
    points: float | None = None
    """Of the answer to the clean prompt, by its needle's rubric (0 to `niah.MAX_SCORE`)."""


class PatchRun(NamedTuple):
    """A finished computation."""

    folder: Path
    found: Patched
    record: dict[str, Any]


def run(
    lens: HybridLens,
    config: PatchConfig,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PatchRun:
    """Compute what `folder` does not hold yet, and write it.

    Args:
        lens: the model, with a tokenizer.
        config: what to compute.
        folder: made when it does not exist.
        progress: called with the sweeps done, estimates among them, and their number.

    Raises:
        InputError: a pair that cannot be made, or a metric that does not tell its prompts apart.
        UnknownNameError: a sweep, needle or metric that there is not.
        ResultsError: the folder holds something else, or cannot be written.
    """
    wanted = chosen_sweeps(lens, config.sweeps)
    length = niah.shortest_length(lens.tokenizer, seed=config.seed) if config.length is None else config.length
    pair = make_pair(lens, config.pair, config.needle, length, config.depth, config.seed)
    measured = measure(lens, pair, config.needle, config.metric)
    record = opened(folder, _manifest(lens, config, pair, measured, wanted), more=True)
    write_json(folder / "pair.json", _pair_values(pair))
    stages = _Stages(lens, config, folder, measured)
    slope = measured.name in WITH_GRADIENT and (measured.name, config.direction) != ("kl", "noise")  # there it is 0
    estimate = config.attribution and slope
    total = len(wanted) * (1 + estimate) + estimate + 1
    for name in wanted:
        stages.exact(name)
        progress(stages.made, total)
        if estimate:
            stages.estimate(name)
            progress(stages.made, total)
    edges = stages.edges() if estimate else None
    direct = stages.direct(pair)
    progress(total, total)
    finish(folder, record)
    exact = {name: found for name in SWEEPS if (found := stages.stored(f"sweeps/{name}", PatchResult.load)) is not None}
    estimated = {name: found for name in exact if (found := stages.stored(f"attribution/{name}", PatchResult.load))}
    first, second = token_strings(pair.answers, lens.tokenizer) if pair.answers else ("", "")
    answers = (first, second) if pair.answers else None
    points = niah.score(pair.said[0], niah.NEEDLES[config.needle].rubric)
    return PatchRun(folder, Patched(pair, answers, measured, exact, estimated, edges, direct, points), record)


def chosen_sweeps(lens: HybridLens, names: Sequence[str] | None) -> list[str]:
    """The sweeps asked for, checked; by default those of `DEFAULT` that the model has.

    Raises:
        InputError: a sweep is named twice.
        UnknownNameError: there is no such sweep, or the model has nothing of the kind.
    """
    if names is None or tuple(names) == ("all",):
        return [name for name in (DEFAULT if names is None else SWEEPS) if SWEEPS[name].hooks(lens)]
    twice = [name for name in names if list(names).count(name) > 1]
    if twice:
        raise InputError(f"--sweeps names {twice[0]} more than once; name each sweep once")
    return [sweep_of(lens, name).name for name in names]


@dataclass
class _Stages:
    """One file after another, made where it is not stored."""

    lens: HybridLens
    config: PatchConfig
    folder: Path
    measure: Measure
    made: int = field(default=0)

    def exact(self, name: str) -> PatchResult:
        """A sweep, measured."""
        return self._take(f"sweeps/{name}", PatchResult.load, lambda: sweep(
            self.lens, name, self.measure.clean, self.measure.corrupt, self.measure.metric,
            direction=self.config.direction, batch_size=self.config.batch_size,
        ))  # fmt: skip

    def estimate(self, name: str) -> PatchResult:
        """A sweep, estimated by gradients."""
        return self._take(f"attribution/{name}", PatchResult.load, lambda: attribution_sweep(
            self.lens, name, self.measure.clean, self.measure.corrupt, self.measure.metric,
            direction=self.config.direction,
        ))  # fmt: skip

    def edges(self) -> EdgeResult | None:
        """Every direct path, estimated by gradients; None where the weights cannot be read."""
        return self._readable("edges", EdgeResult.load, lambda: edge_attribution(
            self.lens, self.measure.clean, self.measure.corrupt, self.measure.metric, direction=self.config.direction
        ))  # fmt: skip

    def direct(self, pair: Pair) -> DirectAttribution | None:
        """What each part adds to the clean answer's logit, and less the other's; None where no token tells them."""
        if pair.answers is None:
            return None
        right, difference = pair.answers[0], pair.logit_difference
        return self._readable("direct", DirectAttribution.load, lambda: direct_logit_attribution(
            self.lens, pair.clean_tokens, [difference, right]
        ))  # fmt: skip

    def stored(self, name: str, load: Callable[[Path], _T]) -> _T | None:
        """What an earlier session left; None where that is nothing, cannot be read or is of another pair."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            return None
        try:
            found = load(path)
        except InputError:
            return None
        same = not isinstance(found, PatchResult) or (
            (found.clean_tokens, found.corrupt_tokens, found.direction)
            == (self.measure.clean, self.measure.corrupt, self.config.direction)
        )
        return found if same else None

    def _readable(self, name: str, load: Callable[[Path], _T], make: Callable[[], _T]) -> _T | None:
        try:
            return self._take(name, load, make)
        except CheckpointError as error:  # quantised, or not in memory: the rest can be measured all the same
            warnings.warn(f"{name} attribution is left out: {error}", stacklevel=2)
            return None

    def _take(self, name: str, load: Callable[[Path], _T], make: Callable[[], _T]) -> _T:
        found = self.stored(name, load)
        if found is None:
            path = self.folder / f"{name}.safetensors"
            made(path.parent)
            found = make()
            assert isinstance(found, PatchResult | EdgeResult | DirectAttribution)
            found.save(path)
        self.made += 1
        return found


def _pair_values(pair: Pair) -> dict[str, Any]:
    return {
        "kind": pair.kind,
        "clean": list(pair.clean_tokens),
        "corrupt": list(pair.corrupt_tokens),
        "tokens": [list(side) for side in pair.strings],
        "needle": list(pair.clean.needle_span or ()),
        "answers": None if pair.answers is None else list(pair.answers),
        "said": list(pair.said),
        "shown": pair.show().splitlines(),
    }


def _manifest(
    lens: HybridLens, config: PatchConfig, pair: Pair, measured: Measure, sweeps: Sequence[str]
) -> Manifest:
    cfg = lens.cfg
    return Manifest(
        model=config.model,
        arguments={
            "pair": config.pair,
            "needle": config.needle,
            "metric": measured.name,
            "direction": config.direction,
            "length": len(pair.clean.tokens),
            "depth": config.depth,
            "dtype": str(lens.dtype).removeprefix("torch."),
            "prompts (their hash)": hash_json([measured.clean, measured.corrupt]),
        },
        seed=config.seed,
        max_score=niah.MAX_SCORE,
        config_hash=hash_json(lens.hf_model.config.to_dict()),
        weights_hash=weights_hash(config.model, lens),
        job="patch",
        command=config.command,
        settings={
            "sweeps": list(sweeps),
            "attribution": config.attribution,
            "batch_size": config.batch_size,
            "device": str(lens.device),
        },
        facts={
            "family": cfg.family,
            "attention layers": list(cfg.attention_layers),
            "recurrent layers": list(cfg.ssm_layers),
            "heads": cfg.n_heads,
            "key/value heads": cfg.n_kv_heads,
            "window": cfg.window,
        },
    )
