"""The paper's main experiment, figure 2, with one needle: needle in a haystack under top-k head sparsification.

Every prompt and control is answered under every k in the generation and the prefill version. It is figure 2 of a
study, with a needle, template and number of readings of one's own, and exactly the k's that are asked for.

How it fails: see `analyses.experiment`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median_high
from typing import Any

from analyses.experiment.options.needles import PAPER, VERSIONS, arguments_of
from analyses.experiment.options.study import NiahConfig
from analyses.experiment.parts import Part
from analyses.experiment.running import Experiment, Progress
from analyses.heads import needle_heads
from analyses.heads.answering import Grid, answer_all, answering_parts
from analyses.study.experiments import NOTHING_TO_SILENCE
from analyses.study.groups import Base
from analyses.study.prompts import check_budget, check_heads, prompts_of
from analyses.study.report import accuracy_table, niah_page
from hybridlens import niah
from hybridlens.config import LensConfig
from hybridlens.effort import LEAST, Ahead, foresee
from hybridlens.errors import ResultsError
from hybridlens.model import HybridLens
from hybridlens.results import Cell, CellKey, Folder, Manifest, Run
from hybridlens.viz import PatternFigure
from hybridlens.viz.article import Article

ANSWER_TOKENS = 32
"""Tokens of the answer whose attention is drawn."""


class NiahRun(Experiment[NiahConfig, list[Cell]]):
    """Needle in a haystack while the k heads of lowest entropy are kept.

    Raises:
        InputError: see `analyses.study.prompts`.
    """

    job = "niah"
    unit = "cell"
    of_heads = False

    def __init__(self, lens: HybridLens, options: NiahConfig, weights_hash: str | None = None) -> None:
        super().__init__(lens, options, weights_hash)
        self.grid = make_grid(lens, options)

    @classmethod
    def check(cls, options: NiahConfig, cfg: LensConfig) -> None:
        """See `Experiment`; k above the heads too."""
        super().check(options, cfg)
        check_heads(options.heads, cfg.n_heads, options.model)

    @classmethod
    def check_memory(cls, options: NiahConfig, cfg: LensConfig, dtype: str) -> None:
        """See `Experiment`."""
        check_budget(options, cfg, dtype)

    def manifest(self) -> Manifest:
        """See `Experiment`."""
        options, needle = self.options, self.options.hidden
        arguments: dict[str, Any] = {
            **arguments_of(options),
            **{name: getattr(options, name) for name in ("control", "jrt", "boundary", "semantics")},
            "lengths": list(dict.fromkeys(key.length for key in self.grid)),
            "depths": list(options.depths),
            "needle": needle.sentence,
            "question": needle.question,
            "rubric": [list(rule) for rule in needle.rubric],
            "heads": list(dict.fromkeys(key.k for key in self.grid)),
            "phase": "both" if set(VERSIONS) <= set(options.phases) else " ".join(options.phases),
        }
        haystack = None if options.haystack is None else options.haystack.name
        settings = {"batch_size": options.batch_size, "memory": options.memory, "haystack": haystack}
        return self.identity(arguments, settings)

    def expected(self) -> Mapping[CellKey, str]:
        """See `Experiment`."""
        return {key: prompt.hash for key, prompt in self.grid.items()}

    def run(self, folder: Folder, progress: Progress) -> list[Cell]:
        """See `Experiment`."""
        store = Run(folder, self.expected())
        return answer_all(self.lens, store, self.grid, self._rubrics(), self.options, progress)

    def parts(self, folder: Folder, wave: int) -> Sequence[Part]:
        """See `Experiment`: portions of the cells."""
        store = Run(folder, self.expected())
        return answering_parts(self.lens, store, self.grid, self._rubrics(), self.options)

    def _rubrics(self) -> dict[tuple[str, str], niah.Rubric]:
        return {(key.needle, key.semantics): self.options.hidden.rubric for key in self.grid}

    def page(self, result: list[Cell], record: Mapping[str, Any]) -> Article:
        """See `Experiment`."""
        options = self.options
        base = Base(self.lens.cfg.n_heads, options.semantics, options.boundary, _name(options))
        patterns = needle_figures(self.lens, self.grid, result) if self.lens.cfg.attention_layers else ()
        return niah_page(result, record, base, patterns, self._notes())

    def table(self, result: list[Cell]) -> Iterable[str]:
        """See `Experiment`."""
        table = accuracy_table(result, self.options.model)
        return [table] if self.lens.cfg.attention_layers else [table, NOTHING_TO_SILENCE]

    def _notes(self) -> list[str]:
        """What a reader of the report has to know of this model and grid."""
        window, longest = self.lens.cfg.window, max(key.length for key in self.grid)
        if window is None or longest <= window:
            return []
        return [
            f"Attention sees the last {window} tokens only, and the longest prompts have {longest}: a needle "
            "that has left the window can only come back through what recurrent layers and later tokens kept."
        ]


def make_grid(lens: HybridLens, options: NiahConfig) -> Grid:
    """The cells of a run and their prompts: phase by phase, length by length, the controls after the grid.

    Raises:
        InputError: see `analyses.study.prompts`.
    """
    heads = check_heads(options.heads, lens.cfg.n_heads, options.model)
    prompts = prompts_of(
        lens, options, options.hidden, control=options.control, jrt=options.jrt, semantics=options.semantics
    )
    fixed: dict[str, Any] = {name: getattr(options, name) for name in ("jrt", "semantics", "boundary")}
    fixed["needle"] = _name(options)
    phases = options.phases if lens.cfg.attention_layers else options.phases[:1]  # else versions are the same
    return {
        CellKey(options.model, phase, k, prompt.length, prompt.depth, prompt.control, **fixed): prompt
        for phase in phases
        for prompt in prompts
        for k in heads
    }


def needle_figures(lens: HybridLens, grid: Grid, cells: Sequence[Cell]) -> list[PatternFigure]:
    """Patterns of the heads that look at the needle most, on a well answered prompt near the grid's middle.

    Raises:
        ResultsError: no cell holds a needle.
    """
    hidden = [cell for cell in cells if not cell.control]
    if not hidden:
        raise ResultsError("no cell holds a needle, so there is no pattern to draw; give depths")
    middle = median_high({cell.length for cell in hidden})
    best = min(hidden, key=lambda c: (-c.k, -c.score, abs(c.length - middle), abs((c.depth or 0) - 50)))
    prompt = grid[best.key]
    foresee(
        [Ahead(1, 2 * len(prompt.tokens) + ANSWER_TOKENS * LEAST)]
    )  # it is read to be answered, and to be looked at
    answer = lens.generate([list(prompt.tokens)], ANSWER_TOKENS)
    ids = answer.tokens[0, : int(answer.lengths[0])].tolist()
    seen = needle_heads.look(lens, prompt.tokens, ids, prompt.needle_spans)
    return [needle_heads.figure(seen, f"{best.length} tokens, needle at depth {best.depth:g} %")]


def _name(options: NiahConfig) -> str:
    return PAPER if options.needle is None else options.needle.name
