"""Prompt pairs from the needle benchmark: two prompts of equal length that differ in the needle alone.

================  ==========================================================================================
`other_needle`    the same prompt with another needle in the same place, of the same number of tokens
`no_needle`       the needle's place taken by filler sentences of the same number of tokens (the control)
`moved_needle`    the needle in another place; the filler between the two places is shifted by its length
`own_pair`        two texts of one's own
================  ==========================================================================================

What tells the two prompts of a pair apart is found by asking the untouched model: it answers both greedily, and the
first tokens at which the two answers part are `Pair.answers`. What both answers begin with is put behind both prompts,
so that the last position of `clean_tokens` and `corrupt_tokens` is where the answers part.

Alignment is checked (`Pair.differences`) and shown (`Pair.show`). `counterpart` makes a needle that answers another
needle's question, so that the two prompts differ in nothing but the answer.

How it fails: needles of unequal token counts, which would shift all that follows, are refused, and so are prompts that
differ outside of where they should. A model that answers both prompts alike has no token that tells them apart, and
`Pair.logit_difference` says so; most models do so where the needle has only moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import cast

from analyses.patching.alignment import Difference, check_lengths, differences, neighbours, parting, token_strings
from analyses.patching.metrics import LogitDifference
from hybridlens import niah
from hybridlens.boundary import Length, Percent, Seed, public
from hybridlens.display import Displayed, Piece, Table, TokenText, many
from hybridlens.display.markup import parted
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.niah import Haystack, Needle, Prompt, Rule, Span, full_match_rubric
from hybridlens.niah.templates import TemplateLike
from hybridlens.tokens import check_context

FILLER_SEED = 1_000_003
"""Of the essays that stand in for a needle, which are to be others than a prompt's own."""

FILLER_SENTENCES = 200
"""How many of their sentences are at hand."""

FILLER_TRIES = 20
"""How many choices of them are tried; where tokens merge at a sentence's ends, one that fits alone may not fit."""


