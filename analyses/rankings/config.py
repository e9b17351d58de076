"""Every option of a comparison of rankings, checked as far as no model is needed, and the prompts it stands for.

Test prompts judge the rankings; calibration prompts make those that take a run. They share no needle, no essay seed
and no sentence of the haystack, so that no ranking is judged on what made it. What they do share is the essays'
grammar, the frame of the template and the form of some questions.

How it fails: an option that no model could run raises when the config is made; what depends on the model (counts
above its heads, prompts beyond its context, needles that leave nothing for calibration) when prompts are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from analyses.niah_config import NiahConfig, make_grid
from analyses.ranking import SCOPES
from analyses.rankings.ability import TASKS
from hybridlens import niah
from hybridlens.engine.budget import DEFAULT
from hybridlens.errors import InputError, UnknownNameError, closest
from hybridlens.model import HybridLens
from hybridlens.niah.lengths import PAPER_MAX_LENGTH

PHASES = ("both", "generation")
"""When heads are dropped: while reading and answering, or while answering only."""

TEST_NEEDLES = ("paper", "secret-word", "mayor")
CALIBRATION_NEEDLES = ("oslo", "treasure", "violin", "tuesday")
"""By default: each test needle has one of its form among them, and none of its words that matter."""

SEED_STEP = 1000
"""From the essay seed of the test prompts to that of the calibration prompts."""

EVERY_COUNT = 32
"""Models of up to so many attention heads are run at every number of heads kept."""


@dataclass(frozen=True)
class Calibration:
    """The prompts that rankings are made on.

    Attributes:
        needles: what is hidden; None for those of `CALIBRATION_NEEDLES` that are not tested.
        lengths: tokens of the prompts; None for those of the test.
        depths: places of the needle, percent of the context.
        seed: of the built-in essays; None for one `SEED_STEP` above the test's.
    """

    needles: tuple[niah.Needle, ...] | None = None
    lengths: tuple[int, ...] | None = None
    depths: tuple[int, ...] = (10, 50, 90)
    seed: int | None = None


@dataclass(frozen=True)
class RankingsConfig:
    """Every option of a comparison.

    Attributes:
        model: what results call the model.
        rankings: names of those wanted among the ones given, in any order; None for all.
        counts: numbers of heads kept, to which none and all are added; None for every one in models of up to
            `EVERY_COUNT` attention heads, else a ladder that gets coarser.
        scope: where heads compete: "model", or "layer", where a count is of each layer.
        phase: "both" or "generation": when the heads are dropped.
        run_time: whether the paper's own method stands beside the rankings: the heads of lowest entropy in each
            layer, chosen anew at every query.
        draws: random rankings, the level to beat; none where rankings named "random …" are given.
        lengths: tokens of the test prompts; None for the two shortest of the ten that a study has.
        depths: places of the needle, percent of the context.
        needles: what is hidden in the test prompts; None for `TEST_NEEDLES`.
        haystack: the filler of the test prompts; None for the built-in essays of `seed`.
        template: "base" or "instruct".
        calibration: the prompts that rankings are made on.
        filler_rows: texts whose loss is taken; 0 for none.
        filler_length: tokens of each.
        tasks: local tasks, at `task_counts`; () for none.
        task_counts: numbers of heads kept; None for none, a quarter, half and all. Random rankings have no tasks.
        task_limit: items of each task at most; None for all.
        batch_size: most rows that answer together; None for as many as fit. Changes no cell.
        memory: bytes that may be held beside the weights. Changes no cell.
        seed: of the built-in essays, of random rankings and of the held-out filler.
        max_new_tokens: length of the answers.
        command: the command line, to be recorded.

    Raises:
        InputError: an option that no model could run.
        UnknownNameError: a scope, phase or template that does not exist.
    """

    model: str
    rankings: tuple[str, ...] | None = None
    counts: tuple[int, ...] | None = None
    scope: str = "model"
    phase: str = "both"
    run_time: bool = True
    draws: int = 10
    lengths: tuple[int, ...] | None = None
    depths: tuple[int, ...] = (0, 25, 50, 75, 100)
    needles: tuple[niah.Needle, ...] | None = None
    haystack: niah.Haystack | None = None
    template: str = "base"
    calibration: Calibration = field(default_factory=Calibration)
    filler_rows: int = 2
    filler_length: int = 128
    tasks: tuple[str, ...] = TASKS
    task_counts: tuple[int, ...] | None = None
    task_limit: int | None = 24
    batch_size: int | None = None
    memory: int = DEFAULT
    seed: int = 0
    max_new_tokens: int = 40
    command: str = ""

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        for what, name, names in (("scope", self.scope, SCOPES), ("phase", self.phase, PHASES)):
            if name not in names:
                raise UnknownNameError(
                    f"{what} {name!r} does not exist{closest(name, names)}; expected one of {', '.join(names)}"
                )
        for option, values in (("--rankings", self.rankings), ("--counts", self.counts)):
            if values is not None and (not values or len(set(values)) < len(values)):
                raise InputError(f"{option} {list(values)} given, expected some values, each once")
        if self.counts is not None and min(self.counts) < 0:
            raise InputError(f"--counts {min(self.counts)} given, expected numbers of heads, 0 or more")
        if self.draws < 0 or self.filler_rows < 0:
            raise InputError(f"{self.draws} draws and {self.filler_rows} rows of filler given, expected 0 or more")
        _named_once(self.hidden, "--needles")
        self._prompts_of(self.hidden[0], self.lengths, self.depths)
        self._prompts_of(self.hidden[0], self.calibration.lengths, self.calibration.depths)
        if self.calibration.seed is not None and self.calibration.seed == self.seed and self.haystack is None:
            raise InputError(f"seed {self.seed} is given to the test and the calibration; give two essay seeds")
        if self.calibration.needles is not None:
            _named_once(self.calibration.needles, "the calibration's needles")
        _ = self.learned

    @property
    def hidden(self) -> tuple[niah.Needle, ...]:
        """The needles of the test prompts."""
        return tuple(niah.NEEDLES[name] for name in TEST_NEEDLES) if self.needles is None else self.needles

    @property
    def learned(self) -> tuple[niah.Needle, ...]:
        """The needles of the calibration prompts.

        Raises:
            InputError: one of them is tested, or none is left.
        """
        tested = {needle.sentence for needle in self.hidden}
        given = self.calibration.needles
        if given is None:
            given = tuple(n for n in map(niah.NEEDLES.__getitem__, CALIBRATION_NEEDLES) if n.sentence not in tested)
        shared = [needle.name for needle in given if needle.sentence in tested]
        if shared or not given:
            what = f"needle {shared[0]!r} is" if shared else "all calibration needles are"
            raise InputError(f"{what} both tested and calibrated on; give the calibration needles of its own")
        return given

    def _prompts_of(
        self,
        needle: niah.Needle,
        lengths: Sequence[int] | None,
        depths: Sequence[int],
        haystack: niah.Haystack | None = None,
    ) -> NiahConfig:
        """The options of one needle's prompts; its one condition stands for all."""
        return NiahConfig(
            model=self.model,
            lengths=None if lengths is None else tuple(lengths),
            depths=tuple(depths),
            control=False,
            needle=needle,
            haystack=self.haystack if haystack is None else haystack,
            template=self.template,
            heads=(0,),
            phases=("generation",),
            batch_size=self.batch_size,
            memory=self.memory,
            seed=self.seed,
            max_new_tokens=self.max_new_tokens,
        )

    def prompts(
        self,
        lens: HybridLens,
        needle: niah.Needle,
        lengths: Sequence[int],
        depths: Sequence[int],
        haystack: niah.Haystack | None = None,
    ) -> list[niah.Prompt]:
        """One needle's prompts, length by length.

        Raises:
            InputError: see `analyses.niah_config.make_grid`.
        """
        return list(make_grid(lens, self._prompts_of(needle, lengths, depths, haystack)).values())


