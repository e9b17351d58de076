"""The prompts of a study, and the cells made of them: a main grid, and coarser or other ones that share with it.

Prompts are made once for each needle, semantics and number of readings. The places of a needle depend on how many
depths there are, and so a coarser grid takes its prompts from among the main one's: cells of equal keys have equal
prompts. The coarser grid has half of the lengths and half of the depths, ends included: 5 by 5 of 10 by 10.

How it fails: a needle or length that does not fit raises `InputError` when its prompts are first asked for;
`LackingError` says that a whole experiment is ruled out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from analyses.experiment.options.needles import PAPER
from analyses.experiment.options.study import StudyConfig
from analyses.study.prompts import check_heads, prompts_of
from hybridlens import niah
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.niah.prompt import make_frame
from hybridlens.results import CellKey

Prompts: TypeAlias = Mapping[tuple[int, int | None], niah.Prompt]
"""By length and depth; depth None for a control."""

Cells: TypeAlias = Iterator[tuple[CellKey, niah.Prompt]]


class LackingError(InputError):
    """An experiment that this model, its semantics or its context rule out."""


def spread(values: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` of the values, evenly spread, first and last included; all where there are no more."""
    if count >= len(values):
        return tuple(values)
    if count < 2:
        return tuple(values[:count])
    return tuple(values[round(i * (len(values) - 1) / (count - 1))] for i in range(count))


class Grids:
    """The prompts of a study, each set made once, when it is first asked for.

    Args:
        lens: the model; its tokenizer and sizes are used.
        config: the study's.

    Attributes:
        ks: heads kept in the sweeps over k, ascending, n_heads included.
        lengths: of the main grid.
        some_lengths: of the coarser grid.
        some_depths: of the coarser grid.
        notes: what was chosen on the way.

    Raises:
        InputError: see `analyses.study.prompts.prompts_of`.
    """

    def __init__(self, lens: HybridLens, config: StudyConfig) -> None:
        self.lens = lens
        self.config = config
        self.n_heads = lens.cfg.n_heads
        self.ks = tuple(sorted({*check_heads(config.heads, self.n_heads, config.model), self.n_heads}))
        self.notes: list[str] = []
        self._made: dict[tuple[str, bool, str, tuple[int, ...]], Prompts] = {}
        main = self._make(PAPER, False, config.semantics, config.lengths)
        self.lengths = tuple(dict.fromkeys(length for length, _ in main))
        self._made[PAPER, False, config.semantics, self.lengths] = main
        self.some_lengths = spread(sorted(self.lengths), half(self.lengths))
        self.some_depths = spread(sorted(config.depths), half(config.depths))

    def _make(self, needle: str, jrt: bool, semantics: str, lengths: Sequence[int] | None) -> Prompts:
        hidden, control = self.config.needle_of(needle, semantics), self.config.control
        made = prompts_of(
            self.lens, self.config, hidden, lengths=lengths, control=control, jrt=jrt, semantics=semantics
        )
        return {(prompt.length, prompt.depth): prompt for prompt in made}

    def prompts(
        self, needle: str = PAPER, jrt: bool = False, semantics: str | None = None, lengths: Sequence[int] | None = None
    ) -> Prompts:
        """One set of prompts at every depth; of the main grid's lengths and semantics unless others are given."""
        rules = self.config.semantics if semantics is None else semantics
        key = needle, jrt, rules, tuple(self.lengths if lengths is None else lengths)
        if key not in self._made:
            self._made[key] = self._make(*key)
        return self._made[key]

    def cells(
        self,
        prompts: Prompts,
        conditions: Iterable[Mapping[str, Any]],
        lengths: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
    ) -> Cells:
        """Every condition (fields of `CellKey`) on the prompts of some lengths and depths, and on their controls."""
        own = {"model": self.config.model, "semantics": self.config.semantics, "boundary": self.config.boundary}
        wanted: list[dict[str, Any]] = [{**own, **condition} for condition in conditions]
        for (length, depth), prompt in prompts.items():
            if (lengths is None or length in lengths) and (depths is None or depth is None or depth in depths):
                for fields in wanted:
                    yield CellKey(length=length, depth=depth, control=depth is None, **fields), prompt

    def coarse(self, prompts: Prompts, conditions: Iterable[Mapping[str, Any]]) -> Cells:
        """`cells` on the coarser grid."""
        return self.cells(prompts, conditions, self.some_lengths, self.some_depths)

    def jrt_lengths(self) -> tuple[tuple[int, int], ...]:
        """(length read once, length read twice) of equal contexts, as far as the model's context goes.

        Clean lengths count both readings, so the second is twice the first less what stands only once: opening
        markup and the closing of the template. Published lengths count one reading and stay as they are.

        Raises:
            LackingError: not even the shortest fits.
        """
        tokenizer, config, n_ctx = self.lens.tokenizer, self.config, self.lens.cfg.n_ctx
        assert tokenizer is not None  # the main grid was made with it
        needle = config.needle_of(PAPER, config.semantics)
        once, twice = (make_frame(tokenizer, needle, config.template, jrt) for jrt in (False, True))
        single = 2 * once.count([needle.sentence]) - twice.count([needle.sentence] * 2)
        doubled = {length: 2 * length - single for length in self.lengths}
        fitting = [n for n in self.lengths if n_ctx is None or doubled[n] + config.max_new_tokens <= n_ctx]
        if not fitting:
            raise LackingError(
                f"fig3-jrt reads the context twice, which makes {min(doubled.values())} tokens of {min(self.lengths)}, "
                f"and {config.model} has room for {n_ctx}; give shorter --lengths"
            )
        return tuple((n, n if config.semantics == "published" else doubled[n]) for n in fitting)

    def other_lengths(self, semantics: str) -> tuple[int, ...]:
        """Lengths of the main grid that prompts of other semantics can have.

        Published prompts are longer. Where under half of the lengths are left, and none were asked for, there are as
        many anew, from the shortest such prompt up.

        Raises:
            LackingError: there is none.
        """
        assert self.lens.tokenizer is not None
        least = 0
        if semantics == "published":
            least = niah.shortest_length(self.lens.tokenizer, template=self.config.template, semantics=semantics)
        fitting = [length for length in self.lengths if length >= least]
        most, count = max(self.lengths), len(self.lengths)
        if fitting and self.config.lengths is None and len(fitting) < half(self.lengths) and most - least >= count - 1:
            return niah.default_lengths(most, least, count)
        if not fitting:
            raise LackingError(
                f"semantics compares prompts of both semantics, and published ones have at least {least} tokens; "
                f"give a length from there up beside {max(self.lengths)}"
            )
        return tuple(sorted(fitting))

    @staticmethod
    def apart(ours: Prompts, theirs: Prompts) -> tuple[Prompts, Prompts]:
        """Prompts of two semantics at the places at which each has a prompt that it has at no earlier one."""
        seen: set[str] = set()
        places: list[tuple[int, int | None]] = []
        for place in ours:
            both = {ours[place].hash, theirs[place].hash}
            if place[1] is None or not both & seen:
                places.append(place)
                seen |= both
        return {place: ours[place] for place in places}, {place: theirs[place] for place in places}


def half(values: Sequence[int]) -> int:
    """How many of a grid's lengths or depths the coarser grid has."""
    return (len(values) + 1) // 2