@dataclass(frozen=True)
class Pair(Displayed):
    """Two prompts of equal length, and how the model answers them.

    Attributes:
        kind: "needle", "control", "moved" or "own".
        clean_prompt: the prompt whose behaviour is explained.
        corrupt_prompt: the other.
        clean_tokens: the clean prompt and what both answers begin with.
        corrupt_tokens: the corrupt prompt and the same.
        answers: the tokens with which the model goes on from each; None where its two answers are the same, and then
            nothing is put behind the prompts.
        strings: every token of both as text.
        said: the model's two answers in full.
        texts: `answers` as text; empty where there are none.
    """

    kind: str
    clean_prompt: Prompt
    corrupt_prompt: Prompt
    clean_tokens: tuple[int, ...]
    corrupt_tokens: tuple[int, ...]
    answers: tuple[int, int] | None
    strings: tuple[tuple[str, ...], tuple[str, ...]]
    said: tuple[str, str]
    texts: tuple[str, ...] = ()

    @property
    def differences(self) -> list[Difference]:
        """The positions at which the prompts differ, with both tokens."""
        sides = zip(self.clean_tokens, self.corrupt_tokens, *self.strings, strict=True)
        return [Difference(place, *texts) for place, (a, b, *texts) in enumerate(sides) if a != b]

    @property
    def begun(self) -> tuple[str, ...]:
        """What both answers begin with, as tokens of text."""
        return self.strings[0][len(self.clean_prompt.tokens) :]

    @property
    def logit_difference(self) -> LogitDifference:
        """The metric that tells the two prompts apart: the clean answer's token against the corrupt one's.

        Raises:
            InputError: the model answers both alike.
        """
        if self.answers is None:
            raise InputError(
                f"the model answers both prompts of this pair alike ({self.said[0]!r}), so no token tells them "
                "apart; take another pair, or a metric such as KullbackLeibler or NeedleScore"
            )
        return LogitDifference(*self.answers, self.texts)

    def summary(self) -> str:
        """How long the prompts are, how many tokens differ, and both answers."""
        said = " | ".join(map(repr, parted(self.said[0].strip(), self.said[1].strip(), 30)))
        tokens = many(len(self.clean_tokens), "token")
        differ = many(len(self.differences), "differs", "differ")
        return f"{self.kind} pair, {tokens} each, {differ}; the model says {said}"

    def table(self) -> Table:
        """A row a position: the tokens of both prompts, and whether they differ."""
        sides = zip(self.clean_tokens, self.corrupt_tokens, *self.strings, strict=True)
        rows = [(i, *sides_, sides_[0] != sides_[1]) for i, sides_ in enumerate(sides)]
        return Table(("position", "clean_id", "corrupt_id", "clean", "corrupt", "differs"), rows)

    def view(self) -> tuple[Piece, ...]:
        """Both prompts, what differs underlined, and both answers."""
        marked = [(d.position, d.position + 1) for d in self.differences]
        texts = [
            TokenText(tokens, marked=marked, title=title)
            for tokens, title in zip(self.strings, ("Clean prompt", "Corrupt prompt"), strict=True)
        ]
        answers = Table(("prompt", "answer"), list(zip(("clean", "corrupt"), self.said, strict=True)))
        return (*texts, answers)

    def show(self) -> str:
        """Where the prompts differ, in lines of text."""
        found = self.differences
        lines = [
            f"{self.kind} pair: {many(len(self.clean_tokens), 'token')} each, of which "
            f"{many(len(found), 'differs', 'differ')}; the last {many(len(self.begun), 'is', 'are')} what both answers "
            "begin with",
        ]
        for run in neighbours(found):
            places = str(run[0].position) + ("" if len(run) == 1 else f"-{run[-1].position}")
            _, clean, corrupt = (" ".join(map(str, parts)) for parts in zip(*run, strict=True))
            lines.append(f"  {places}: {clean!r} | {corrupt!r}")
        same = "; the same, so that no token tells them apart" if self.answers is None else ""
        lines.append(f"  answers: {self.said[0]!r} | {self.said[1]!r}{same}")
        return "\n".join(lines)


@public
def make_pair(lens: HybridLens, kind: str, clean: Prompt, corrupt: Prompt, max_new_tokens: Length = 40) -> Pair:
    """Two prompts as a pair: their lengths checked, the model's answers compared.

    The model answers both greedily; answers that are the same for `max_new_tokens` count as the same.

    Raises:
        InputError: prompts of unequal length, or that do not differ, or no room in the model's context.
    """
    if not differences(clean.tokens, corrupt.tokens, lens.tokenizer):
        raise InputError("the clean and the corrupt prompt are the same; expected prompts that differ")
    said = lens.generate([clean.tokens, corrupt.tokens], max_new_tokens, boundary="first_new_token")
    ours, theirs = (row[:n] for row, n in zip(said.tokens.tolist(), said.lengths.tolist(), strict=True))
    common = parting(ours, theirs)
    alike = common == min(len(ours), len(theirs))
    begun = () if alike else tuple(ours[:common])
    check_context(len(clean.tokens) + len(begun), lens.cfg.n_ctx)
    sides = clean.tokens + begun, corrupt.tokens + begun
    first, second = (tuple(token_strings(side, lens.tokenizer)) for side in sides)
    answers = None if alike else (ours[common], theirs[common])
    texts = () if answers is None else tuple(token_strings(answers, lens.tokenizer))
    return Pair(kind, clean, corrupt, *sides, answers, (first, second), (said.text[0], said.text[1]), texts)


