"""Prompts of one length that hold 1, 2, … facts, of which one is asked for: only the number of facts changes.

A prompt's context has as many places as the largest number of facts, evenly spread, and a fact drawn for each. With
fewer facts, those at the other places give way to filler: the asked one stays where it is, about, and the others are
one from each of n equal stretches, so that they are as spread as before and the asked one is the first, second, … of
them equally often. In the control the asked fact gives way as well, and its question remains. Each prompt has facts,
an asked place and a stretch of the haystack of its own, and so counts as one draw.

How it fails: a length that holds the facts but no `LEAST_FILLER` tokens beside them is refused with the least that
would do; a haystack of which too little is left without sentences that name a prompt's cities or say a value, too.
Places are those between sentences, so that the asked fact may move by a sentence as facts give way.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import NamedTuple

from analyses.study.capacity.forms import FORMS, draw_facts, strangers
from hybridlens import niah
from hybridlens.display import Displayed, Table, many
from hybridlens.errors import InputError
from hybridlens.niah.checks import warn_without_bos
from hybridlens.niah.clean import ATTEMPTS, CORRECTIONS, Supply
from hybridlens.niah.encoding import check_open_end, token_span, warn_unknown
from hybridlens.niah.filler import WINDOW, Piece, fragments, pieces, plan
from hybridlens.niah.prompt import Frame, make_frame

LEAST_FILLER = 12
"""Tokens of filler that any prompt has at least, so that some choice of it comes out exactly."""

SENTENCE = 8
"""Tokens of a short sentence: how many sentences a length may need at most."""


@dataclass(frozen=True)
class FactPrompt(Displayed):
    """A prompt with facts, or its control.

    Attributes:
        number: which prompt, from 0; one with other numbers of facts asks for the same fact at the same place.
        n: the facts that it has, or would have were it no control.
        place: of the asked fact among the facts, from 0.
        asked: the fact that is asked for.
        others: the other facts, in the order of the context.
        prompt: text, tokens and the asked fact's span; its depth is that of the place in percent.
        spans: the others' half-open token ranges.
        depth: of the asked fact's place in percent of the context, in a control too.
        strangers: as many facts as there are others, which are nowhere in the prompt and share no telling phrase.
    """

    number: int
    n: int
    place: int
    asked: niah.Needle
    others: tuple[niah.Needle, ...]
    prompt: niah.Prompt
    spans: tuple[niah.Span, ...]
    depth: int
    strangers: tuple[niah.Needle, ...]

    @property
    def control(self) -> bool:
        """Whether the asked fact is left out."""
        return self.prompt.control

    @property
    def name(self) -> str:
        """What cells call it."""
        return f"{many(self.n, 'fact')}, prompt {self.number}"

    def summary(self) -> str:
        """How many facts, which is asked for, and where it stands."""
        where = "left out" if self.control else f"{self.place + 1} of {self.n}, depth {self.depth} %"
        return f"{self.name}, {many(len(self.prompt.tokens), 'token')}: asked for {self.asked.name}, {where}"

    def table(self) -> Table:
        """A row a fact, in the order of the context, the asked one marked; a control has the others alone."""
        rows = [(span[0], False, fact.sentence) for fact, span in zip(self.others, self.spans, strict=True)]
        if self.prompt.needle_span is not None:
            rows.append((self.prompt.needle_span[0], True, self.asked.sentence))
        return Table(("first token", "asked", "fact"), sorted(rows))


class Laid(NamedTuple):
    """What one prompt of each number of facts is made of."""

    frame: Frame
    """It asks for the fact at the asked place."""
    facts: tuple[niah.Needle, ...]
    """One for each place."""
    costs: tuple[int, ...]
    """Their tokens."""
    asked: int
    """The place of the one that is asked for."""
    least: int
    """Tokens of the prompt with all facts and no filler."""
    strangers: tuple[niah.Needle, ...]
    """One less than there are facts; see `FactPrompt`."""


def lay(
    tokenizer: niah.Tokenizer, most: int, prompts: int, form: str = "best-thing", template: str = "base", seed: int = 0
) -> list[Laid]:
    """The facts of each prompt and which is asked for; every place is asked for equally often, to one.

    Args:
        tokenizer: any fast Hugging Face tokenizer.
        most: the largest number of facts, which is the number of places.
        prompts: how many prompts.
        form: of `forms.FORMS`.
        template: "base", "unspaced" or "instruct".
        seed: of facts and places.

    Raises:
        InputError: more facts than the form has; a tokenizer that cannot serve (see `niah.grid`).
    """
    rng = random.Random(f"asked places {seed} {most}")
    places = [place for _ in range(-(-prompts // most)) for place in rng.sample(range(most), most)]
    made: list[Laid] = []
    for number in range(prompts):
        facts = draw_facts(FORMS[form], most, random.Random(f"facts {seed} {form} {most} {number}"))
        frame = make_frame(tokenizer, facts[places[number]], template, jrt=False)
        draft = frame.draft([" ".join(fact.sentence for fact in facts)])
        if not number:
            check_open_end(tokenizer, draft.encoding)
            warn_without_bos(frame)
        costs = [piece.cost for piece in pieces(tokenizer, [fact.sentence for fact in facts])]
        others = strangers(FORMS[form], facts, most - 1, random.Random(f"strangers {seed} {form} {most} {number}"))
        made.append(Laid(frame, tuple(facts), tuple(costs), places[number], draft.length, tuple(others)))
    return made


def least_length(laid: Sequence[Laid]) -> int:
    """Tokens that hold every prompt's facts and the least filler."""
    return max(one.least for one in laid) + LEAST_FILLER


