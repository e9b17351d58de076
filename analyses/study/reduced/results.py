"""What is left of retrieval when attention is replaced by less, against what the smaller module costs: a typed curve.

Each row is a module: its name, its cost at one context (`shapes.Cost`), its scores on the prompts with a needle, and on
the same prompts without. **The knee** is the cheapest module that keeps retrieval, by one of the two costs (the other
breaks ties). One keeps it where the lower end of its 95 % interval is at least a `share` of the mean of the whole
module under the same training, and above the upper end of its own control's.

How it fails: an interval over few prompts is wide, and no module may keep retrieval by this rule though some score as
the whole one does; `keeps` of the whole one itself says whether the prompts could tell. The rule looks at many modules,
so that the knee's own score is a little flattered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from jaxtyping import Float, Int
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.study.rankings.curves import Value
from analyses.study.reduced.shapes import COSTS, Cost
from hybridlens.display import Curve, Piece, Table, many, number
from hybridlens.display.markup import cut
from hybridlens.errors import ResultsError
from hybridlens.results.statistics import bootstrap_interval
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot


@dataclass(frozen=True, eq=False)
class ReducedModules(Plotted, Stored, text=True):
    """Modules in attention's place, side by side; the first is the whole one, untrained.

    Attributes:
        model: what results call the model.
        context: tokens at which costs are stated.
        names: of the modules, as they stand without training.
        kinds: of `shapes.KINDS`.
        tuned: whether its weights were fine-tuned with the reduction in place.
        token_bytes: bytes held, by token of the context.
        multiplications: of one token decoded.
        scores: share of the highest score, 0 to 1, prompt by prompt.
        controls: likewise without the needle.
        share: of the whole module's retrieval that is to be kept.
        steps: of the fine-tune; 0 for none.
        notes: what is to be known of the rankings, a sentence each.

    Raises:
        ResultsError: not one of each for every module, or no module.
    """

    model: str
    context: int
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    tuned: tuple[bool, ...]
    token_bytes: Float[Tensor, "module"]
    multiplications: Int[Tensor, "module"]
    scores: Float[Tensor, "module prompt"]
    controls: Float[Tensor, "module control"]
    share: float
    steps: int
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        sizes = {len(part) for part in (self.names, self.kinds, self.tuned, self.token_bytes, self.scores)}
        if len(sizes) > 1 or not self.names or self.kinds[0] != "all" or self.tuned[0]:
            raise ResultsError(f"{sizes} modules given; expected one of everything for each, the whole module first")

    @cached_property
    def retrieval(self) -> tuple[Value, ...]:
        """Mean score over prompts of each module, with its interval."""
        return tuple(_mean(row) for row in self.scores)

    @cached_property
    def control(self) -> tuple[Value, ...]:
        """Likewise without the needle."""
        return tuple(_mean(row) for row in self.controls)

    def cost(self, module: int) -> Cost:
        """What a module costs."""
        return Cost(float(self.token_bytes[module]), int(self.multiplications[module]))

    def whole(self, tuned: bool) -> int:
        """The place of the whole module under the same training.

        Raises:
            ResultsError: there was none.
        """
        for place, (kind, own) in enumerate(zip(self.kinds, self.tuned, strict=True)):
            if kind == "all" and own == tuned:
                return place
        raise ResultsError("no whole module was fine-tuned, expected one as the control of those that were")

    def keeps(self, module: int) -> bool:
        """Whether a module keeps retrieval, by the rule."""
        least = self.share * self.retrieval[self.whole(self.tuned[module])].value
        found = self.retrieval[module]
        return found.low >= least > 0 and found.low > self.control[module].high

    def knee(self, by: str, tuned: bool = False) -> int | None:
        """The place of the cheapest module that keeps retrieval; None where none does.

        Args:
            by: one of `COSTS`.
            tuned: among those that were fine-tuned, or those that were not.
        """
        kept = [i for i in self.among(tuned) if self.keeps(i)]
        return min(kept, key=lambda i: self._order(i, by), default=None)

    def among(self, tuned: bool) -> list[int]:
        """The places of modules that were fine-tuned, or were not."""
        return [i for i, own in enumerate(self.tuned) if own == tuned]

    def front(self, by: str, tuned: bool = False) -> list[int]:
        """Places of modules than which no cheaper one scores as much, cheapest first."""
        found: list[int] = []
        for i in sorted(self.among(tuned), key=lambda i: (*self._order(i, by), -self.retrieval[i].value)):
            if not found or self.retrieval[i].value > self.retrieval[found[-1]].value:
                found.append(i)
        return found

    def label(self, module: int) -> str:
        """A module's name, and whether it was fine-tuned."""
        return self.names[module] + (" (fine-tuned)" if self.tuned[module] else "")

    def _order(self, module: int, by: str) -> tuple[float | int, float | int]:
        cost = self.cost(module)
        return (cost[0], cost[1]) if by == COSTS[0] else (cost[1], cost[0])

    def summary(self) -> str:
        """How many, and the knee by bytes."""
        place = self.knee("bytes")
        found = "none keeps retrieval" if place is None else f"knee by bytes: {cut(self.label(place), 60)}"
        return f"{many(len(self.names), 'module')}, {many(self.scores.shape[1], 'prompt')}; {found}"

    def table(self) -> Table:
        """A row for each module."""
        rows: list[tuple[str | int | float | bool, ...]] = []
        for i, (name, kind, tuned) in enumerate(zip(self.names, self.kinds, self.tuned, strict=True)):
            rows.append((name, kind, tuned, *self.cost(i), *self.retrieval[i], *self.control[i], self.keeps(i)))
        columns = (
            "module", "kind", "tuned", "bytes a token", "multiplications", "retrieval", "low", "high", "control",
            "control low", "control high", "keeps",
        )  # fmt: skip
        meanings = {
            "bytes a token": f"held at {self.context} tokens, by token of context",
            "multiplications": "of one token decoded",
            "retrieval": "mean share of the highest score, with its 95 % interval over prompts",
            "keeps": "by the rule of the knee",
        }
        return Table(columns, rows, meanings, ("retrieval",))

    def view(self) -> tuple[Piece, ...]:
        """Every module, and the best score at each number of bytes."""
        front = self.front("bytes")
        line = {"": [self.retrieval[i].value for i in front]}
        drawn = Curve([self.cost(i).token_bytes for i in front], line, "bytes a token of context", "retrieval, 0 to 1")
        return (self.table(), drawn)

    def plot(self, by: str = "bytes") -> Plot:
        """Retrieval against one of the costs, a symbol for each kind.

        Args:
            by: one of `COSTS`.
        """
        from analyses.study.reduced.figure import chart
        from hybridlens.viz.plot import Plot

        return Plot(chart(self, by))


