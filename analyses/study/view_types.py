"""What the paper's figures are, as values: typed results that `analyses.study.views` makes from cells.

Accuracies are shares of the highest score, 0 … 1, with 95 % bootstrap intervals over prompts and the chance level
beside them. Every tensor says along which axes it lies, and its holder names what stands along each.

How it fails: NaN stands where no cell was run; `n` is 0 there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float32, Int64
from torch import Tensor

from hybridlens.results import Cell, TippingInterval
from hybridlens.results.cells import MODES, PHASES

READINGS = ("keep", "omit", "only", "binary", "null")
"""Rows of table 1: what is done to attention weights while the prompt is read."""

ANSWERINGS = ("keep", "omit", "only", "binary")
"""Columns of table 1: the same while the model answers."""

NEAR = 1e-4
"""Below this gap between the two best logits, rounding may decide a token."""


@dataclass(frozen=True)
class Accuracies:
    """Accuracy under conditions; every tensor has one entry for each, along the axes that its holder names.

    Attributes:
        mean: mean score ÷ highest score, 0 … 1; NaN where no cell was run.
        low: lower end of its 95 % interval over prompts; NaN likewise.
        high: upper end.
        chance: the same mean over the controls; NaN where none was run.
        n: prompts with a needle.
        n_control: controls.
    """

    mean: Float32[Tensor, "*condition"]
    low: Float32[Tensor, "*condition"]
    high: Float32[Tensor, "*condition"]
    chance: Float32[Tensor, "*condition"]
    n: Int64[Tensor, "*condition"]
    n_control: Int64[Tensor, "*condition"]


@dataclass(frozen=True)
class Differences:
    """Accuracy under conditions minus that under others, over the same places of the grid.

    Attributes:
        mean: mean of the differences, -1 … 1; NaN where no place was run under both.
        low: lower end of its 95 % interval over places, each drawn with both its scores.
        high: upper end.
        n: places compared: prompts of equal length and depth.
    """

    mean: Float32[Tensor, "*condition"]
    low: Float32[Tensor, "*condition"]
    high: Float32[Tensor, "*condition"]
    n: Int64[Tensor, "*condition"]


@dataclass(frozen=True)
class Fig2:
    """Accuracy against heads kept (figure 2).

    Attributes:
        phases: names along ``phase``: "generation", "prefill", those that were run.
        ks: heads kept, along ``k``, ascending.
        accuracy: [phase, k].
        tipping: for each phase the largest k at which accuracy falls under half of the full model's; None
            where it never does.
        intervals: for each phase where the tipping point lies when prompts are drawn again; None where some
            prompt was not run at every k.
    """

    phases: tuple[str, ...]
    ks: tuple[int, ...]
    accuracy: Accuracies
    tipping: tuple[int | None, ...]
    intervals: tuple[TippingInterval | None, ...]


@dataclass(frozen=True)
class JrtResult:
    """Accuracy with context and question given once and twice, generation version (figure 3, left).

    Attributes:
        ks: heads kept, along ``k``, ascending; the last is the full model where it was run.
        lengths: (length given once, length of the same context given twice), the pairs that are compared.
        accuracy: [reading, k]: first read once, at those lengths only, then read twice.
        gain: [k], read twice minus read once, by pair of lengths and depth.
        above_half: [k], read twice, minus half of the full model's on the same prompts; below 0 means that
            retrieval is lost.
    """

    ks: tuple[int, ...]
    lengths: tuple[tuple[int, int], ...]
    accuracy: Accuracies
    gain: Differences
    above_half: Differences


@dataclass(frozen=True)
class Table1:
    """Accuracy under every combination of manipulations (table 1).

    Attributes:
        readings: names along ``reading``, the table's rows.
        answerings: names along ``answering``, its columns.
        accuracy: [reading, answering].
        against_keep: [reading, answering], minus Keep-Keep on the same prompts.
    """

    readings: tuple[str, ...]
    answerings: tuple[str, ...]
    accuracy: Accuracies
    against_keep: Differences


class Condition(NamedTuple):
    """What is done to attention: the part of a cell's key that is not its prompt."""

    phase: str
    k: int
    reading: str = "keep"
    answering: str = "keep"

    @classmethod
    def of(cls, cell: Cell) -> Condition:
        """What a cell does to attention."""
        return cls(cell.phase, cell.k, cell.reading, cell.answering)

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Sorts conditions: by version, k ascending, then in the order of table 1."""
        return PHASES.index(self.phase), self.k, MODES.index(self.reading), MODES.index(self.answering)


@dataclass(frozen=True)
class Maps:
    """Retrieval maps: the score at every length and depth, for each condition (figures 4 to 7 and 10).

    Attributes:
        conditions: along ``condition``.
        lengths: tokens, along ``length``, ascending.
        depths: percent, along ``depth``, ascending; 0 is the start of the context.
        score: score ÷ highest, [condition, length, depth]; NaN where no cell was run.
        chance: the control's, [condition, length]; NaN likewise.
    """

    conditions: tuple[Condition, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    score: Float32[Tensor, "condition length depth"]
    chance: Float32[Tensor, "condition length"]


@dataclass(frozen=True)
class NeedlesResult:
    """Accuracy for several needles, generation version.

    Attributes:
        needles: names along ``needle``, the study's own first.
        ks: heads kept, along ``k``, ascending.
        accuracy: [needle, k], intervals over prompts.
        across: [k], mean over needles, interval over needles: how another set of them might come out.
    """

    needles: tuple[str, ...]
    ks: tuple[int, ...]
    accuracy: Accuracies
    across: Accuracies


@dataclass(frozen=True)
class Contrast:
    """Accuracy against heads kept under two values of one setting, on the same prompts.

    Attributes:
        setting: "scope" or "boundary".
        values: the two, along ``value``; the study's own first.
        ks: heads kept, along ``k``, ascending.
        accuracy: [value, k], over the prompts run under both.
        difference: [k], second minus first.
        tipping: for each value, as in `Fig2`.
    """

    setting: str
    values: tuple[str, str]
    ks: tuple[int, ...]
    accuracy: Accuracies
    difference: Differences
    tipping: tuple[int | None, int | None]


class Differing(NamedTuple):
    """A cell whose text or score is another under the other semantics."""

    clean: Cell
    published: Cell


@dataclass(frozen=True)
class SemanticsDifference:
    """What changes between clean and published semantics, cell by cell.

    Attributes:
        conditions: along ``condition``.
        accuracy: [semantics, condition], clean first, over the cells that were run under both.
        difference: [condition], published minus clean.
        n_cells: cells compared, controls included.
        n_text: of them, with another text.
        n_score: of them, with another score.
        differing: those with another text or score, in the order of the clean cells.
    """

    conditions: tuple[Condition, ...]
    accuracy: Accuracies
    difference: Differences
    n_cells: int
    n_text: int
    n_score: int
    differing: tuple[Differing, ...]
