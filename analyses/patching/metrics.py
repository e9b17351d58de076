"""Metrics: what is read off a run, one number a row, as values.

A `Metric` takes what a forward pass gave (`hybridlens.network.Output`: logits and state) and returns a number for each
row; `words` says in a report what it measures. Most need the logits of the last position only (`last_only`), and then
no other position is unembedded. Those of class `LogitMetric` can also be called with logits [b p v], and are
differentiable where that makes sense. A plain function from logits [b p v] to [b] will do as well.

What has to be read on from a patched prompt (`NeedleScore`, the later tokens of `LogProbability`) is read with no
patch: from the state, and the logits, that the patched prompt left.

How it fails: a metric that returns another shape, NaN or infinity raises one line (`measured`). Ranks move in steps,
and needle scores in those of the rubric, so that a small effect may show in neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, TypeAlias

import torch
from annotated_types import MinLen
from jaxtyping import Float
from torch import Tensor

from hybridlens.boundary import Length, Natural, public
from hybridlens.cache.readout import ranks_of
from hybridlens.decoding import Start
from hybridlens.display import Displayed
from hybridlens.errors import InputError
from hybridlens.generation import continue_from
from hybridlens.model import HybridLens
from hybridlens.network import Output
from hybridlens.niah import Rubric, score
from hybridlens.shapes import Logits
from hybridlens.tokens import check_context

PerRow: TypeAlias = Float[Tensor, "batch"]


class Metric(Displayed, ABC):
    """One number a row, of what a forward pass gave."""

    last_only: bool = True
    """Only the last position's logits are needed; they are [b 1 v] then."""
    saying: ClassVar[str] = ""
    """What is measured, the metric's own fields in braces."""

    @property
    def words(self) -> str:
        """What is measured, for reports."""
        return self.saying.format(**vars(self))

    def summary(self) -> str:
        """What is measured."""
        return self.words

    @abstractmethod
    def of(self, lens: HybridLens, output: Output) -> Tensor:
        """The number of each row [b] of what the patched run gave; the model has no patch on it."""


class LogitMetric(Metric):
    """A metric of the logits alone."""

    @abstractmethod
    def __call__(self, logits: Logits) -> PerRow:
        """The number of each row, from its logits [b p v]."""

    def of(self, lens: HybridLens, output: Output) -> Tensor:
        """The number of each row."""
        return self(output.logits)


@public
@dataclass(frozen=True)
class LogitDifference(LogitMetric):
    """Logit of one token minus that of another, at the last position.

    Args:
        right: the token that the clean prompt is continued with.
        wrong: the one that the corrupt prompt is continued with.
    """

    right: Natural
    wrong: Natural
    texts: tuple[str, ...] = field(default=(), compare=False)
    """Both tokens as text, for reports."""

    @property
    def words(self) -> str:
        """What is measured."""
        right, wrong = named((self.right, self.wrong), self.texts)
        return f"logit of {right} minus that of {wrong}"

    def __call__(self, logits: Logits) -> PerRow:
        """The difference, in logits."""
        check_tokens((self.right, self.wrong), logits.shape[-1])
        last = logits[:, -1].float()
        return last[:, self.right] - last[:, self.wrong]


@public
@dataclass(frozen=True)
class LogProbability(Metric):
    """Natural logarithm of the probability that the prompt is continued with the given tokens.

    The first is read off the last position's logits; the others as the model reads those before them, from the state
    of the patched prompt.

    Args:
        answer: the tokens, one or more.
    """

    answer: Annotated[tuple[Natural, ...], MinLen(1)]
    texts: tuple[str, ...] = field(default=(), compare=False)
    """The tokens as text, for reports."""

    @property
    def words(self) -> str:
        """What is measured."""
        return f"log-probability of {', '.join(named(self.answer, self.texts))}"

    def __call__(self, logits: Logits) -> PerRow:
        """The log-probability of the one token, in nats; a longer answer is refused, and `of` gives all of it."""
        if len(self.answer) != 1:
            raise InputError(
                f"the logits of a prompt tell of its next token, but the answer has {len(self.answer)}; "
                "give one token, or call `of`, which reads on"
            )
        check_tokens(self.answer, logits.shape[-1])
        return logits[:, -1].float().log_softmax(dim=-1)[:, self.answer[0]]

    def of(self, lens: HybridLens, output: Output) -> Tensor:
        """The log-probability of the whole answer, in nats."""
        check_tokens(self.answer, output.logits.shape[-1])
        logits = output.logits[:, -1:]
        answer = torch.tensor(self.answer, device=logits.device).expand(logits.shape[0], -1)
        if len(self.answer) > 1:
            _check_room(lens, output, len(self.answer) - 1)
            logits = torch.cat([logits, lens.network(answer[:, :-1], None, output.state).logits], dim=1)
        return logits.float().log_softmax(dim=-1).gather(2, answer[..., None])[..., 0].sum(dim=1)


@public
@dataclass(frozen=True)
class Rank(LogitMetric):
    """Rank of a token among all, 0 for the likeliest; of equals, the lowest id comes first.

    Args:
        token: whose rank.
    """

    token: Natural
    texts: tuple[str, ...] = field(default=(), compare=False)
    """The token as text, for reports."""

    @property
    def words(self) -> str:
        """What is measured."""
        return f"rank of {named((self.token,), self.texts)[0]} (0 is the likeliest)"

    def __call__(self, logits: Logits) -> PerRow:
        """The rank, from 0 to the size of the vocabulary less 1."""
        check_tokens((self.token,), logits.shape[-1])
        last = logits[:, -1].float()
        return ranks_of(last, torch.full((len(last), 1), self.token, device=last.device))[:, 0].float()