def _named_once(needles: Sequence[niah.Needle], option: str) -> None:
    names = [needle.name for needle in needles]
    if not names or len(set(names)) < len(names):
        raise InputError(f"{option} are {names}, expected some needles, each with a name of its own")


def heads_in_all(lens: HybridLens, scope: str) -> int:
    """What a count runs up to: the heads of the model, or of each layer.

    Raises:
        InputError: the model has no attention layer.
    """
    if not lens.cfg.attention_layers:
        raise InputError("the model has no attention layer, so it has no heads to rank")
    return lens.cfg.n_heads * (1 if scope == "layer" else len(lens.cfg.attention_layers))


def counts_of(lens: HybridLens, config: RankingsConfig) -> tuple[tuple[int, ...], str | None]:
    """The numbers of heads kept, ascending, none and all among them, and a note where these are not all there are.

    The ladder of larger models is 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, …: dense where retrieval is lost, so that areas
    under a curve rest on straight lines elsewhere.

    Raises:
        InputError: a count above the heads there are.
    """
    most = heads_in_all(lens, config.scope)
    where = "each layer" if config.scope == "layer" else "the model"
    if config.counts is not None:
        if max(config.counts) > most:
            raise InputError(f"--counts {max(config.counts)} given, expected 0..{most}, the heads of {where}")
        return tuple(sorted({0, *config.counts, most})), None
    if most <= EVERY_COUNT:
        return tuple(range(most + 1)), None
    steps = {0, 1, most} | {n << i for n in (2, 3) for i in range(most.bit_length())}
    counts = tuple(sorted(n for n in steps if n <= most))
    return counts, f"Of {most} heads of {where}, {len(counts)} numbers kept were run: {', '.join(map(str, counts))}."


