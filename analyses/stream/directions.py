"""`Direction`: a direction in the activations of one hook point, as a value; and what stands behind it.

How it fails: a vector of no length has no direction, and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from hybridlens.display import Displayed, Table, many, number
from hybridlens.errors import InputError


@dataclass(frozen=True, eq=False)
class Direction(Displayed, Stored):
    """A direction at a hook point, made of pairs of prompts.

    With d_i the difference of a pair's activations (the first's minus the second's), and u the direction:

    Attributes:
        name: the hook point.
        unit: u, of length 1, in the shape of an activation at one token; float32, on the CPU.
        size: the mean of d_i · u: how far apart the two sides stand along it.
        spread: the standard deviation of d_i · u; NaN of one pair.
        explained: Σ (d_i · u)² ÷ Σ ‖d_i‖²: the share of what the pairs differ in that lies along it.
        method: "difference" of means, or "pca".
        pairs: how many there were.
        position: at which the prompts were read, as it was given.
        model: signature of the architecture.
    """

    name: str
    unit: Float[Tensor, "*axes"]
    size: float
    spread: float
    explained: float
    method: Literal["difference", "pca"]
    pairs: int
    position: int
    model: str

    @property
    def vector(self) -> Float[Tensor, "*axes"]:
        """u times its size: what moves the second side's activations to the first's, on average, along u."""
        return self.unit * self.size

    def along(self, x: Float[Tensor, "*batch"]) -> Float[Tensor, "*rest"]:
        """How far activations [… *axes] reach along it.

        Raises:
            InputError: their last axes are not those of an activation there.
        """
        unit = self.unit.to(x.device, torch.float32)
        if tuple(x.shape[x.ndim - unit.ndim :]) != tuple(unit.shape):
            raise InputError(
                f"activations {list(x.shape)} given, expected {list(unit.shape)} on the last axes, as at {self.name!r}"
            )
        return (x.float() * unit).flatten(x.ndim - unit.ndim).sum(dim=-1)

    def summary(self) -> str:
        """Where it is, how large, and how much of the pairs lies along it."""
        return (
            f"{self.method} at {self.name} of {many(self.pairs, 'pair')}: size {number(self.size, 3)}, spread "
            f"{number(self.spread, 3)}, {number(100 * self.explained, 3)} % of what the pairs differ in"
        )

    def table(self) -> Table:
        """A row for each entry of the direction."""
        axes = [f"axis {number}" for number in range(self.unit.ndim)] if self.unit.ndim > 1 else ["entry"]
        return Table.of({"unit": self.unit}, dict.fromkeys(axes))

    def view(self) -> tuple[Table]:
        """What is known of it."""
        return (
            Table(
                ("", "value"),
                (
                    ("size: how far apart the two sides stand along it", self.size),
                    ("spread of the pairs along it", self.spread),
                    ("share of what pairs differ in that lies along it", self.explained),
                ),
            ),
        )


def measured_along(
    name: str,
    unit: Float[Tensor, "number"],
    differences: Float[Tensor, "pair number"],
    shape: torch.Size,
    method: Literal["difference", "pca"],
    position: int,
    model: str,
) -> Direction:
    """A direction with what the pairs' differences say of it.

    Args:
        name: the hook point.
        unit: of any length but 0.
        differences: of each pair, float64.
        shape: of an activation at one token.
        method: by which it was made.
        position: as given.
        model: signature of the architecture.

    Raises:
        InputError: the two sides of the pairs do not differ.
    """
    length = float(unit.norm())
    if length == 0.0 or not bool(unit.isfinite().all()):
        raise InputError(f"the two sides of the pairs do not differ at {name!r}, so that there is no direction")
    along = differences @ (unit / length)
    total = float(differences.square().sum())
    spread = float(along.std(correction=0)) if len(along) > 1 else float("nan")
    return Direction(
        name, (unit / length).float().view(shape), float(along.mean()), spread,
        float(along.square().sum()) / total, method, len(differences), position, model,
    )  # fmt: skip
