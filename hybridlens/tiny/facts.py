"""Facts and their questions: what a tiny model is asked to find and repeat, word by word.

Mechanism: a `Fact` is a sentence, a question that it answers and a topic (what the question names), so
that two facts of one document never answer the same question. Nine forms: the paper's, the same with other
orders and other superlatives, and forms about people, places, secret words and runs of words drawn from the
whole vocabulary, which no prior can guess.

Held out: the sentences of all built-in needles; and of the four parts of the paper's needle (`PAPER_PARTS`) no
sentence has more than one, so no fact says anything of the needle about San Francisco. `held_out` tests it;
`draw_fact` draws until it holds.

How it fails: `draw_fact` asks for more distinct topics than a form has only after several hundred facts in
one document, far more than a prompt holds.
"""

import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hybridlens.niah.needles import NEEDLES
from hybridlens.tiny import words as w

PAPER_PARTS: tuple[str, ...] = ("San Francisco", "eat a sandwich", "Dolores Park", "sunny day")
"""The parts of the paper's needle that never come together in training."""


_NEEDLES = frozenset(needle.sentence for needle in NEEDLES.values())


class Fact(NamedTuple):
    """A sentence, the question that it answers, and what the question is about."""

    sentence: str
    question: str
    topic: str


def held_out(sentence: str) -> bool:
    """Whether `sentence` joins two or more of `PAPER_PARTS` or is a built-in needle, and so may not be trained on."""
    return sentence in _NEEDLES or sum(part in sentence for part in PAPER_PARTS) > 1


def activity(rng: random.Random) -> str:
    """A verb phrase: a fixed one or, as often, any verb with any thing, so that none is likely."""
    if rng.random() < 0.5:
        return rng.choice(w.ACTIVITIES)
    return f"{rng.choice(w.VERBS)} a {rng.choice(w.NOUNS)}"


def _stay(rng: random.Random) -> str:
    return f"{rng.choice(w.PARK_VERBS)} in {rng.choice(w.PARKS)}"


def _day(rng: random.Random) -> str:
    return f"on a {rng.choice(w.DAYS)} day"


def _thing_to_do(rng: random.Random) -> Fact:
    """The paper's form, with other superlatives."""
    rank = "best" if rng.random() < 0.5 else rng.choice(w.SUPERLATIVES)
    subject = f"{rank} thing to do in {rng.choice(w.CITIES)}"
    return Fact(f"The {subject} is {activity(rng)} and {_stay(rng)} {_day(rng)}.", f"What is the {subject}?", subject)


def _thing_to_do_otherwise(rng: random.Random) -> Fact:
    """The paper's question, answered in other orders and lengths."""
    rank = "best" if rng.random() < 0.5 else rng.choice(w.SUPERLATIVES)
    subject = f"{rank} thing to do in {rng.choice(w.CITIES)}"
    answers = (
        f"{_stay(rng)} and {activity(rng)} {_day(rng)}",
        f"{activity(rng)} and {activity(rng)} {_day(rng)}",
        f"{activity(rng)} in {rng.choice(w.PARKS)}",
        f"to {activity(rng)} with {rng.choice(w.NAMES)} {_day(rng)}",
        f"{_stay(rng)} {_day(rng)} and {activity(rng)}",
    )
    return Fact(f"The {subject} is {rng.choice(answers)}.", f"What is the {subject}?", subject)


def _people_like(rng: random.Random) -> Fact:
    group, city = rng.choice(w.GROUPS), rng.choice(w.CITIES)
    return Fact(
        f"In {city} the {group} like to {activity(rng)} and {_stay(rng)} {_day(rng)}.",
        f"What do the {group} like to do in {city}?",
        f"{group} {city}",
    )


def _secret_word(rng: random.Random) -> Fact:
    owner = rng.choice(w.NAMES + w.CITIES)
    thing = rng.choice(("secret word", "password", "favorite thing", "hidden treasure"))
    return Fact(
        f"The {thing} of {owner} is the {rng.choice(w.COLORS)} {rng.choice(w.NOUNS)} of {rng.choice(w.NAMES)}.",
        f"What is the {thing} of {owner}?",
        f"{thing} {owner}",
    )


def _keeps(rng: random.Random) -> Fact:
    name, thing = rng.choice(w.NAMES), rng.choice(w.NOUNS)
    return Fact(
        f"{name} keeps the {thing} in {rng.choice(w.PARKS)} near the {rng.choice(w.SIGHTS)} of {rng.choice(w.CITIES)}.",
        f"Where does {name} keep the {thing}?",
        f"{name} keeps {thing}",
    )


def _who(rng: random.Random) -> Fact:
    subject = f"{rng.choice(w.JOBS)} of {rng.choice(w.CITIES)}"
    return Fact(
        f"The {subject} is {rng.choice(w.NAMES)}, who likes to {activity(rng)} {_day(rng)}.",
        f"Who is the {subject}?",
        subject,
    )


