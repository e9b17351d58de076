"""Two prompts that differ in a needle alone, whose question is the same: which of the two answers does a state tell?

A prompt with a needle and one with its twin (`twins`) are equal but for the answer's words, token for token, and what
is read of them can be exchanged position by position. An answer tells the needle whose rubric gives it at least
`LEAST` points and more than the other's; else neither.

How it fails: prompts of unequal length or with other ends are refused with the place where they part. Twins whose
words a tokenizer cuts into other numbers of tokens are left out by `prompt_pairs`, and none left is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from analyses.experiment.options.prompts import OwnPair
from analyses.kv_cache.twins import NeedlePair, fits, needle_pairs
from hybridlens import niah
from hybridlens.boundary import Length, Percent, Seed, public
from hybridlens.display import Displayed, Piece, Table, listed, many
from hybridlens.errors import InputError
from hybridlens.niah import Haystack, Prompt, Rubric, Span, Tokenizer, full_match_rubric, score
from hybridlens.niah.encoding import encode

LEAST = 1.5
"""Points of 5 from which an answer tells a needle: half of the sentence's second part."""

Told: TypeAlias = Literal["A", "B", "neither"]


@dataclass(frozen=True)
class PromptPair(Displayed):
    """Two prompts of equal length that differ in their needles alone, and how answers are told apart.

    Attributes:
        name: what results call the pair of needles.
        a: token ids of the prompt with needle A.
        b: those of the prompt with needle B.
        spans: the needles' half-open token ranges, the same in both; one for each reading.
        rubric_a: grades an answer by needle A.
        rubric_b: by needle B.
        depth: of the needle, in percent of the context.

    Raises:
        InputError: prompts of unequal length, that are the same, or that differ outside the needles.
    """

    name: str
    a: tuple[int, ...]
    b: tuple[int, ...]
    spans: tuple[Span, ...]
    rubric_a: Rubric
    rubric_b: Rubric
    depth: int = 0

    def __post_init__(self) -> None:
        """Check that one can stand in for the other, position by position."""
        parts = [i for i, (x, y) in enumerate(zip(self.a, self.b, strict=False)) if x != y]
        if len(self.a) != len(self.b):
            where = f"part at position {parts[0]}" if parts else "are the same as far as the shorter goes"
            raise InputError(
                f"pair {self.name!r} has prompts of {len(self.a)} and {len(self.b)} tokens, which {where}; expected "
                "equal lengths: give needles of as many tokens"
            )
        if not parts:
            raise InputError(f"pair {self.name!r} has two prompts that are the same; expected two needles")
        inside = {position for start, stop in self.spans for position in range(start, stop)}
        outside = [position for position in parts if position not in inside]
        if outside or max(inside) >= len(self.a) - 1:
            at = outside[0] if outside else max(inside)
            raise InputError(
                f"pair {self.name!r} has prompts that differ at position {at}, outside its needles or at its last "
                "token; expected the same text around both, and the same question after them"
            )

    def summary(self) -> str:
        """How long the prompts are, and where the needles stand."""
        spans = listed(f"{start}..{stop}" for start, stop in self.spans)
        return f"{self.name}, {many(self.length, 'token')} each; needles at {spans}, depth {self.depth} %"

    def table(self) -> Table:
        """A row a position: both prompts' tokens, whether they differ, and whether a needle is there."""
        inside = {position for start, stop in self.spans for position in range(start, stop)}
        rows = [(i, a, b, a != b, i in inside) for i, (a, b) in enumerate(zip(self.a, self.b, strict=True))]
        return Table(("position", "id_a", "id_b", "differs", "needle"), rows)

    def view(self) -> tuple[Piece, ...]:
        """The positions at which the prompts differ."""
        whole = self.table()
        return (Table(whole.columns, [row for row in whole.rows if row[3]], title="Where the prompts differ"),)

    @property
    def length(self) -> int:
        """Tokens of either prompt."""
        return len(self.a)

    def tells(self, text: str) -> tuple[Told, float, float]:
        """Which needle an answer tells, and its points by A's and by B's rubric."""
        a, b = score(text, self.rubric_a), score(text, self.rubric_b)
        if max(a, b) < LEAST or a == b:
            return "neither", a, b
        return ("A" if a > b else "B"), a, b

    def seen(self, window: int | None) -> float:
        """The share of the (last) needle that the prompt's last token still sees."""
        start, stop = self.spans[-1]
        oldest = 0 if window is None else self.length - window
        return (stop - min(max(start, oldest), stop)) / (stop - start)


