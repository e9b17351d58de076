"""Facts of one form with a key that a question names and a value that it asks for; and which fact an answer tells.

A fact is a `niah.Needle`, with its rubric: each half of the value is worth 1.5 points of 5. Keys are cities; both
halves of a value are some fact's alone within a prompt, so that half of it tells which one is given. Words are those
of the embedded models' tokenizer (`hybridlens.tiny.words`), and all are common English.

How it fails: a form has only so many facts of different keys and values (`Form.most`), and more are refused. Facts are
drawn from few words each, so that a model may say a half by chance: read recall beside its control.
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

NEITHER = -1
"""In place of a fact's index: the answer tells none."""

Item = TypeVar("Item")


class Form(NamedTuple):
    """What facts say."""

    make: Callable[[str, Sequence[str]], niah.Needle]
    """A fact of a key and the parts of a value."""
    parts: tuple[tuple[str, ...], ...]
    """The words or phrases that each part of a value is drawn from."""
    most: int
    """Facts of different keys, both halves of whose values differ as well."""
    keys: tuple[str, ...] = w.CITIES

    @property
    def bits(self) -> float:
        """Of one value among all that could be drawn: log₂ of their number."""
        return sum(math.log2(len(part)) for part in self.parts)


def _best_thing(key: str, value: Sequence[str]) -> niah.Needle:
    activity, verb, park, day = value
    return niah.best_thing(key, key, activity, verb, park, day)


def _secret_word(key: str, value: Sequence[str]) -> niah.Needle:
    color, noun, name = value
    sentence = f"The secret word of {key} is the {color} {noun} of {name}."
    return niah.in_steps(key, sentence, f"What is the secret word of {key}?", f"the {color} {noun}", f"of {name}")


FORMS: dict[str, Form] = {
    "best-thing": Form(_best_thing, (w.ACTIVITIES, w.PARK_VERBS, w.PARKS, w.DAYS), len(w.CITIES)),
    "secret-word": Form(_secret_word, (w.COLORS, w.NOUNS, w.NAMES), len(w.NAMES)),
}
"""By the names that `analyses.experiment.options.capacity.FORMS` lists."""


def draw_facts(form: Form, n: int, rng: random.Random) -> list[niah.Needle]:
    """`n` facts, each named after its key; no two share a key or half of a value.

    Parts of which there are fewer than facts come again in the order in which they came first: as the parts of a half
    are of numbers whose least common multiple is above `Form.most`, halves stay different.

    Raises:
        InputError: more facts than the form has.
    """
    if n > form.most:
        raise InputError(f"--facts {n} given, expected at most {form.most}: a form has no more of different values")
    parts = [_around(part, n, rng) for part in form.parts]
    return [form.make(key, value) for key, *value in zip(rng.sample(form.keys, n), *parts, strict=True)]


def _around(items: Sequence[Item], n: int, rng: random.Random) -> list[Item]:
    """`n` items in a random order, each again when all have come."""
    order = rng.sample(items, len(items))
    return [order[i % len(order)] for i in range(n)]


def told(text: str, facts: Sequence[niah.Needle]) -> int:
    """The fact whose value an answer gives: its index, or `NEITHER`.

    It is the fact by whose rubric the answer has most points, at least `LEAST`, which is half of a value. Of several
    whose whole values are said, the one said first; of several of which halves are said, none.

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
