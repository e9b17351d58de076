"""A twin for each needle: the same form, question and number of tokens, and another answer.

A built-in needle has a form, with words that may stand in it, and its twin is the first that the tokenizer cuts into as
many tokens as the needle: for the embedded models, the first of all. Needles of a user's have twins among each other:
those that answer the same question.

How it fails: a needle without a twin of as many tokens is refused where it was named, and left out by
`pairs.prompt_pairs` where it was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product
from typing import NamedTuple

from hybridlens import niah
from hybridlens.display import Displayed, Table
from hybridlens.display.markup import cut
from hybridlens.errors import InputError
from hybridlens.niah import Needle, Tokenizer, best_thing, in_steps
from hybridlens.niah.encoding import encode

MOST_TRIES = 4096
"""Of words in a form."""


class _NeedlePair(NamedTuple):
    """Fields of `NeedlePair`."""

    needle_a: Needle
    needle_b: Needle


class NeedlePair(Displayed, _NeedlePair):
    """Two needles that answer one question."""

    __slots__ = ()

    def summary(self) -> str:
        """Which needles."""
        return f"{self.needle_a.name}: {cut(self.needle_a.sentence, 70)!r} | {cut(self.needle_b.sentence, 70)!r}"

    def table(self) -> Table:
        """Both needles."""
        rows = [(side, one.name, one.sentence, one.question) for side, one in zip("AB", self, strict=True)]
        return Table(("side", "name", "sentence", "question"), rows)


class Form(NamedTuple):
    """A needle's form, and what may stand in it."""

    make: Callable[..., Needle]
    words: tuple[tuple[str, ...], ...]

    def twins(self) -> Iterator[Needle]:
        """Needles of this form; the first has the first words of all."""
        tried = islice(product(*self.words), MOST_TRIES)
        return (self.make(*chosen) for chosen in tried if len(set(chosen)) == len(chosen))


def _best(name: str, city: str) -> Callable[..., Needle]:
    """The paper's form: what is best in a city."""
    return lambda first, second, park, weather: best_thing(name, city, first, second, f"{park} Park", weather)


def _steps(name: str, first: str, second: str) -> Callable[..., Needle]:
    """The built-in needle of a name with other phrases in place of the two that its rubric gives points for.

    Args:
        name: of the needle.
        first: a phrase with a gap for each of the words.
        second: the other; its gaps are counted on.
    """
    needle = niah.NEEDLES[name]

    def make(*words: str) -> Needle:
        ours, theirs = first.format(*words), second.format(*words[first.count("{}") :])
        sentence = needle.sentence.replace(needle.rubric[0].phrase, ours).replace(needle.rubric[1].phrase, theirs)
        return in_steps(name, sentence, needle.question, ours, theirs)

    return make


_PARKS = ("Hyde", "Golden", "Castle", "Stanley", "Memorial", "Regent")
_DAYS = ("cold", "windy", "warm", "rainy", "clear", "busy", "cloudy")
_DEEDS = ("fly a kite", "ride a bike", "paint a picture", "read a book", "plant a tree", "fix a radio")
_THINGS = ("basket", "mirror", "violin", "guitar", "radio", "book")
_COLORS = ("green", "yellow", "black", "white", "blue", "red")
_PEOPLE = ("Simon", "Cesar", "Marco", "Oscar", "Anna", "Peter", "Maria")
_CITIES = ("Geneva", "London", "Paris", "Rome", "Madrid", "Vienna")
_PLACES = ("Castle Square", "Rose Garden", "Union Square", "Palace Garden", "Harbor Garden", "Willow Square")
_NUMBERS = ("ten", "two", "eight", "five", "twenty", "six")
_MORE = ("seven", "three", "nine", "four", "eleven")

