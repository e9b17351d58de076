"""`SteeringEffect`: what steering does to a metric, beside random directions of the same length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from hybridlens.display import Curve, Table, many, number
from hybridlens.viz.plotted import Plotted


@dataclass(frozen=True, eq=False)
class SteeringEffect(Plotted, Stored):
    """A metric under pushes along a direction. All tensors are float64, on the CPU.

    Attributes:
        values: the metric of each prompt, at each scale.
        random: the same along random directions.
        untouched: the metric of each prompt, unsteered.
        scales: how many times the direction was added.
        length: of what was added once, along the direction and along the random ones alike.
        metric: what was measured, in words.
        name: the hook point that was steered.
        seed: of the random directions.
        model: signature of the architecture.
    """

    values: Float[Tensor, "scale prompt"]
    random: Float[Tensor, "draw scale prompt"]
    untouched: Float[Tensor, "prompt"]
    scales: tuple[float, ...]
    length: float
    metric: str
    name: str
    seed: int
    model: str

    @property
    def change(self) -> Float[Tensor, "scale"]:
        """How far the metric goes from the untouched run's, the mean over prompts."""
        return (self.values - self.untouched).mean(dim=-1)

    @property
    def random_change(self) -> Float[Tensor, "draw scale"]:
        """The same along each random direction."""
        return (self.random - self.untouched).mean(dim=-1)

    @property
    def p_value(self) -> Float[Tensor, "scale"]:
        """(1 + random directions that change as much, either way) ÷ (1 + random directions); 1 at scale 0."""
        as_much = (self.random_change.abs() >= self.change.abs()).sum(dim=0).double()
        return (1 + as_much) / (1 + len(self.random))

    def summary(self) -> str:
        """The largest change, and that of random directions."""
        at = int(self.change.abs().argmax())
        other = number(float(self.random_change[:, at].abs().mean()), 3)
        return (
            f"{self.metric} goes by {number(float(self.change[at]), 3)} at {self.name} × {self.scales[at]:g}; along "
            f"{many(len(self.random), 'random direction')} by {other}, on average either way"
        )

    def table(self) -> Table:
        """A row a scale."""
        columns = "scale", "metric", "change", "random_change", "random_largest", "p_value"
        random = self.random_change
        rows = [
            tuple(map(float, row))
            for row in zip(
                self.scales, self.values.mean(dim=-1), self.change, random.mean(dim=0), random.abs().amax(dim=0),
                self.p_value, strict=True,
            )
        ]  # fmt: skip
        meanings = {
            "metric": f"{self.metric}, the mean over prompts", "change": "from the untouched run's",
            "random_change": "the mean along random directions of the same length",
            "random_largest": "the largest along one of them, either way",
            "p_value": "how often random directions change it as much",
        }  # fmt: skip
        return Table(columns, rows, meanings)

    def view(self) -> tuple[Curve, Table]:
        """The metric over scales, and the table."""
        order = torch.tensor(self.scales).argsort().tolist()
        untouched = float(self.untouched.mean())
        lines = {
            "direction": [float(self.values[i].mean()) for i in order],
            "random, mean": [untouched + float(self.random_change[:, i].mean()) for i in order],
            "random, lowest": [untouched + float(self.random_change[:, i].min()) for i in order],
            "random, highest": [untouched + float(self.random_change[:, i].max()) for i in order],
        }
        scales = [self.scales[i] for i in order]
        return Curve(scales, lines, f"times the direction at {self.name}", self.metric), self.table()
