"""Two prompts side by side: of equal length, where they differ, and what a metric tells of a run over each.

A value is put in at the position that it was taken from, so that prompts of unequal length cannot be patched; they are
refused, with the place where they part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.patching.metrics import Metric, MetricLike, as_metric, measured
from analyses.patching.results import check_ends
from hybridlens.display import Displayed
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.network import Output
from hybridlens.shapes import Tokens
from hybridlens.tokens import TokensLike, to_strings


class _Difference(NamedTuple):
    """Fields of `Difference`."""

    position: int
    clean: str
    corrupt: str


class Difference(Displayed, _Difference):
    """A position at which two prompts have different tokens."""

    __slots__ = ()


def token_strings(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Each token as text, or, without a tokenizer, as its id."""
    return [str(i) for i in ids] if tokenizer is None else to_strings(ids, tokenizer)


def parting(first: Sequence[object], second: Sequence[object]) -> int:
    """How many entries two lists have in common from the start."""
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)


def differences(clean: Sequence[int], corrupt: Sequence[int], tokenizer: Any) -> list[Difference]:
    """Where two prompts of equal length differ.

    Raises:
        InputError: they are of unequal length.
    """
    check_lengths(clean, corrupt, tokenizer)
    sides = zip(clean, corrupt, token_strings(clean, tokenizer), token_strings(corrupt, tokenizer), strict=True)
    return [Difference(place, *texts) for place, (a, b, *texts) in enumerate(sides) if a != b]


def check_lengths(clean: Sequence[int], corrupt: Sequence[int], tokenizer: Any, other: str = "the corrupt") -> None:
    """Refuse prompts of unequal length, saying where they part; `other` names the second one."""
    if len(clean) == len(corrupt):
        return
    place = parting(clean, corrupt)
    sides = [" ".join(token_strings(ids[place : place + 3], tokenizer)) or "its end" for ids in (clean, corrupt)]
    raise InputError(
        f"the clean prompt has {len(clean)} tokens and {other} one {len(corrupt)}; they part at position {place} "
        f"({sides[0]!r} and {sides[1]!r}): give prompts of equal length, whose tokens stand at the same positions"
    )


def one_prompt(lens: HybridLens, given: TokensLike, name: str) -> Tokens:
    """One prompt [1 p]; several rows of one tensor are refused."""
    tokens = lens.batch(given).tokens
    if tokens.shape[0] != 1:
        raise InputError(f"{tokens.shape[0]} {name} prompts were given as one, expected one, or a list of them")
    return tokens


def places_of(positions: Sequence[int], length: int) -> list[int]:
    """Positions of a prompt, those counted from its end from its start; one that is outside is refused."""
    for position in positions:
        if not -length <= position < length:
            raise InputError(f"position {position} given, but the prompt has 0..{length - 1}")
    return [position % length for position in positions]


def neighbours(found: Sequence[Difference]) -> list[list[Difference]]:
    """Differences in runs of positions that follow one another."""
    runs: list[list[Difference]] = []
    for difference in found:
        if not runs or difference.position != runs[-1][-1].position + 1:
            runs.append([])
        runs[-1].append(difference)
    return runs


@dataclass(frozen=True)
class Sides:
    """Two prompts, and what is measured of runs over them.

    Attributes:
        lens: the model.
        metric: what is measured.
        direction: as in `PatchResult`.
        clean: the clean prompt [1 p].
        corrupt: the corrupt one, as long; of no tokens for an ablation without one.
    """

    lens: HybridLens
    metric: Metric
    direction: str
    clean: Int[Tensor, "1 pos"]
    corrupt: Int[Tensor, "1 corrupt_pos"]

    @classmethod
    def of(
        cls, lens: HybridLens, clean: TokensLike, corrupt: TokensLike | None, metric: MetricLike, direction: str
    ) -> Sides:
        """Both prompts read and checked.

        Raises:
            InputError: several prompts given as one, or prompts of unequal length.
        """
        ours = one_prompt(lens, clean, "clean")
        theirs = ours[:, :0] if corrupt is None else one_prompt(lens, corrupt, "corrupt")
        if corrupt is not None:
            check_lengths(ours[0].tolist(), theirs[0].tolist(), lens.tokenizer)
        return cls(lens, as_metric(metric), direction, ours, theirs)

    @property
    def base(self) -> Tokens:
        """The prompt of the run that is patched."""
        return self.corrupt if self.direction == "denoise" else self.clean

    @property
    def source(self) -> Tokens:
        """The other prompt."""
        return self.clean if self.direction == "denoise" else self.corrupt

    @property
    def same(self) -> int:
        """How many tokens both have in common from the start: up to there, all activations are the same."""
        return parting(self.clean[0].tolist(), self.corrupt[0].tolist())

    @property
    def labels(self) -> list[str]:
        """What stands at each position: one token, or both where the prompts differ."""
        ours, theirs = (token_strings(side[0].tolist(), self.lens.tokenizer) for side in (self.clean, self.corrupt))
        return [a if a == b else f"{a}|{b}" for a, b in zip(ours, theirs or ours, strict=True)]

    @torch.no_grad()
    def measured(self, output: Output, what: Sequence[str]) -> Float[Tensor, "row"]:
        """The metric of a run's rows: see `metrics.measured`."""
        return measured(self.metric, self.lens, output, what)

    def value(self, output: Output, tokens: Tokens) -> float:
        """The metric of an untouched run over one of the two prompts."""
        return float(self.measured(output, [f"the {'clean' if tokens is self.clean else 'corrupt'} prompt"])[0])

    def ends(self, base: float, source: float) -> tuple[float, float]:
        """The metric of the clean and the corrupt run, from that of the patched one and the other.

        Raises:
            InputError: the metric does not tell them apart.
        """
        clean, corrupt = (source, base) if self.direction == "denoise" else (base, source)
        check_ends(clean, corrupt, self.metric.words)
        return clean, corrupt

    def said(self, ends: tuple[float, float | None], forwards: int) -> dict[str, Any]:
        """What a result says of the two runs: the fields of `Compared`, and `corrupt`."""
        return {
            "clean": ends[0],
            "corrupt": ends[1],
            "metric": self.metric.words,
            "direction": self.direction,
            "model": self.lens.network.signature,
            "clean_tokens": tuple(self.clean[0].tolist()),
            "corrupt_tokens": tuple(self.corrupt[0].tolist()),
            "forwards": forwards,
        }