@public
def prompt_pairs(
    tokenizer: Tokenizer,
    lengths: Sequence[Length],
    depths: Sequence[Percent],
    needles: Sequence[NeedlePair] | None = None,
    haystack: Haystack | None = None,
    template: str = "base",
    seed: Seed = 0,
) -> list[PromptPair]:
    """Prompts of the needle benchmark, each with both needles of each pair: needle-major, then as `niah.grid`.

    Args:
        tokenizer: any fast Hugging Face tokenizer.
        lengths: tokens of the prompts.
        depths: the needles' places in percent.
        needles: pairs that answer one question; by default `needle_pairs()` without those that the tokenizer cuts
            into unequal numbers of tokens, which are warned about.
        haystack: the filler; the built-in essays of `seed` by default.
        template: "base", "unspaced" or "instruct".
        seed: of the built-in essays, 0 or more.

    Raises:
        InputError: no needles, needles of other questions, or of unequal numbers of tokens, or that no rubric tells
            apart; a seed below 0, whose essays are those of another; and see `niah.grid`.
    """
    chosen = _fitting(tokenizer) if needles is None else list(needles)
    if not chosen:
        raise InputError("no pair of needles given; leave them out for the built-in ones")
    made: list[PromptPair] = []
    for pair in chosen:
        a, b = pair
        if a.question != b.question:
            raise InputError(f"needles of questions {a.question!r} and {b.question!r} given; expected one question")
        if score(a.sentence, b.rubric) >= LEAST or score(b.sentence, a.rubric) >= LEAST:
            raise InputError(f"needles {a.sentence!r} and {b.sentence!r} score by each other's rubric; give others")
        grids = [niah.grid(tokenizer, lengths, depths, haystack, needle, template, seed=seed) for needle in pair]
        made += [_paired(pair, one, other) for one, other in zip(*grids, strict=True)]
    return made


def _paired(pair: NeedlePair, one: Prompt, other: Prompt) -> PromptPair:
    if one.needle_spans != other.needle_spans:
        raise InputError(
            f"needles {pair.needle_a.sentence!r} and {pair.needle_b.sentence!r} take tokens {one.needle_span} "
            f"and {other.needle_span}; expected as many tokens for both"
        )
    a, b = pair
    return PromptPair(a.name, one.tokens, other.tokens, one.needle_spans, a.rubric, b.rubric, one.depth or 0)


def own_prompts(tokenizer: Tokenizer, given: Sequence[OwnPair]) -> list[PromptPair]:
    """Prompts of a user's own: the clean one is A, the corrupt one B, each told by its answer said whole.

    Args:
        tokenizer: of the model.
        given: pairs with answers.

    Raises:
        InputError: one without answers, with answers of which one holds the other, or prompts of unequal numbers of
            tokens.
    """
    made: list[PromptPair] = []
    for pair in given:
        if pair.answers is None:
            raise InputError(f"prompt pair {pair.name!r} has no answers, by which it is told what is said; add them")
        a, b = (tuple(encode(tokenizer, text).ids) for text in (pair.clean, pair.corrupt))
        parts = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y] or [0]
        ours, theirs = map(full_match_rubric, pair.answers)
        if score(pair.answers[0], theirs) or score(pair.answers[1], ours):
            raise InputError(f"prompt pair {pair.name!r}: one of its answers holds the other; give answers that differ")
        made.append(PromptPair(pair.name, a, b, ((parts[0], parts[-1] + 1),), ours, theirs))
    return made


def _fitting(tokenizer: Tokenizer) -> list[NeedlePair]:
    """The built-in pairs of equal numbers of tokens."""
    every = needle_pairs(None, tokenizer)
    fitting = [pair for pair in every if fits(tokenizer, *pair)]
    unequal = [pair.needle_a.name for pair in every if pair not in fitting]
    if not fitting:
        raise InputError(
            "this tokenizer cuts every built-in needle and its twins into unequal numbers of tokens; give needles of "
            "your own, two for each question"
        )
    if unequal:
        warnings.warn(
            f"left out, because this tokenizer cuts needle and twins into unequal numbers of tokens: {unequal}",
            stacklevel=3,
        )
    return fitting
