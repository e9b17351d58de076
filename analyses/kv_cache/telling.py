"""What a state still tells of two needles: how likely the first words are in which they differ.

Both needles' sentences begin alike; after that beginning comes the first run of tokens that tells them apart. Its
log-probability is a finer measure than an answer: it shows what a memory holds also where no answer comes of it.

How it fails: the beginning is fed to the model, which by itself might have answered something else; and two numbers
that are both very low still lean one way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from analyses.kv_cache.pairs import PromptPair
from hybridlens.display import Displayed, Table
from hybridlens.hooks import Edit
from hybridlens.model import HybridLens
from hybridlens.state import HybridState


class _Contrast(NamedTuple):
    """Fields of `Contrast`."""

    begin: list[int]
    """What both begin with."""
    a: list[int]
    """The first run of tokens in which they differ, of A."""
    b: list[int]
    """Of B."""


class Contrast(Displayed, _Contrast):
    """The tokens that tell two needles apart, as they stand in the prompts: what a model copies."""

    __slots__ = ()


class _LogProbabilities(NamedTuple):
    """Fields of `LogProbabilities`."""

    a: Float[Tensor, "row"]
    b: Float[Tensor, "row"]


class LogProbabilities(Displayed, _LogProbabilities):
    """Natural logarithms, summed over a run's tokens."""

    __slots__ = ()

    def table(self) -> Table:
        """A row a row of the state: both log-probabilities, and how far B's words are likelier."""
        values = {"a": self.a, "b": self.b, "leaning": self.b - self.a}
        return Table.of(values, {"row": None}, {"leaning": "b less a, in nats"})


def contrast(pair: PromptPair) -> Contrast:
    """What tells the needles of a pair apart."""
    start, stop = pair.spans[-1]
    a, b = list(pair.a[start:stop]), list(pair.b[start:stop])
    same = [x == y for x, y in zip(a, b, strict=True)]
    first = same.index(False)
    last = same.index(True, first) if True in same[first:] else len(same)
    return Contrast(a[:first], a[first:last], b[first:last])


def logprobs(
    lens: HybridLens, state: HybridState, pairs: Sequence[PromptPair], edits: Sequence[Edit] = ()
) -> LogProbabilities:
    """How likely each row's needles are, from a state that has read all of a prompt but its last token.

    Args:
        lens: the model.
        state: not changed.
        pairs: one for each row; only needles and last token are used.
        edits: those of phase "decode" act.
    """
    contrasts = [contrast(pair) for pair in pairs]
    sides: list[Tensor] = []
    for which in ("a", "b"):
        runs: list[list[int]] = [getattr(found, which) for found in contrasts]
        fed = [[p.a[-1], *c.begin, *run[:-1]] for p, c, run in zip(pairs, contrasts, runs, strict=True)]
        with torch.no_grad():
            logits = lens.extend(state, fed, edits).logits
        words: list[Tensor] = []
        for row, c, run in zip(logits, contrasts, runs, strict=True):
            said = row[len(c.begin) : len(c.begin) + len(run)].float()
            words.append(-F.cross_entropy(said, torch.tensor(run, device=said.device), reduction="sum"))
        sides.append(torch.stack(words).cpu())
    return LogProbabilities(*sides)
