"""Facts of one form with a key that a question names and a value that it asks for; and which fact an answer tells.

A fact is a `niah.Needle`, with its rubric: phrases of the value that are worth `LEAST` points tell it, since within a
prompt they are one fact's alone, and each is one of several hundred that could be drawn. Keys are cities. Words are
those of the embedded models' tokenizer (`hybridlens.tiny.words`), and all are common English.

How it fails: a form has only so many facts (`MOST`), and more are refused. Some of several hundred phrases are said by
chance where facts are many: read recall beside its control, and other facts' values beside those of `strangers`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from analyses.kv_cache.pairs import LEAST
from hybridlens import niah
from hybridlens.errors import InputError
from hybridlens.tiny import words as w

WHOLE = 2 * LEAST
"""Points of an answer that gives a whole value."""

MOST = len(w.CITIES)
"""Facts of different keys."""

NEITHER = -1
"""In place of a fact's index: the answer tells none."""

Item = TypeVar("Item")


class Form(NamedTuple):
    """What facts say."""

    make: Callable[[str, Sequence[str]], niah.Needle]
    """A fact of a key and the parts of a value."""
    parts: tuple[tuple[str, ...], ...]
    """The words or phrases that each part of a value is drawn from."""

    @property
    def bits(self) -> float:
        """Of one value among all that could be drawn: log₂ of their number."""
        return sum(math.log2(len(part)) for part in self.parts)


def _best_thing(key: str, value: Sequence[str]) -> niah.Needle:
    activity, verb, park, day = value
    return niah.best_thing(key, key, activity, verb, park, day)


def _secret_word(key: str, value: Sequence[str]) -> niah.Needle:
    """Of the value the first phrase alone tells the fact: a name is one of thirty."""
    color, noun, name = value
    thing = f"the {color} {noun}"
    sentence = f"The secret word of {key} is {thing} of {name}."
    rubric = (
        niah.Rule(thing, LEAST, "add"),
        niah.Rule(f"of {name}", 1.0, "add"),
        niah.Rule(f"{thing} of {name}", 4.0, "set"),
        niah.Rule(sentence, niah.MAX_SCORE, "set"),
    )
    return niah.Needle(key, sentence, f"What is the secret word of {key}?", rubric)


FORMS: dict[str, Form] = {
    "best-thing": Form(_best_thing, (w.ACTIVITIES, w.PARK_VERBS, w.PARKS, w.DAYS)),
    "secret-word": Form(_secret_word, (w.COLORS, w.NOUNS, w.NAMES)),
}
"""By the names that `analyses.experiment.options.capacity.FORMS` lists."""


def draw_facts(form: Form, n: int, rng: random.Random) -> list[niah.Needle]:
    """`n` facts, each named after its key; no two share a key or a phrase that tells a fact.

    Parts of which there are fewer than facts come again in the order in which they came first: as the parts of a phrase
    are of numbers whose least common multiple is above `MOST`, phrases stay different.

    Raises:
        InputError: more facts than there are.
    """
    if n > MOST:
        raise InputError(f"--facts {n} given, expected at most {MOST}: there are no more of different keys")
    parts = [_around(part, n, rng) for part in form.parts]
    return [form.make(key, value) for key, *value in zip(rng.sample(w.CITIES, n), *parts, strict=True)]


def telling(fact: niah.Needle) -> set[str]:
    """The phrases of a fact's value that tell it, normalised."""
    return {niah.normalise(rule.phrase) for rule in fact.rubric if rule.mode == "add" and rule.points >= LEAST}


def strangers(form: Form, facts: Sequence[niah.Needle], n: int, rng: random.Random) -> list[niah.Needle]:
    """`n` facts that share no telling phrase with those given: how often they are told is chance.

    Raises:
        InputError: more facts than there are.
    """
    known = {phrase for fact in facts for phrase in telling(fact)}
    found: list[niah.Needle] = []
    while len(found) < n:
        found += [fact for fact in draw_facts(form, min(n, MOST), rng) if not telling(fact) & known]
    return found[:n]


def _around(items: Sequence[Item], n: int, rng: random.Random) -> list[Item]:
    """`n` items in a random order, each again when all have come."""
    order = rng.sample(items, len(items))
    return [order[i % len(order)] for i in range(n)]


def told(text: str, facts: Sequence[niah.Needle]) -> int:
    """The fact whose value an answer gives: its index, or `NEITHER`.

    It is the fact by whose rubric the answer has most points, at least `LEAST`. Of several whose whole values are said,
    the one said first; of several of which parts are said, none.

    Args:
        text: the answer.
        facts: that it could tell.
    """
    points = [niah.score(text, fact.rubric) for fact in facts]
    most = max(points, default=0.0)
    best = [index for index, earned in enumerate(points) if earned == most]
    if most < LEAST or (len(best) > 1 and most < WHOLE):
        return NEITHER
    said = niah.normalise(text)
    return min(best, key=lambda index: _first(said, facts[index]))


def _first(said: str, fact: niah.Needle) -> int:
    """Where in a normalised answer the first phrase of a fact's rubric stands that is in it."""
    places = [said.find(niah.normalise(rule.phrase)) for rule in fact.rubric]
    return min(place for place in places if place >= 0)
