"""`DirectAttribution`: the shares that the parts of a model have in its logits, with the parts named.

How it fails: a file that does not hold a result, and a writer that the model lacks, raise one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.patching.writers import Writer
from hybridlens.errors import InputError

Share: TypeAlias = Float[Tensor, "pos question"]

_PARTS = {"mlp": ("expert", "shared_expert"), "ssm": ("ssm_head",)}
"""Kinds of writers that a whole is told apart into."""


@dataclass(frozen=True, eq=False)
class DirectAttribution(Stored):
    """What each writer adds to some logits.

    Attributes:
        shares: by writer, position and question, in logits before any soft cap; float64, on the CPU.
        writers: every part of the model, in forward order.
        positions: of the prompt, from its start.
        questions: what was asked of each position, in words.
        before_cap: the model's own answers before any soft cap, in its own precision.
        logits: its answers after the cap; the same where there is none.
        scale: the final norm's at each position, by which what was written was divided.
        model: signature of the architecture.
        tokens: the prompt.
    """

    shares: Float[Tensor, "writer pos question"]
    writers: tuple[Writer, ...]
    positions: tuple[int, ...]
    questions: tuple[str, ...]
    before_cap: Float[Tensor, "pos question"]
    logits: Float[Tensor, "pos question"]
    scale: Float[Tensor, "pos"]
    model: str
    tokens: tuple[int, ...]

    @property
    def total(self) -> Share:
        """The sum of all shares."""
        return self.shares.sum(dim=0)

    @property
    def remainder(self) -> Share:
        """What the shares leave of the model's own answer before the cap: rounding."""
        return self.before_cap - self.total

    def of(self, writer: Writer) -> Share:
        """The share of a writer; of one with parts, that of all of them.

        `Writer("mlp", 3)` is then all its experts, `Writer("ssm", 3)` all its recurrent heads; biases stand apart.

        Raises:
            InputError: there is no such writer.
        """
        if writer in self.writers:
            return self.shares[self.writers.index(writer)]
        kinds = _PARTS.get(writer.kind, ())
        parts = [i for i, other in enumerate(self.writers) if other.layer == writer.layer and other.kind in kinds]
        if not parts:
            has = ", ".join(other.words for other in self.writers)
            raise InputError(f"there is no writer '{writer.words}'; there are {has}")
        return self.shares[parts].sum(dim=0)

    def top(self, n: int = 10, position: int = -1, question: int = 0) -> list[tuple[Writer, float]]:
        """The `n` writers with the largest shares of either sign, the largest first.

        Args:
            n: how many.
            position: which of `positions`, by its place among them.
            question: likewise.
        """
        shares = self.shares[:, position, question]
        order = shares.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(self.writers[i], float(shares[i])) for i in order]
