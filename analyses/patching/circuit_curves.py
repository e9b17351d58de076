"""How much of a behaviour circuits carry, size by size, beside random circuits of the same sizes.

* Faithfulness: (m(circuit) - m(corrupt)) ÷ (m(clean) - m(corrupt)), the metric m of a run in which every edge outside
  of the circuit carries the corrupt run's value (Hanna, Pezzelle & Belinkov 2024, arXiv 2403.17806): 1 is the whole
  model, 0 is the corrupt run.
* Completeness: the same of the circuit's complement, all other edges (Marks et al. 2024, "Sparse Feature Circuits",
  arXiv 2403.19647): 0 where nothing that carries the behaviour was left out.
* Both of random circuits with as many edges, all of them on paths from the embedding to the logits.

What it costs: two runs a circuit, of ``sizes × (1 + draws)`` circuits, many a forward pass; the result says how many.

How it fails: above 1, or below 0, a circuit does more, or the contrary, of what the model does, since what it left out
worked against it; the curves need not rise. One pair of prompts says nothing of others. Few draws tell little of how
random circuits spread: of n draws the interval can be no wider than the least and the most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from analyses.patching.circuit import Circuit, whole_circuit
from analyses.patching.circuit_choice import Scored, Way, choose_circuit, random_circuit
from analyses.patching.circuit_runs import run_circuits
from analyses.patching.metrics import MetricLike
from analyses.patching.results import Compared
from analyses.patching.running import BATCH, MEMORY
from hybridlens.boundary import Natural, Positive, Seed, public
from hybridlens.display import Curve, Table, many
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.tokens import TokensLike

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

SHARES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Of a model's edges, the parts that circuits are made of when no sizes are given."""

LEVEL = 0.95
"""Of random draws, the part inside of their interval."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CircuitCurves(Compared):
    """Circuits of growing size, and what runs of them keep of the difference between two prompts.

    Attributes:
        circuits: by size, ascending; how each was chosen is in its `source`.
        faithfulness: of each, float64.
        completeness: faithfulness of each one's complement; 0 is complete.
        random_faithfulness: of random circuits of each size.
        random_completeness: of their complements.
        corrupt: the metric of the corrupt run.

    Raises:
        InputError: numbers that do not fit the circuits.
    """

    circuits: tuple[Circuit, ...]
    faithfulness: Float[Tensor, "size"]
    completeness: Float[Tensor, "size"]
    random_faithfulness: Float[Tensor, "size draw"]
    random_completeness: Float[Tensor, "size draw"]
    corrupt: float

    def __post_init__(self) -> None:
        """Refuse numbers that do not fit."""
        held = (self.faithfulness, self.completeness, self.random_faithfulness, self.random_completeness)
        if not self.circuits or any(values.shape[0] != len(self.circuits) for values in held):
            raise InputError(
                f"{len(self.circuits)} circuits given with numbers of {', '.join(str(v.shape[0]) for v in held)}"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many edges each has."""
        return tuple(circuit.size for circuit in self.circuits)

    @property
    def edges(self) -> int:
        """How many the model has."""
        return self.circuits[0].size + self.circuits[0].complement.size

    def interval(self, values: Float[Tensor, "size draw"]) -> Float[Tensor, "end size"]:
        """Between which two values `LEVEL` of the random circuits lie, for each size; NaN without any."""
        if not values.shape[1]:
            return torch.full((2, values.shape[0]), torch.nan, dtype=values.dtype)
        ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=values.dtype)
        return torch.quantile(values, ends, dim=1)

    def smallest(self, faithfulness: float = 0.9) -> Circuit | None:
        """The smallest circuit from which on all larger ones are at least so faithful; None if there is none."""
        lower = [i for i, value in enumerate(self.faithfulness.tolist()) if value < faithfulness]
        first = lower[-1] + 1 if lower else 0
        return self.circuits[first] if first < len(self.circuits) else None

    def summary(self) -> str:
        """The smallest faithful circuit, beside random ones."""
        found = self.smallest()
        at = len(self.circuits) - 1 if found is None else self.circuits.index(found)
        chance = ""
        if self.random_faithfulness.shape[1]:
            mean, n = float(self.random_faithfulness[at].mean()), self.random_faithfulness.shape[1]
            chance = f", {n} random circuits of that size {mean:.2f} on average"
        return (
            f"{self.sizes[at]} of {many(self.edges, 'edge')} keep {float(self.faithfulness[at]):.2f} of the difference "
            f"and their complement {float(self.completeness[at]):.2f}{chance}; {self.metric}"
        )

    def table(self) -> Table:
        """A row a size."""
        parts = {"faithfulness": self.random_faithfulness, "completeness": self.random_completeness}
        ends = {name: self.interval(values) for name, values in parts.items()}
        names = ("edges", "share", "faithfulness", "completeness")
        names += tuple(f"random {name}, {end}" for name in parts for end in ("mean", "low", "high"))
        rows = [
            (
                size, circuit.share, float(self.faithfulness[i]), float(self.completeness[i]),
                *(
                    float(value)
                    for name, values in parts.items()
                    for value in (values[i].mean(), ends[name][0, i], ends[name][1, i])
                ),
            )
            for i, (size, circuit) in enumerate(zip(self.sizes, self.circuits, strict=True))
        ]  # fmt: skip
        meanings = {
            "share": "of all edges of the model",
            "faithfulness": "what a run of the circuit keeps of the difference, 1 is the whole model",
            "completeness": "the same of all other edges, 0 where nothing was left out",
            "random faithfulness, low": f"{LEVEL:.0%} of the random circuits lie between low and high",
        }
        return Table(names, rows, meanings, title="")

    def view(self) -> tuple[Curve | Table, ...]:
        """The curves, and the table."""
        lines = {"circuit": self.faithfulness.tolist(), "its complement": self.completeness.tolist()}
        if self.random_faithfulness.shape[1]:
            lines["random circuits"] = self.random_faithfulness.mean(dim=1).tolist()
            lines["their complements"] = self.random_completeness.mean(dim=1).tolist()
        up = "share of the difference that a run keeps"
        return (Curve([float(size) for size in self.sizes], lines, "edges in the circuit", up), self.table())

    def plot(self) -> Plot:
        """Both curves over the number of edges, random circuits' with a band, and where the whole model lies."""
        import plotly.graph_objects as go

        from hybridlens.viz.layout import COLORS, DASHES, LEGEND, axis, lay_out, stroke
        from hybridlens.viz.plot import Plot

        figure, sizes = go.Figure(), list(self.sizes)
        ours = {"circuit": self.faithfulness, "its complement": self.completeness}
        for i, (name, values) in enumerate(ours.items()):
            tip = "%{x} edges: <b>%{y:.2f}</b>"
            figure.add_scatter(x=sizes, y=values.tolist(), name=name, hovertemplate=tip, **stroke(i))
        theirs = {"random circuits": self.random_faithfulness, "their complements": self.random_completeness}
        for i, (name, values) in enumerate(theirs.items()):
            if not values.shape[1]:
                continue
            low, high = self.interval(values).tolist()
            line: dict[str, Any] = stroke(i, 1.5, 5, DASHES[2], "-open")
            figure.add_scatter(x=sizes, y=values.mean(dim=1).tolist(), name=name, legendgroup=name, **line)
            figure.add_scatter(
                x=[*sizes, *reversed(sizes)], y=[*high, *reversed(low)], fill="toself", fillcolor=COLORS[i],
                opacity=0.15, line={"width": 0}, mode="lines", legendgroup=name, showlegend=False, hoverinfo="skip",
            )  # fmt: skip
        for value in (0, 1):
            figure.add_hline(y=value, line={"color": COLORS[4], "width": 1, "dash": "dot"})
        across = axis(f"edges in the circuit, of {self.edges}", type="log")
        up = axis("share of the difference that a run keeps<br>0: corrupt run, 1: clean run")
        return Plot(lay_out(figure, across, up, (70, 16, 50, 50), legend=LEGEND, showlegend=True))


