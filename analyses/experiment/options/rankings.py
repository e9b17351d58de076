"""The options of a comparison of rankings.

Test prompts judge the rankings; calibration prompts make those that take a run. They share no needle, no essay seed
and no sentence of the haystack, so that no ranking is judged on what made it. What they do share is the essays'
grammar, the frame of the template and the form of some questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from analyses.experiment.options.base import MaybeNumbers, MaybeWords, distinct, one_of
from analyses.experiment.options.circuits import Level
from analyses.experiment.options.needles import Depths, Needles, PromptOptions
from hybridlens import niah
from hybridlens.errors import InputError
from hybridlens.results.cells import SCOPES

PHASES = ("both", "generation")
"""When heads are dropped: while reading and answering, or while answering only."""

TEST_NEEDLES = ("paper", "secret-word", "mayor")
COPY = ", filler "
"""Between a needle's name and the number of its filler, in the names that prompts of later looks have."""

CALIBRATION_NEEDLES = ("oslo", "treasure", "violin", "tuesday")
"""By default: each test needle has one of its form among them, and none of its words that matter."""

GENERAL_TASKS = ("tiny_facts", "tiny_grammar")
"""The local tasks that are not retrieval: facts learned in training, and agreement."""


@dataclass(frozen=True)
class Calibration:
    """The prompts that rankings are made on.

    Attributes:
        needles: what is hidden; None for those of `CALIBRATION_NEEDLES` that are not tested.
        lengths: tokens of the prompts; None for those of the test.
        depths: places of the needle, percent of the context.
        seed: of the built-in essays; None for one a thousand above the test's.
    """

    needles: tuple[niah.Needle, ...] | None = None
    lengths: tuple[int, ...] | None = None
    depths: tuple[int, ...] = (10, 50, 90)
    seed: int | None = None


class ComparedOptions(PromptOptions):
    """The few prompts on which sets of heads, or what stands in their place, are compared."""

    lengths: MaybeNumbers = Field(
        None, description="Prompt lengths in tokens; the two shortest of a study's ten when left out."
    )
    depths: Depths = Field((0, 25, 50, 75, 100), description="Needle depths in percent, 0 the start.")
    needles: Needles = Field(
        None, description="A JSON file, or built-in names like oslo,code; three of them by default."
    )
    level: Level = Field(
        "random",
        description="What K-composition has to exceed in strengths from weights: random directions; or writers, the "
        "mean over the head's earlier ones, taken at the mean of the model's stream over filler, for large models.",
    )


class RankingsConfig(ComparedOptions):
    """Options of a comparison; a field with a description is one of the command's.

    Attributes:
        counts: numbers of heads kept, to which none and all are added; None for every one in small models, else a
            ladder that gets coarser.
        run_time: whether the paper's own method stands beside the rankings: the heads of lowest entropy in each
            layer, chosen anew at every query.
        draws: random rankings, the level to beat; none where rankings named "random …" are given.
        precision: the difference in area that has to be told apart (`analyses.study.rankings.deciding`).
        prompts: the budget: no look is taken at more, but for the first.
        calibration: the prompts that rankings are made on.
        filler_rows: texts whose loss is taken; 0 for none.
        filler_length: tokens of each.
        tasks: local tasks, at `task_counts`; () for none. Without lm-eval the usual two are left out, with a note.
        task_counts: numbers of heads kept; None for none, a quarter, half and all. Random rankings have no tasks.
        task_limit: items of each task at most; None for all.
    """

    rankings: MaybeWords = Field(
        None, description='Rankings to compare, like "entropy,retrieval strength"; all when left out.'
    )
    counts: MaybeNumbers = Field(None, description="Heads kept, like 0,4,8 or 0..16; from none to all when left out.")
    scope: Annotated[str, one_of(SCOPES)] = Field(
        "model", description="model: so many heads of the model are kept; layer: so many of each layer."
    )
    phase: Annotated[str, one_of(PHASES)] = Field(
        "both", description="both: heads are silent while reading and answering; generation: answering only."
    )
    draws: int = Field(10, ge=0, description="Random rankings, the level to beat.")
    precision: float = Field(
        0.03, gt=0, lt=1, description="Smallest difference in area that matters; smaller ones count as equal."
    )
    prompts: int = Field(
        480, ge=1, description="Prompts read at most; one of each needle, length and depth is read in any case."
    )
    run_time: bool = True
    calibration: Calibration = Calibration()
    filler_rows: int = Field(2, ge=0)
    filler_length: int = Field(128, ge=2)
    tasks: tuple[str, ...] = GENERAL_TASKS
    task_counts: tuple[int, ...] | None = None
    task_limit: int | None = Field(24, ge=1)

    @model_validator(mode="after")
    def _nothing_in_common(self) -> RankingsConfig:
        if self.calibration.seed is not None and self.calibration.seed == self.seed and self.haystack is None:
            raise InputError(f"seed {self.seed} is given to the test and the calibration; give two essay seeds")
        for needle in self.hidden:
            if COPY in needle.name:
                raise InputError(
                    f"needle {needle.name!r} given, but {COPY!r} marks copies of needles; name it otherwise"
                )
        if self.calibration.needles is not None:
            distinct("the calibration", self.calibration.needles)
        _ = self.learned
        return self

    @property
    def hidden(self) -> tuple[niah.Needle, ...]:
        """The needles of the test prompts."""
        return tuple(niah.NEEDLES[name] for name in TEST_NEEDLES) if self.needles is None else self.needles

    @property
    def first(self) -> int:
        """Prompts of the first look: the grid of needles, lengths and depths."""
        return len(self.hidden) * len(self.lengths or (0, 0)) * len(self.depths)

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