def prompt_lengths(lens: HybridLens, config: RankingsConfig) -> tuple[int, ...]:
    """Tokens of the test prompts: those given, or the two shortest of the ten that a study has.

    Raises:
        InputError: no tokenizer, or a context too short.
    """
    if config.lengths is not None:
        return config.lengths
    if lens.tokenizer is None:
        raise InputError(
            f"{config.model} has no tokenizer, which the prompts are made with; add its files to the folder"
        )
    needles, haystack = (*config.hidden, *config.learned), config.haystack
    shortest = max(
        niah.shortest_length(
            lens.tokenizer, needle=needle, template=config.template, haystack=haystack, seed=config.seed
        )
        for needle in needles
    )
    limits = [PAPER_MAX_LENGTH, int(lens.tokenizer.model_max_length)]
    limits += [] if lens.cfg.n_ctx is None else [lens.cfg.n_ctx - config.max_new_tokens]
    ten = niah.default_lengths(min(limits), shortest)
    return (ten[0], ten[1])


def judging_prompts(lens: HybridLens, config: RankingsConfig) -> dict[str, list[niah.Prompt]]:
    """The prompts that judge, by the needle's name.

    Raises:
        InputError: see `analyses.niah_config.make_grid`.
    """
    lengths = prompt_lengths(lens, config)
    return {needle.name: config.prompts(lens, needle, lengths, config.depths) for needle in config.hidden}


def calibration_prompts(lens: HybridLens, config: RankingsConfig) -> list[niah.Prompt]:
    """The prompts that rankings are made on: needles, essay seed and sentences that no test prompt has.

    The haystack is the built-in essays of another seed, less every sentence of the test's haystack.

    Raises:
        InputError: see `analyses.niah_config.make_grid`.
    """
    tested = set((niah.essays(config.seed) if config.haystack is None else config.haystack).sentences)
    seed = config.seed + SEED_STEP if config.calibration.seed is None else config.calibration.seed
    whole = niah.essays(seed, 4000)
    left = [sentence for sentence in whole.sentences if sentence not in tested]
    haystack = niah.Haystack(f"{whole.name}, calibration", " ".join(left))
    lengths = config.calibration.lengths or prompt_lengths(lens, config)
    depths = config.calibration.depths
    return [prompt for n in config.learned for prompt in config.prompts(lens, n, lengths, depths, haystack)]