FORMS: dict[str, Form] = {
    "paper": Form(_best("paper", "San Francisco"), (_DEEDS, ("rest", "walk", "sing", "sleep"), _PARKS, _DAYS)),
    "oslo": Form(
        _best("oslo", "Oslo"), (("ride a bike", *_DEEDS), ("walk", "sing", "sleep"), _PARKS[1:], _DAYS[1:])
    ),
    "strangest": Form(
        _steps("strangest", "{} in {} Park", "{} on a {} day"),
        (("whistle", "sing", "juggle"), ("Regent", *_PARKS), ("fix a radio", *_DEEDS), ("busy", "gloomy", *_DAYS)),
    ),
    "sailors": Form(
        _steps("sailors", "{} and {}", "in {} Square on a {} day"),
        (("plant a tree", *_DEEDS), ("camp", "sing", "rest"), ("Union", "Castle", "Harbor"), ("warm", *_DAYS)),
    ),
    "secret-word": Form(_steps("secret-word", "the {} {}", "of {}"), (_COLORS, _THINGS, _PEOPLE)),
    "treasure": Form(
        _steps("treasure", "the {} {}", "of {}"), (("yellow", *_COLORS), ("mirror", *_THINGS), ("Cesar", *_PEOPLE))
    ),
    "violin": Form(
        _steps("violin", "in {}", "near the {} of {}"),
        (_PLACES, ("museum", "market", "station", "bridge"), (*_CITIES, "Prague")),
    ),
    "mayor": Form(
        _steps("mayor", "{}, who likes to {}", "on a {} day"),
        (("Oscar", *_PEOPLE), ("buy honey", "sing songs", "read books", "eat bread"), ("cloudy", *_DAYS)),
    ),
    "tuesday": Form(
        _steps("tuesday", "{}", "in {}"),
        (
            ("fix a guitar", "wash a horse", "paint an elephant", *_DEEDS),
            ("Rose Garden", *_PLACES),
        ),
    ),
    "code": Form(_steps("code", "{} {} {}", "{} {} {}"), tuple((number, *_NUMBERS, *_MORE) for number in _NUMBERS)),
    "magic-words": Form(
        _steps("magic-words", "{} {} {}", "{} {} {}"),
        (("lemon", "sugar", "water"), ("square", "circle"), ("five", "ten"), ("bright", "dark", "cold"),
         ("museum", "market", "garden"), ("silver", "green", "white")),
    ),
    "favorite": Form(
        _steps("favorite", "the {} {}", "of {}"), (("black", *_COLORS), ("violin", *_THINGS), ("Marco", *_PEOPLE))
    ),
}  # fmt: skip
"""Of each of `niah.STUDY_NEEDLES`, under its name."""


def needle_pairs(names: Sequence[str] | None = None, tokenizer: Tokenizer | None = None) -> list[NeedlePair]:
    """The built-in needles with their twins.

    Args:
        names: of `niah.needle_set()`; None for all.
        tokenizer: that is to cut both into as many tokens; None for the first twin, whatever it is cut into. Where
            none fits, it is the first as well.

    Raises:
        InputError: a needle that has no twin.
    """
    unknown = [name for name in names or () if name not in FORMS]
    if unknown:
        raise InputError(f"needle {unknown[0]!r} has no twin; expected one of {', '.join(FORMS)}")
    made: list[NeedlePair] = []
    for name in FORMS if names is None else names:
        needle, twins = niah.NEEDLES[name], FORMS[name].twins()
        first = next(twins)
        fitting = first if tokenizer is None or fits(tokenizer, needle, first) else next(
            (twin for twin in twins if fits(tokenizer, needle, twin)), first
        )  # fmt: skip
        made.append(NeedlePair(needle, fitting))
    return made


def paired(needles: Sequence[Needle], tokenizer: Tokenizer) -> list[NeedlePair]:
    """Needles with their twins: built-in ones with theirs, others with the next that answers the same question.

    Raises:
        InputError: one that nobody answers to.
    """
    made: list[NeedlePair] = []
    waiting: dict[str, Needle] = {}
    for needle in needles:
        if niah.NEEDLES.get(needle.name) == needle:
            made += needle_pairs([needle.name], tokenizer)
        elif needle.question in waiting:
            made.append(NeedlePair(waiting.pop(needle.question), needle))
        else:
            waiting[needle.question] = needle
    for needle in waiting.values():
        raise InputError(
            f"needle {needle.name!r} has no twin; give another needle with the question {needle.question!r}, another "
            "answer, and as many tokens"
        )
    return made


def fits(tokenizer: Tokenizer, needle: Needle, twin: Needle) -> bool:
    """Whether a tokenizer cuts both into as many tokens, and neither has points by the other's rubric."""
    ours, theirs = (len(encode(tokenizer, f" {one.sentence}", False).ids) for one in (needle, twin))
    return ours == theirs and not niah.score(twin.sentence, needle.rubric) + niah.score(needle.sentence, twin.rubric)