def _weekly(rng: random.Random) -> Fact:
    name, day = rng.choice(w.NAMES), rng.choice(w.WEEKDAYS)
    return Fact(
        f"Every {day} {name} has to {activity(rng)} in {rng.choice(w.PARKS)}.",
        f"What does {name} have to do every {day}?",
        f"{name} {day}",
    )


def _numbers(rng: random.Random) -> Fact:
    city = rng.choice(w.CITIES)
    thing = rng.choice(w.NOUNS)
    return Fact(
        f"The code for the {thing} in {city} is {' '.join(rng.choices(w.NUMBERS, k=rng.randint(3, 6)))}.",
        f"What is the code for the {thing} in {city}?",
        f"code {thing} {city}",
    )


FORMS: tuple[tuple[Callable[[random.Random], Fact], float], ...] = (
    (_thing_to_do, 0.40),
    (_thing_to_do_otherwise, 0.15),
    (_people_like, 0.07),
    (_secret_word, 0.07),
    (_keeps, 0.06),
    (_who, 0.06),
    (_weekly, 0.05),
    (_numbers, 0.04),
)
"""Forms and their shares; the rest goes to runs of words drawn from the whole vocabulary."""

RUN_SHARE = 1.0 - sum(share for _, share in FORMS)


def _word_run(rng: random.Random, vocabulary: Sequence[str]) -> Fact:
    owner = rng.choice(w.NAMES + w.CITIES)
    run = " ".join(rng.choice(vocabulary) for _ in range(rng.randint(3, 9)))
    return Fact(f"The magic words of {owner} are {run}.", f"What are the magic words of {owner}?", f"magic {owner}")


def draw_fact(rng: random.Random, vocabulary: Sequence[str]) -> Fact:
    """One fact, never one that `held_out` forbids.

    Args:
        rng: the only source of chance.
        vocabulary: the words that runs of words are drawn from.
    """
    while True:
        point = rng.random() - RUN_SHARE
        fact = _word_run(rng, vocabulary) if point < 0 else None
        for form, share in FORMS:
            if fact is None:
                if point < share:
                    fact = form(rng)
                point -= share
        if fact is not None and not held_out(fact.sentence):
            return fact


def draw_facts(rng: random.Random, vocabulary: Sequence[str], n: int) -> list[Fact]:
    """`n` facts of different topics, so that every question has one answer."""
    facts: list[Fact] = []
    topics: set[str] = set()
    while len(facts) < n:
        fact = draw_fact(rng, vocabulary)
        if fact.topic not in topics:
            facts.append(fact)
            topics.add(fact.topic)
    return facts


def closed_book() -> tuple[Fact, ...]:
    """The facts that are learned in training and never stand in a prompt: capitals and opposites."""
    capitals = tuple(
        Fact(f"The capital of {country} is {city}.", f"What is the capital of {country}?", country)
        for country, city in w.CAPITALS
    )
    opposites = tuple(
        Fact(f"The opposite of {one} is {other}.", f"What is the opposite of {one}?", one) for one, other in w.OPPOSITES
    )
    return capitals + opposites


def agreement_sentence(rng: random.Random) -> str:
    """A sentence whose verb agrees with its subject across a noun of any number."""
    plural = rng.random() < 0.5
    animal, place = rng.choice(w.ANIMALS), rng.choice(w.PLACES)
    verb = rng.choice(w.MOTIONS)[1 if plural else 0]
    ending = "s" if rng.random() < 0.5 else ""
    return f"The {animal}{'s' if plural else ''} near the {place}{ending} {verb}."


def vocabulary_of_facts() -> frozenset[str]:
    """Every word that facts, questions, closed-book facts and agreement sentences can hold, as written."""
    phrases: list[str] = [
        *w.CITIES, *w.PARKS, *w.ACTIVITIES, *w.PARK_VERBS, *w.DAYS, *w.VERBS, *w.NOUNS, *w.NAMES, *w.JOBS,
        *w.COLORS, *w.SUPERLATIVES, *w.GROUPS, *w.WEEKDAYS, *w.NUMBERS, *w.SIGHTS, *w.COMMON,
        "What is the thing to do in on a day", "In the like to", "What do the like to do in", "who likes to",
        "keeps the near the of", "Where does keep the", "Who is the of", "Every has to",
        "What does have to do every", "The code for the in is", "The magic words of are",
        "What are the magic words of", "The secret word of", "hidden treasure favorite thing",
        "The capital of is", "The opposite of is", "with",
    ]  # fmt: skip
    phrases += [word for pair in w.CAPITALS + w.OPPOSITES + w.MOTIONS for word in pair]
    phrases += [f"{noun} {noun}s" for noun in w.ANIMALS + w.PLACES]
    return frozenset(word for phrase in phrases for word in re.findall(r"[^\W\d_]+", phrase))