@public
def circuit_curves(
    lens: HybridLens,
    clean: TokensLike,
    corrupt: TokensLike,
    metric: MetricLike,
    edges: Scored,
    sizes: Sequence[Positive] | None = None,
    *,
    how: Way = "greedy",
    draws: Natural = 10,
    seed: Seed = 0,
    batch_size: Positive = BATCH,
    memory: Annotated[int, Ge(1)] = MEMORY,
    progress: Callable[[int], None] | None = None,
) -> CircuitCurves:
    """Choose circuits of several sizes by the scores of their edges, and run them, their complements, and random ones.

    Arguments not named here are as in `circuit_runs.run_circuits`.

    Args:
        edges: what `edges.edge_attribution` gave for all writers and readers, with `steps` for EAP-IG; of these
            prompts or of others, of one pair or of several.
        sizes: edges chosen; None for the `SHARES` of all. A circuit has fewer where some of those chosen are on no
            path (`circuit_choice.choose_circuit`); one of no edge, or of the same size as another, is left out.
        how: "greedy" back from the logits, or "top" of all edges.
        draws: random circuits of each size.
        seed: of the first of them.

    Raises:
        InputError: what `run_circuits` and `choose_circuit` refuse, or sizes that all leave no circuit.
        UnknownNameError: there is no such way to choose.
    """
    total = whole_circuit(lens).size
    wanted = sorted({max(1, round(share * total)) for share in SHARES} if sizes is None else set(sizes))
    found = {circuit.size: circuit for circuit in (choose_circuit(lens, edges, n, how) for n in wanted)}
    chosen = [found[size] for size in sorted(found) if size]
    if not chosen:
        raise InputError(
            f"of the {wanted[-1] if wanted else 0} edges of the largest scores none is on a path from the embedding to "
            "the logits; give larger sizes"
        )
    drawn = [random_circuit(lens, circuit.size, seed + draw) for circuit in chosen for draw in range(draws)]
    circuits = [*chosen, *drawn]
    runs = run_circuits(
        lens, clean, corrupt, metric, [*circuits, *(circuit.complement for circuit in circuits)],
        batch_size=batch_size, memory=memory, progress=progress,
    )  # fmt: skip
    kept, without = runs.normalised.split(len(circuits))
    assert runs.corrupt is not None
    return CircuitCurves(
        circuits=tuple(chosen),
        faithfulness=kept[: len(chosen)],
        completeness=without[: len(chosen)],
        random_faithfulness=kept[len(chosen) :].view(len(chosen), draws),
        random_completeness=without[len(chosen) :].view(len(chosen), draws),
        clean=runs.clean,
        corrupt=runs.corrupt,
        metric=runs.metric,
        direction=runs.direction,
        model=runs.model,
        clean_tokens=runs.clean_tokens,
        corrupt_tokens=runs.corrupt_tokens,
        forwards=runs.forwards,
    )
