"""Recall as the number of facts grows: prompts of one length, answered with attention and without.

Every prompt with every number of facts, and its control, is answered by the untouched model and, where it has
attention, with every head silent while reading and answering: what is told then, recurrent states have held. Cells,
portions and answers are those of every experiment of this kind (`analyses.heads.answering`); `capacity.json` is what
they say.

How it fails: see `analyses.experiment`; facts that do not fit the length, or a length beyond the context, are refused
before the folder is touched. A length beyond the model's window is taken: facts that have left it are then lost to
attention whatever their number, and the report says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analyses.experiment.options.capacity import CapacityConfig
from analyses.experiment.options.needles import arguments_of
from analyses.experiment.parts import Part
from analyses.experiment.running import Experiment, Progress, result_of
from analyses.heads.answering import Grid, answer_all, answering_parts
from analyses.study.capacity.forms import FORMS, NEITHER, told
from analyses.study.capacity.prompts import FactPrompt, Laid, fact_prompts, filler, lay, least_length, usual_length
from analyses.study.capacity.report import article_of, capacity_table
from analyses.study.capacity.results import SILENT, UNTOUCHED, Capacity, FactAnswer, memory_sizes
from analyses.study.prompts import check_budget_of
from hybridlens import niah
from hybridlens.config import LensConfig
from hybridlens.model import HybridLens
from hybridlens.niah.lengths import PAPER_MAX_LENGTH
from hybridlens.results import Cell, CellKey, Folder, Manifest, Run
from hybridlens.tokens import check_context
from hybridlens.viz.article import Article

COUNTS = (1, 2, 4, 8, 16)
"""Numbers of facts where none are given, as far as they fit."""

FILE = "capacity.json"


class CapacityRun(Experiment[CapacityConfig, Capacity]):
    """Recall against the number of facts, of any causal model.

    Raises:
        InputError: a tokenizer that cannot serve; facts, a length or a haystack that do not fit.
    """

    job = "capacity"
    unit = "cell"
    of_heads = False

    def __init__(self, lens: HybridLens, options: CapacityConfig, weights_hash: str | None = None) -> None:
        super().__init__(lens, options, weights_hash)
        self.counts, laid = self._laid()
        some = options.haystack or niah.essays(options.seed)
        self.length = options.length or usual_length(laid, some, self._limit())
        check_context(self.length + options.max_new_tokens, lens.cfg.n_ctx)
        haystack = options.haystack or filler(self.length, options.prompts, options.seed)
        self.prompts = fact_prompts(laid, self.counts, self.length, haystack)
        heads = lens.cfg.n_heads
        self.conditions = {UNTOUCHED: heads, **({SILENT: 0} if lens.cfg.attention_layers else {})}
        self.cells = {
            condition: {self._key(k, prompt): prompt for prompt in self.prompts}
            for condition, k in self.conditions.items()
        }

    @classmethod
    def check_memory(cls, options: CapacityConfig, cfg: LensConfig, dtype: str) -> None:
        """See `Experiment`; of a default length at least one token is known."""
        check_budget_of(options, cfg, dtype, options.length or 1)

    def _limit(self) -> int:
        """Tokens of a prompt at most where no length is given: the window's, what the context leaves, the paper's."""
        cfg = self.lens.cfg
        limits = [PAPER_MAX_LENGTH, *([] if cfg.window is None else [cfg.window])]
        return min(limits if cfg.n_ctx is None else [*limits, cfg.n_ctx - self.options.max_new_tokens])

    def _laid(self) -> tuple[tuple[int, ...], list[Laid]]:
        """The numbers of facts, and the prompts laid out for the largest; by default the largest that fits."""
        options = self.options

        def laid(most: int) -> list[Laid]:
            how = (options.form, options.template, options.seed)
            return lay(self.lens.tokenizer, most, options.prompts, *how)

        if options.facts is not None:
            return options.facts, laid(options.facts[-1])
        limit = options.length or self._limit()
        for last in range(len(COUNTS), 0, -1):
            made = laid(COUNTS[last - 1])
            if last == 1 or least_length(made) <= limit:
                return COUNTS[:last], made
        raise AssertionError("one fact is always laid out")

    def _key(self, k: int, prompt: FactPrompt) -> CellKey:
        depth = None if prompt.control else prompt.depth
        return CellKey(self.options.model, "prefill", k, self.length, depth, prompt.control, prompt.name)

    @property
    def grid(self) -> Grid:
        """Every cell and its prompt, condition by condition."""
        return {key: prompt.prompt for cells in self.cells.values() for key, prompt in cells.items()}

    def _rubrics(self) -> dict[tuple[str, str], niah.Rubric]:
        return {(prompt.name, "clean"): prompt.asked.rubric for prompt in self.prompts}

    def manifest(self) -> Manifest:
        """See `Experiment`."""
        options = self.options
        arguments = {
            **arguments_of(options),
            "facts": list(self.counts),
            "form": options.form,
            "length": self.length,
            "prompts": options.prompts,
        }
        haystack = None if options.haystack is None else options.haystack.name
        settings = {"batch_size": options.batch_size, "memory": options.memory, "haystack": haystack}
        return self.identity(arguments, settings)

    def expected(self) -> Mapping[CellKey, str]:
        """See `Experiment`."""
        return {key: prompt.hash for key, prompt in self.grid.items()}

    def run(self, folder: Folder, progress: Progress) -> Capacity:
        """See `Experiment`."""
        store = Run(folder, self.expected())
        cells = answer_all(self.lens, store, self.grid, self._rubrics(), self.options, progress)
        found = self.found(cells)
        folder.keep(FILE, [cell.text for cell in cells], found)
        return found

    def parts(self, folder: Folder, wave: int) -> Sequence[Part]:
        """See `Experiment`: portions of the cells."""
        return answering_parts(self.lens, Run(folder, self.expected()), self.grid, self._rubrics(), self.options)

    def found(self, cells: Sequence[Cell]) -> Capacity:
        """What the cells say.

        Args:
            cells: all of the grid.
        """
        options, cfg = self.options, self.lens.cfg
        by_key = {cell.key: cell for cell in cells}
        answers = tuple(
            _answer(condition, prompt, by_key[key])
            for condition, prompts in self.cells.items()
            for key, prompt in prompts.items()
        )
        memory = memory_sizes(cfg, self.lens.dtype.itemsize, self.length)
        bits = FORMS[options.form].bits
        conditions = tuple(self.conditions)
        return Capacity(options.model, options.form, bits, self.length, self.counts, conditions, memory, answers)

    def page(self, result: Capacity, record: Mapping[str, Any]) -> Article:
        """See `Experiment`."""
        return article_of(result, record)

    def table(self, result: Capacity) -> Iterable[str]:
        """See `Experiment`."""
        return [capacity_table(result)]


def _answer(condition: str, prompt: FactPrompt, cell: Cell) -> FactAnswer:
    """A cell as an answer: the asked fact is the first that it may tell, in a control too."""
    facts = (prompt.asked, *prompt.others)
    given = told(cell.text, facts)
    which = "neither" if given == NEITHER else "right" if given == 0 else "other"
    return FactAnswer(
        condition=condition,
        facts=prompt.n,
        prompt=prompt.number,
        place=prompt.place,
        depth=prompt.depth,
        control=prompt.control,
        told=which,
        asked=prompt.asked.name,
        given="" if given == NEITHER else facts[given].name,
        strange=told(cell.text, prompt.strangers) != NEITHER,
        score=cell.score,
        text=cell.text,
    )


def capacity(
    lens: HybridLens,
    folder: Path | None = None,
    model: str = "model",
    weights_hash: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Capacity:
    """Recall against the number of facts in prompts of one length, with attention and without.

    Args:
        lens: any causal model, with a tokenizer.
        folder: where to keep the answers, and to go on from; None to keep none.
        model: what results call the model.
        weights_hash: digest of its weights; None to work it out.
        progress: see `analyses.experiment.running.Progress`.
        options: those of `CapacityConfig`: ``facts=(1, 2, 4)``, ``prompts=8``, …

    Raises:
        InputError, ResultsError: see `CapacityRun` and `analyses.experiment`.
    """
    return result_of(CapacityRun(lens, CapacityConfig(model=model, **options), weights_hash), folder, progress)
