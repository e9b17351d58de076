"""`Knockout` and `KnockoutMap`: a metric without some recurrent heads, beside the untouched run, as saved results.

How it fails: a file that holds none raises `InputError`; the p-value of few random sets cannot be low.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.patching.results import SAME
from analyses.states.silencing import RecurrentHead, What
from hybridlens.boundary import Natural, public
from hybridlens.display import Grid, Piece, Table, listed, many, number
from hybridlens.display.markup import cut
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

Pool: TypeAlias = Literal["layers", "model"]
"""Where random heads are from: the layers of the heads given, as many of each, or the whole model."""


@dataclass(frozen=True, eq=False, kw_only=True)
class OfRun(Plotted, Stored):
    """What a result says of the run that heads are knocked out of.

    Attributes:
        untouched: the metric of the untouched run.
        what: "write" or "read".
        metric: what was measured, in words.
        model: signature of the architecture.
        tokens: the prompt.
        forwards: forward passes that were made.
    """

    untouched: float
    what: What
    metric: str
    model: str
    tokens: tuple[int, ...]
    forwards: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Knockout(OfRun):
    """A metric without some heads, and without as many others.

    Attributes:
        value: the metric without the heads.
        random: the metric without each random set, float64.
        heads: (layer, head) pairs.
        drawn: the heads of each random set.
        pool: where they were drawn from; see `Pool`.
        positions: at which the heads were knocked out; None for all.
        seed: of the draws.
    """

    value: float
    random: Float[Tensor, "control"]
    heads: tuple[RecurrentHead, ...]
    drawn: tuple[tuple[RecurrentHead, ...], ...]
    pool: Pool
    positions: tuple[int, ...] | None
    seed: int

    @property
    def change(self) -> float:
        """What knocking the heads out added to the metric."""
        return self.value - self.untouched

    @property
    def random_change(self) -> Float[Tensor, "control"]:
        """What knocking out each random set added."""
        return self.random - self.untouched

    @property
    def p_value(self) -> float:
        """How often heads at random take the metric at least as far; see the module."""
        size = max(abs(self.untouched), abs(self.value), float(self.random.abs().max()))
        as_far = self.random_change.abs() >= abs(self.change) - SAME * size
        return (1 + int(as_far.sum())) / (1 + len(self.random))

    def summary(self) -> str:
        """What was knocked out, and how far that takes the metric."""
        heads = listed((f"L{layer} S{head}" for layer, head in self.heads), 4)
        where = "everywhere" if self.positions is None else f"at {many(len(self.positions), 'position')}"
        change = f"{number(self.change, 3)} in {cut(self.metric, 50)}"
        return (
            f"{self.what} of {heads} {where}: {change}, p = {number(self.p_value, 2)} of {len(self.random)} random sets"
        )

    def table(self) -> Table:
        """A row for the heads given, and one for each random set."""
        words = [", ".join(f"L{layer} S{head}" for layer, head in heads) for heads in (self.heads, *self.drawn)]
        values = [self.value, *self.random.tolist()]
        kinds = ["given", *["random"] * len(self.random)]
        rows = [
            (kind, said, value, value - self.untouched) for kind, said, value in zip(kinds, words, values, strict=True)
        ]
        return Table(("set", "heads", "value", "change"), rows, {"value": self.metric}, ("change",))

    def plot(self) -> Plot:
        """How far each set takes the metric: the heads given beside random ones."""
        from analyses.stream.dots import dots

        sets = {"heads given": [self.change], f"{len(self.random)} random sets": self.random_change.tolist()}
        return dots(sets, f"change of the {self.metric}")


@dataclass(frozen=True, eq=False, kw_only=True)
class KnockoutMap(OfRun):
    """A metric without each head alone, block by block of positions.

    Attributes:
        values: the metric without it, float64.
        heads: (layer, head) of each row.
        blocks: half-open ranges of positions, of each column.
    """

    values: Float[Tensor, "rec_head block"]
    heads: tuple[RecurrentHead, ...]
    blocks: tuple[tuple[int, int], ...]

    @property
    def change(self) -> Float[Tensor, "rec_head block"]:
        """What each knock-out added to the metric."""
        return self.values - self.untouched

    @public
    def top(self, n: Natural = 10) -> list[tuple[RecurrentHead, tuple[int, int], float]]:
        """The `n` knock-outs that changed the metric most: head, positions and change."""
        change = self.change
        order = change.abs().flatten().argsort(descending=True, stable=True)[:n].tolist()
        places = [divmod(place, change.shape[1]) for place in order]
        return [(self.heads[head], self.blocks[block], float(change[head, block])) for head, block in places]

    def summary(self) -> str:
        """How many knock-outs, and which takes the metric farthest."""
        size = f"{many(len(self.heads), 'head')} × {many(len(self.blocks), 'block')} of positions"
        best = "".join(
            f"; most: L{layer} S{head} at {start}..{stop} {number(change, 3)}"
            for (layer, head), (start, stop), change in self.top(1)
        )
        return f"{self.what}, {size}, {cut(self.metric, 50)}{best}"

    def table(self) -> Table:
        """A row for each head and block of positions."""
        ends = {
            name: [[block[i] for block in self.blocks]] * len(self.heads) for i, name in enumerate(("start", "stop"))
        }
        layers = [[layer] * len(self.blocks) for layer, _ in self.heads]
        heads = [[head] * len(self.blocks) for _, head in self.heads]
        values = {"layer": layers, "head": heads, **ends, "value": self.values, "change": self.change}
        return Table.of(values, {"row": None, "block": None}, {"value": self.metric})

    def view(self) -> tuple[Piece, ...]:
        """What each knock-out changed."""
        rows = [f"L{layer} S{head}" for layer, head in self.heads]
        columns = [f"{start}..{stop}" for start, stop in self.blocks]
        return (Grid(self.change, rows, columns, "recurrent heads", "positions", f"change of {self.metric}"),)