@public
def own_pair(lens: HybridLens, clean: str, corrupt: str, max_new_tokens: Length = 40) -> Pair:
    """Two texts of a user's own as a pair; there is no needle in them.

    Raises:
        InputError: texts of unequal numbers of tokens, or that are the same, or no room in the model's context.
    """
    ours, theirs = (tuple(cast(list[int], lens.batch(text).tokens[0].tolist())) for text in (clean, corrupt))
    check_lengths(ours, theirs, lens.tokenizer)
    first, second = (
        Prompt(text, tokens, len(tokens), None, None, (), "base", False, "clean", True)
        for text, tokens in ((clean, ours), (corrupt, theirs))
    )
    return make_pair(lens, "own", first, second, max_new_tokens)


@public
def other_needle(
    lens: HybridLens,
    needle: Needle,
    other: Needle,
    length: Length,
    depth: Percent,
    *,
    haystack: Haystack | None = None,
    template: TemplateLike = "base",
    jrt: bool = False,
    seed: Seed = 0,
) -> Pair:
    """The same prompt with another needle.

    Args:
        lens: the model; its tokenizer makes the prompts.
        needle: the clean prompt's.
        other: the corrupt prompt's; its question, too, is asked there (`counterpart` makes one with the same).
        length: tokens of both prompts, before what their answers begin with.
        depth: where the needle stands, in percent.
        haystack: the filler; the built-in essays of `seed` by default.
        template: "base", "unspaced" or "instruct".
        jrt: context and question twice.
        seed: of the built-in essays.

    Raises:
        InputError: needles of unequal token counts, or what `niah.grid` refuses.
    """
    check_context(length, lens.cfg.n_ctx)
    clean, corrupt = (
        niah.grid(lens.tokenizer, [length], [depth], haystack, which, template, jrt, seed=seed)[0]
        for which in (needle, other)
    )
    if clean.needle_spans != corrupt.needle_spans:
        raise InputError(
            f"needle {needle.name!r} takes {_size(clean)} tokens in the prompt and {other.name!r} {_size(corrupt)}, or "
            "they stand in other places; expected needles and questions of the same numbers of tokens: see "
            "pairs.counterparts"
        )
    if needle.question == other.question:
        _check_inside(lens, clean, corrupt, clean.needle_spans)
    return make_pair(lens, "needle", clean, corrupt)


@public
def no_needle(
    lens: HybridLens,
    needle: Needle,
    length: Length,
    depth: Percent,
    *,
    haystack: Haystack | None = None,
    template: TemplateLike = "base",
    jrt: bool = False,
    seed: Seed = 0,
) -> Pair:
    """The needle's place taken by filler, everything else as it is; arguments as in `other_needle`.

    Unlike `niah.controls`, whose prompts share only the beginning with the needle's.

    Raises:
        InputError: no sentences of the built-in essays take as many tokens as the needle, or what `niah.grid` refuses.
    """
    check_context(length, lens.cfg.n_ctx)
    (clean,) = niah.grid(lens.tokenizer, [length], [depth], haystack, needle, template, jrt, seed=seed)
    for text in islice(_fillers(lens, _size(clean), clean.text), FILLER_TRIES):
        filler = Needle("filler", text, needle.question, full_match_rubric(text))
        (corrupt,) = niah.grid(lens.tokenizer, [length], [depth], haystack, filler, template, jrt, seed=seed)
        if not _outside(lens, clean, corrupt, clean.needle_spans):
            control = replace(corrupt, depth=None, needle_span=None, needle_spans=())
            return make_pair(lens, "control", clean, control)
    raise InputError(
        f"no one or two of {FILLER_SENTENCES} sentences of the built-in essays take {_size(clean)} tokens, as needle "
        f"{needle.name!r} does, and leave the rest of the prompt as it is; give another needle"
    )