def sentences(found: ReducedModules) -> list[str]:
    """What the curve says, the knees first, the rule last."""
    said: list[str] = []
    whole = found.retrieval[0]
    if whole.value == 0:
        return [f"{found.model} answers none of {many(found.scores.shape[1], 'prompt')}, so nothing can be kept of it."]
    for tuned in (False, True):
        if found.among(tuned):
            said += dict.fromkeys(_knee(found, by, tuned) for by in COSTS)
    cost = found.cost(0)
    said.append(
        f"The whole module holds {number(cost.token_bytes)} bytes a token of context and multiplies "
        f"{cost.multiplications:,} times a token decoded, at {found.context} tokens, and scores {_percent(whole)}."
    )
    if found.among(True):
        said.append(
            f"Fine-tuned for {many(found.steps, 'step')} as it is, the control, it scores "
            f"{_percent(found.retrieval[found.whole(True)])}."
        )
    return [*said, rule(found)]


def rule(found: ReducedModules) -> str:
    """The rule of the knee, in a sentence."""
    return (
        "A module keeps retrieval where the lower end of its 95 % interval over prompts is at least "
        f"{100 * found.share:g} % of what the whole module scores under the same training, and above the upper end of "
        "its own score without a needle; the knee is the cheapest that does."
    )


def _knee(found: ReducedModules, by: str, tuned: bool) -> str:
    training = f"After {many(found.steps, 'step')} of fine-tuning" if tuned else "Without training"
    place, whole = found.knee(by, tuned), found.whole(tuned)
    if place is None:
        return (
            f"{training} no module, the whole one included, keeps retrieval by the rule: it scores "
            f"{_percent(found.retrieval[whole])}, and the prompts are too few, or that is too little."
        )
    before, after = (found.cost(i)[COSTS.index(by)] for i in (whole, place))
    if after >= before:
        return f"{training} no module of fewer {by} keeps retrieval by the rule."
    unit = "bytes a token of context" if by == COSTS[0] else "multiplications a token decoded"
    fewer = f", {before / after:.3g} times fewer than the whole module's" if after else ""
    return (
        f"{training} the knee by {by} is {found.names[place]}: {_plain(after)} {unit}{fewer}, with "
        f"{_percent(found.retrieval[place])} of the highest score."
    )


def _plain(cost: float | int) -> str:
    return f"{cost:,}" if isinstance(cost, int) else number(cost)


def _percent(value: Value) -> str:
    return f"{100 * value.value:.0f} % ({100 * value.low:.0f} to {100 * value.high:.0f})"


def _mean(scores: Tensor) -> Value:
    values: Sequence[float] = scores.double().tolist()
    return Value(float(scores.double().mean()), *bootstrap_interval(values))