@public
@dataclass(frozen=True, eq=False)
class KullbackLeibler(LogitMetric):
    """Divergence KL(reference ‖ run) of the next-token distributions, in nats, the mean over the positions compared.

    Args:
        reference: logits of the run that the others are set against: [v] for the last position, or [p v] for the last
            p positions of the prompt.
    """

    reference: Float[Tensor, "vocab"] | Float[Tensor, "pos vocab"]

    @property
    def last_only(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether one position is compared."""
        return self.reference.ndim == 1 or self.reference.shape[0] == 1

    @property
    def words(self) -> str:
        """What is measured."""
        where = "the last position" if self.last_only else f"the last {self.reference.shape[0]} positions"
        return f"divergence from the reference at {where}, in nats"

    def __call__(self, logits: Logits) -> PerRow:
        """The divergence; a reference of another vocabulary, or of more positions than the run, is refused."""
        reference = self.reference.reshape(-1, self.reference.shape[-1])
        if reference.shape[1] != logits.shape[2] or reference.shape[0] > logits.shape[1]:
            raise InputError(
                f"the reference logits have shape {list(self.reference.shape)}, but the run's are "
                f"{list(logits.shape)}; expected the same vocabulary and no more positions"
            )
        ours = logits[:, logits.shape[1] - reference.shape[0] :].float().log_softmax(dim=-1)
        theirs = reference.to(logits.device).float().log_softmax(dim=-1)
        terms = torch.where(theirs.isneginf(), 0.0, theirs.exp() * (theirs - ours))
        return terms.sum(dim=-1).mean(dim=-1)


@public
@dataclass(frozen=True)
class NeedleScore(Metric):
    """Granular score, 0 to 5, of the answer that follows the prompt.

    The answer is decoded greedily, all rows in one batch, from the state and logits of the patched prompt, and no patch
    acts while it is.

    Args:
        rubric: the rules that grade it.
        max_new_tokens: at most so many.
    """

    rubric: Rubric
    max_new_tokens: Length = 40
    saying = "needle score of up to {max_new_tokens} new tokens (0 to 5)"

    def of(self, lens: HybridLens, output: Output) -> Tensor:
        """The score; a model without a tokenizer, or with too little context, is refused."""
        if lens.tokenizer is None:
            raise InputError("NeedleScore reads answers as text; give HybridLens a tokenizer")
        _check_room(lens, output, self.max_new_tokens - 1)
        start = Start(output.state, output.logits[:, -1])
        answers = continue_from(lens.network, start, self.max_new_tokens, tokenizer=lens.tokenizer, pad=lens.pad_token)
        return torch.tensor([score(text, self.rubric) for text in answers.text], dtype=torch.float64)


@public
@dataclass(frozen=True)
class OwnFunction(Metric):
    """A function of the user's, from logits [b p v] of every position to [b]."""

    fn: Callable[[Tensor], object]
    last_only = False

    @property
    def words(self) -> str:
        """The function's name."""
        return str(getattr(self.fn, "__name__", self.fn))

    def of(self, lens: HybridLens, output: Output) -> Tensor:
        """What the function gives; anything but a tensor is refused."""
        value = self.fn(output.logits)
        if not isinstance(value, Tensor):
            raise InputError(f"metric '{self.words}' returned {type(value).__name__}, expected a tensor [batch]")
        return value


MetricLike: TypeAlias = Metric | Callable[[Tensor], object]


def as_metric(metric: MetricLike) -> Metric:
    """`metric`, or a plain function as one."""
    return metric if isinstance(metric, Metric) else OwnFunction(metric)


def measured(metric: Metric, lens: HybridLens, output: Output, what: Sequence[str]) -> PerRow:
    """The metric of a run's rows, float64 on the CPU; `what` says what each is, for the errors of `checked`."""
    return checked(metric, metric.of(lens, output), output, what)


def checked(metric: Metric, value: Tensor, output: Output, what: Sequence[str]) -> PerRow:
    """What a metric gave for a run's rows, float64 on the CPU.

    Raises:
        InputError: another shape than [b], or a value that is no finite number.
    """
    rows = output.logits.shape[0]
    if list(value.shape) != [rows]:
        raise InputError(
            f"metric '{metric.words}' returned shape {list(value.shape)}, expected [{rows}]: one number for each row "
            f"of logits {list(output.logits.shape)}"
        )
    value = value.detach().to("cpu", torch.float64)
    wrong = (~value.isfinite()).nonzero()[:, 0].tolist()
    if wrong:
        raise InputError(
            f"metric '{metric.words}' returned {float(value[wrong[0]])} for {what[wrong[0]]}, expected finite numbers"
        )
    return value


def named(tokens: Sequence[int], texts: Sequence[str]) -> list[str]:
    """Tokens in words: as text where that is known, else by number."""
    return [f"“{text}”" for text in texts] if texts else [f"token {token}" for token in tokens]


def check_tokens(tokens: Sequence[int], size: int) -> None:
    """Refuse tokens outside the vocabulary."""
    for token in tokens:
        if not 0 <= token < size:
            raise InputError(f"the metric's token {token} is outside the vocabulary, expected 0..{size - 1}")


def _check_room(lens: HybridLens, output: Output, new: int) -> None:
    check_context(int(output.state.lengths.max()) + new, lens.cfg.n_ctx)
