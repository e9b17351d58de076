"""Probes at any hook point: how much of a label a linear map reads there, on prompts that it was not fitted to.

``probe.fit(lens, prompts, labels, name, position)`` reads the activation of one token of each prompt, and fits the
classifier of `analyses.stream.linear_probe` (which has its formula, controls and sources): held-out accuracy by
cross-validation, beside the same with labels shuffled and the share of the largest class. What comes back also holds
the classifier fitted to all prompts, to be used on others, and the direction of each class, to steer by.

How it fails: what a probe reads need not be used by the model; steer by it, or ablate it, to see. Labels that go with a
prompt's length, or anything else that is there, are read by that. Numbers that are no classes are refused: cut them
into a few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.stream.linear_probe import (
    FOLDS,
    SHUFFLES,
    STRENGTH,
    Folds,
    Labels,
    Probe,
    Strength,
    fitted,
    linear_probe,
)
from analyses.stream.reading import BATCH, activations, token_point
from hybridlens.boundary import Positive, Seed, public
from hybridlens.display import Displayed, Table, many, number
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.tokens import TokensLike


@dataclass(frozen=True, eq=False)
class FittedProbe(Displayed, Stored):
    """A probe at a hook point.

    Attributes:
        name: the hook point.
        read: how well labels are read from prompts held out, and shuffled ones.
        weight: of each class, of features as they are (the standardisation is in it); float32.
        bias: likewise. The class with the largest output is the one predicted.
        shape: of an activation at one token.
        positions: of each prompt, from its start.
        model: signature of the architecture.
    """

    name: str
    read: Probe
    weight: Float[Tensor, "class feature"]
    bias: Float[Tensor, "class"]
    shape: tuple[int, ...]
    positions: tuple[int, ...]
    model: str

    @property
    def accuracy(self) -> float:
        """On prompts held out."""
        return self.read.accuracy

    @property
    def shuffled(self) -> float:
        """The mean accuracy with labels shuffled."""
        return float(self.read.shuffled.mean())

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of `weight`."""
        return self.read.classes

    def outputs(self, x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch_and_class"]:
        """The output of each class for activations [… *shape]; the largest is the class predicted.

        Raises:
            InputError: their last axes are not those of an activation there.
        """
        n = len(self.shape)
        if tuple(x.shape[x.ndim - n :]) != self.shape:
            raise InputError(
                f"activations {list(x.shape)} given, expected {list(self.shape)} on the last axes, as at {self.name!r}"
            )
        flat = x.float().flatten(x.ndim - n)
        return flat @ self.weight.to(x.device).T + self.bias.to(x.device)

    @public
    def predict(
        self, lens: HybridLens, prompts: TokensLike, position: int | Sequence[int] = -1, *, batch_size: Positive = BATCH
    ) -> list[str]:
        """The class of each of other prompts.

        Args:
            lens: the model that the probe was fitted on.
            prompts: of any lengths.
            position: of each prompt, or one for all; counted from the end where below 0.
            batch_size: prompts in one forward pass.

        Raises:
            InputError: another model, or positions outside a prompt.
        """
        if lens.network.signature != self.model:
            raise InputError(
                f"the probe is of a model {self.model}, but this model is {lens.network.signature}; fit one to it"
            )
        held = activations(lens, prompts, [self.name], position, batch_size)[0][self.name]
        return [self.classes[best] for best in self.outputs(held).argmax(dim=-1).tolist()]

    @public
    def direction(self, label: str) -> Float[Tensor, "*shape"]:
        """Where the output of a class grows, of length 1, in the shape of an activation at one token; to steer by.

        Raises:
            InputError: there is no such class.
        """
        if label not in self.classes:
            raise InputError(f"there is no class {label!r}; there are {', '.join(self.classes)}")
        own = self.weight[self.classes.index(label)]
        return (own / own.norm()).view(self.shape)

    def summary(self) -> str:
        """How well it reads, beside its controls."""
        read = self.read
        right, shuffled, largest = (number(100 * x, 3) for x in (read.accuracy, self.shuffled, read.majority))
        return (
            f"{many(len(self.classes), 'class', 'classes')} at {self.name}: {right} % right on prompts held out, "
            f"{shuffled} % with labels shuffled, largest class {largest} %"
        )

    def table(self) -> Table:
        """The accuracy, and the controls."""
        read = self.read
        rows = (
            ("accuracy on prompts held out", read.accuracy),
            ("mean accuracy with labels shuffled", self.shuffled),
            ("share of the largest class", read.majority),
            ("selectivity: accuracy less that with labels shuffled", read.selectivity),
            ("p: how often shuffled labels are read as well", read.p_value),
            ("prompts", read.n_examples),
            ("features", read.n_features),
            ("folds", read.folds),
        )
        return Table(("", "value"), rows)


@public
def fit(
    lens: HybridLens,
    prompts: TokensLike,
    labels: Labels,
    name: str,
    position: int | Sequence[int] = -1,
    *,
    groups: Labels | None = None,
    folds: Folds = FOLDS,
    shuffles: Positive = SHUFFLES,
    seed: Seed = 0,
    strength: Strength = STRENGTH,
    batch_size: Positive = BATCH,
) -> FittedProbe:
    """Fit a linear probe to activations, and say how well it reads prompts that it was not fitted to.

    Args:
        lens: the model.
        prompts: as many as there are labels, of any lengths.
        labels: the class of each, whole numbers or strings.
        name: the hook point; all its numbers at one token are read.
        position: of each prompt, or one for all; counted from the end where below 0. What follows it is not read.
        groups: which prompts belong together, so that none is fitted to and predicted at once.
        folds: of the cross-validation.
        shuffles: how often labels are shuffled.
        seed: of folds and shuffles.
        strength: λ of the penalty, for each feature.
        batch_size: prompts in one forward pass.

    Raises:
        UnknownNameError: there is no such point.
        InputError: a point without numbers for each token; not one label, group or position for each prompt; labels
            that are no classes, or one class alone; a class with too few prompts (see `linear_probe.linear_probe`).
    """
    name = token_point(lens, name, "a probe")
    found, positions = activations(lens, prompts, [name], position, batch_size)
    held = found[name]
    features = held.flatten(1)
    read = linear_probe(
        features, labels, groups=groups, folds=folds, shuffles=shuffles, seed=seed, strength=strength
    )  # fmt: skip
    numbers: Int[Tensor, "example"] = torch.tensor([read.classes.index(str(label)) for label in labels])
    weight, bias = fitted(features, numbers, len(read.classes), strength)
    return FittedProbe(name, read, weight, bias, tuple(held.shape[1:]), positions, lens.network.signature)
