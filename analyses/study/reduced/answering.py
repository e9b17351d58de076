"""What a model answers with a reduction in attention's place, through the engine.

The cells of other experiments are of heads kept and weights manipulated (`hybridlens.results.CellKey`); here a
condition is any `Reduction`, so its answers are a file of their own, one reduction at a time.

How it fails: as `hybridlens.engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from hybridlens import niah
from hybridlens.display import Displayed, Table, many
from hybridlens.engine import Job, Spans, Sweep
from hybridlens.hooks import Edit, Phase
from hybridlens.model import HybridLens

ACTING = "reduced"
"""The one treatment of a sweep here."""


class Acting:
    """The same edits in every row that has any, as the engine takes them."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = edits

    def edits(self, treatments: Sequence[Hashable], spans: Sequence[Spans], phase: Phase) -> Sequence[Edit]:
        """See `hybridlens.engine.Treating`."""
        return () if all(one is None for one in treatments) else self._edits

    def together(self, treatment: Hashable) -> Hashable:
        """See `hybridlens.engine.Treating`."""
        return treatment

    def causal(self, treatment: Hashable) -> bool:
        """See `hybridlens.engine.Treating`: every reduction takes a token, or a query, by itself."""
        return True

    def places(self, treatment: Hashable) -> bool:
        """See `hybridlens.engine.Treating`."""
        return False


@dataclass(frozen=True, eq=False)
class Answers(Displayed, Stored, text=True):
    """What was said to each prompt, in their order.

    Attributes:
        texts: the answers.
        scores: the rubric's points as a share of the most, 0 to 1.
        margins: see `hybridlens.engine.Answer`.
    """

    texts: tuple[str, ...]
    scores: Float[Tensor, "prompt"]
    margins: Float[Tensor, "prompt"]

    def summary(self) -> str:
        """How many, and the mean score."""
        return f"{many(len(self.texts), 'answer')}, mean score {float(self.scores.mean()):.3f}"

    def table(self) -> Table:
        """A row for each prompt."""
        columns = zip(self.texts, self.scores.tolist(), self.margins.tolist(), strict=True)
        return Table(("answer", "score", "margin"), list(columns), {"score": "share of the most, 0 to 1"})


def answer(
    lens: HybridLens,
    prompts: Sequence[niah.Prompt],
    rubrics: Mapping[str, niah.Rubric],
    needles: Sequence[str],
    edits: Sequence[Edit],
    max_new_tokens: int,
    memory: int | None = None,
    rows: int | None = None,
    moved: Callable[[int], object] = lambda n: None,
) -> Answers:
    """The answers to prompts under edits that act while reading and answering alike, scored.

    Args:
        lens: the model, with a tokenizer.
        prompts: with and without a needle.
        rubrics: by the needle's name.
        needles: the needle's name of each prompt, its control's included.
        edits: of a reduction; none for the untouched model.
        max_new_tokens: at most so many in an answer.
        memory: bytes that may be held beside the weights; None for a share of what is free.
        rows: most that answer together; None for as many as fit. Neither changes an answer, but for rounding.
        moved: told after each batch how many more are answered.

    Raises:
        InputError: prompts that do not fit the model or the budget.
    """
    treatment = ACTING if edits else None
    jobs = [Job(prompt.tokens, treatment, treatment) for prompt in prompts]
    sweep = Sweep(lens, Acting(edits), max_new_tokens=max_new_tokens, memory=memory, rows=rows)
    texts, margins = [""] * len(jobs), torch.zeros(len(jobs))
    for batch in sweep.run(jobs):
        for one in batch:
            texts[one.job], margins[one.job] = one.answer.text, one.answer.margin
        moved(len(batch))
    scores = [niah.score(text, rubrics[name]) / niah.MAX_SCORE for text, name in zip(texts, needles, strict=True)]
    return Answers(tuple(texts), torch.tensor(scores), margins)