def usual_length(laid: Sequence[Laid], haystack: niah.Haystack, limit: int | None) -> int:
    """The length where none is given: with room for half a short sentence at each place, in whole tens, up to a limit.

    Args:
        laid: the prompts.
        haystack: the filler; a short sentence is the lower quartile of its first.
        limit: tokens at most; None for none. Where the facts do not fit, it is the least at which they do.
    """
    some = [piece.cost for piece in pieces(laid[0].frame.tokenizer, haystack.sentences[: 4 * WINDOW])]
    short = quantiles(some, n=4)[0] if len(some) > 1 else some[0]
    least = least_length(laid)
    wanted = -(-int(least + len(laid[0].facts) * short / 2) // 10) * 10
    return wanted if limit is None else max(least, min(wanted, limit))


def filler(length: int, prompts: int, seed: int) -> niah.Haystack:
    """Built-in essays, enough for a stretch of its own for each prompt.

    Args:
        length: tokens of a prompt.
        prompts: how many.
        seed: of the essays.
    """
    return niah.essays(seed, prompts * (length // SENTENCE + WINDOW))


def fact_prompts(laid: Sequence[Laid], counts: Sequence[int], length: int, haystack: niah.Haystack) -> list[FactPrompt]:
    """Every prompt with every number of facts, and its control after it: number of facts by number of facts.

    Args:
        laid: of `lay`, for the largest of `counts`.
        counts: numbers of facts, from 1 up to the places.
        length: tokens of every prompt, exactly.
        haystack: the filler; each prompt begins at another of its sentences.

    Raises:
        InputError: a length too short, or a haystack without enough usable sentences.
    """
    least = least_length(laid)
    if length < least:
        raise InputError(
            f"--length {length} given, expected at least {least}: {many(len(laid[0].facts), 'fact')} and the question "
            f"take {least - LEAST_FILLER} tokens, and {LEAST_FILLER} are filler; give more, or fewer facts"
        )
    sentences = haystack.sentences
    if not sentences:
        raise InputError(f"haystack {haystack.name!r} is empty: it holds no sentence; give one with text")
    tokenizer = laid[0].frame.tokenizer
    warn_unknown(tokenizer, [laid[0].frame.render([""]).text, *{f.sentence: f for one in laid for f in one.facts}])
    known = pieces(tokenizer, sentences)
    plain = [niah.normalise(sentence) for sentence in sentences]
    made: dict[tuple[int, int], list[FactPrompt]] = {}
    for number, one in enumerate(laid):
        supply = _supply(one, known, plain, number * len(known) // len(laid), length, haystack.name)
        for n in counts:
            made[n, number] = [_prompt(one, number, n, left_out, supply, length) for left_out in (False, True)]
    return [prompt for n in counts for number in range(len(laid)) for prompt in made[n, number]]


def places_of(asked: int, n: int, most: int) -> list[int]:
    """The places at which `n` facts stand where there are `most`: the asked one, and its like in the other stretches.

    Where `n` divides `most` they are evenly spread.
    """
    ends = [(most * block // n, most * (block + 1) // n) for block in range(n)]
    into = next(asked - start for start, stop in ends if start <= asked < stop)
    return [asked if start <= asked < stop else start + min(into, stop - start - 1) for start, stop in ends]


def _supply(one: Laid, known: Sequence[Piece], plain: Sequence[str], start: int, length: int, name: str) -> Supply:
    """Sentences from one on, and round again, enough for a prompt: none names a key or says half of a value of it."""
    phrases = {niah.normalise(rule.phrase) for fact in one.facts for rule in fact.rubric}
    phrases |= {niah.normalise(fact.name) for fact in one.facts}
    found: list[Piece] = []
    spare, reached = WINDOW + ATTEMPTS, 0  # sentences behind those that fill the prompt
    for step in range(len(known)):
        place = (start + step) % len(known)
        if known[place].cost and not any(phrase in plain[place] for phrase in phrases):
            found.append(known[place])
            reached += found[-spare - 1].cost if len(found) > spare else 0
        if reached >= length:
            break
    if not found:
        raise InputError(f"haystack {name!r} has no sentence without a prompt's cities in it; give another")
    while reached < length:  # a short one is used again from its start, as in the needle benchmark
        found += found
        reached = sum(piece.cost for piece in found[:-spare])
    longest = sorted(found[:WINDOW], key=lambda piece: -piece.cost)[:3]
    parts = [part for piece in longest for part in fragments(one.frame.tokenizer, piece.text)]
    return Supply(tuple(found), tuple(parts))


def _prompt(one: Laid, number: int, n: int, control: bool, supply: Supply, length: int) -> FactPrompt:
    """One prompt, of exactly `length` tokens.

    Raises:
        InputError: no choice of sentences that was tried comes out exactly.
    """
    most = len(one.facts)
    places = places_of(one.asked, n, most)
    held = [place for place in places if not (control and place == one.asked)]
    frame = one.frame
    tail = 4 * sum(piece.cost for piece in supply.sentences[:WINDOW]) // len(supply.sentences[:WINDOW])
    estimate = length - frame.count([" ".join(one.facts[place].sentence for place in held)])
    for skip in range(ATTEMPTS):
        room = estimate
        for _ in range(CORRECTIONS):
            chosen = plan(supply.sentences, supply.fragments, room, tail, skip) if room >= 0 else None
            if chosen is None:
                break
            context, spans = _context(one, held, chosen)
            draft = frame.draft([context])
            if draft.length == length:
                start = draft.body.context_starts[0]
                depth = round(100 * (one.asked + 0.5) / most)
                asked = [span for place, span in spans.items() if place == one.asked]
                prompt = frame.prompt(draft, asked, length, None if control else depth, "clean")
                others = [place for place in held if place != one.asked]
                ranges = (token_span(draft.encoding, start + spans[p][0], start + spans[p][1]) for p in others)
                facts = tuple(one.facts[place] for place in others)
                rank = places.index(one.asked)
                strange = one.strangers[: n - 1]
                return FactPrompt(number, n, rank, frame.needle, facts, prompt, tuple(ranges), depth, strange)
            room += length - draft.length
    raise InputError(
        f"no choice of the haystack's sentences makes a prompt of exactly {length} tokens with {many(n, 'fact')}; give "
        "another length, or a haystack with more short sentences"
    )


def _context(one: Laid, held: Sequence[int], chosen: Sequence[Piece]) -> tuple[str, dict[int, niah.Span]]:
    """Facts and filler as one text, and each fact's characters in it by its place.

    Each fact goes between the sentences where its middle is nearest to the middle of its place, after the one before.
    """
    total = sum(piece.cost for piece in chosen) + sum(one.costs[place] for place in held)
    texts: list[str] = []
    spans: dict[int, niah.Span] = {}
    at = used = taken = 0

    def put(text: str) -> niah.Span:
        nonlocal at
        start = at + bool(texts)
        texts.append(text)
        at = start + len(text)
        return start, at

    for place in held:
        middle = total * (place + 0.5) / len(one.facts) - one.costs[place] / 2
        while taken < len(chosen) and abs(used + chosen[taken].cost - middle) < abs(used - middle):
            put(chosen[taken].text)
            used += chosen[taken].cost
            taken += 1
        spans[place] = put(one.facts[place].sentence)
        used += one.costs[place]
    for piece in chosen[taken:]:
        put(piece.text)
    return " ".join(texts), spans