@public
def moved_needle(
    lens: HybridLens,
    needle: Needle,
    length: Length,
    depth: Percent,
    other_depth: Percent,
    *,
    haystack: Haystack | None = None,
    template: TemplateLike = "base",
    jrt: bool = False,
    seed: Seed = 0,
) -> Pair:
    """The needle in another place of the same filler; arguments as in `other_needle`.

    Raises:
        InputError: the two prompts differ elsewhere than from the one place to the other, or what `niah.grid` refuses.
    """
    check_context(length, lens.cfg.n_ctx)
    depths = [depth, other_depth]
    clean, corrupt = niah.grid(lens.tokenizer, [length], depths, haystack, needle, template, jrt, seed=seed)
    both = zip(clean.needle_spans, corrupt.needle_spans, strict=True)
    _check_inside(lens, clean, corrupt, [(min(a[0], b[0]), max(a[1], b[1])) for a, b in both])
    return make_pair(lens, "moved", clean, corrupt)


@public
def counterpart(needle: Needle, other: Needle) -> Needle:
    """A needle that gives the other's answer to this needle's question.

    What the two questions differ in ("San Francisco" and "Oslo") is exchanged in the other's sentence and rubric.

    Raises:
        InputError: it does not stand in the other's sentence, or the questions are the same.
    """
    ours, theirs = needle.question.rstrip("?").split(), other.question.rstrip("?").split()
    start = parting(ours, theirs)
    stop = parting(ours[start:][::-1], theirs[start:][::-1])
    mine, its = (" ".join(words[start : len(words) - stop]) for words in (ours, theirs))
    if not mine or not its or its not in other.sentence:
        raise InputError(
            f"needle {other.name!r} cannot answer {needle.question!r}: its own question has {its!r} in place of "
            f"{mine!r}, expected something that its sentence {other.sentence!r} has too"
        )
    rubric = tuple(Rule(rule.phrase.replace(its, mine), rule.points, rule.mode) for rule in other.rubric)
    return Needle(f"{needle.name}-{other.name}", other.sentence.replace(its, mine), needle.question, rubric)


@public
def counterparts(lens: HybridLens, needle: Needle, among: Sequence[Needle] | None = None) -> list[Needle]:
    """Needles with this needle's question, the answers of others (the built-in ones by default), and as many tokens."""
    found: list[Needle] = []
    for other in niah.NEEDLES.values() if among is None else among:
        try:
            made = counterpart(needle, other)
        except InputError:  # another kind of question
            continue
        if made.sentence != needle.sentence and count(lens, made.sentence) == count(lens, needle.sentence):
            found.append(made)
    return found


def _outside(lens: HybridLens, clean: Prompt, corrupt: Prompt, spans: Sequence[Span]) -> list[Difference]:
    """Where two prompts differ outside of half-open ranges."""
    found = differences(clean.tokens, corrupt.tokens, lens.tokenizer)
    return [d for d in found if not any(start <= d.position < stop for start, stop in spans)]


def _check_inside(lens: HybridLens, clean: Prompt, corrupt: Prompt, spans: Sequence[Span]) -> None:
    for place, ours, theirs in _outside(lens, clean, corrupt, spans):
        raise InputError(
            f"the prompts differ at position {place} too ({ours!r} and {theirs!r}), outside of the needle's place; "
            "try another length or depth"
        )


def _size(prompt: Prompt) -> int:
    assert prompt.needle_span is not None
    return prompt.needle_span[1] - prompt.needle_span[0]


def count(lens: HybridLens, text: str) -> int:
    """How many tokens a text takes."""
    return len(lens.tokenizer(text, add_special_tokens=False)["input_ids"])


def _fillers(lens: HybridLens, size: int, text: str) -> Iterable[str]:
    """One or two sentences of other essays that take `size` tokens and do not stand in `text`."""
    sentences = [s for s in niah.essays(FILLER_SEED, FILLER_SENTENCES).sentences if s not in text]
    counts = {sentence: count(lens, sentence) for sentence in dict.fromkeys(sentences)}
    yield from (sentence for sentence, count in counts.items() if count == size)
    yield from (f"{a} {b}" for a, b in combinations(counts, 2) if counts[a] + counts[b] == size)
