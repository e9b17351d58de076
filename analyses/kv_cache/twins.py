"""A twin for each needle of a study: the same form, question and number of words, and another answer.

How it fails: twins have as many words, but a tokenizer may cut these into other numbers of tokens
(`pairs.prompt_pairs` leaves such twins out).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hybridlens import niah
from hybridlens.display import Displayed, Table
from hybridlens.display.markup import cut
from hybridlens.errors import InputError
from hybridlens.niah import Needle, best_thing, in_steps


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


def _twin(name: str, first: str, second: str) -> Needle:
    """The built-in needle of that name with other phrases in place of the two that its rubric gives points for."""
    needle = niah.NEEDLES[name]
    sentence = needle.sentence.replace(needle.rubric[0].phrase, first).replace(needle.rubric[1].phrase, second)
    return in_steps(name, sentence, needle.question, first, second)


TWINS: tuple[Needle, ...] = (
    best_thing("paper", "San Francisco", "fly a kite", "rest", "Hyde Park", "cold"),
    best_thing("oslo", "Oslo", "ride a bike", "walk", "Golden Park", "windy"),
    _twin("strangest", "whistle in Regent Park", "fix a radio on a busy day"),
    _twin("sailors", "plant a tree and camp", "in Union Square on a warm day"),
    _twin("secret-word", "the green basket", "of Simon"),
    _twin("treasure", "the yellow mirror", "of Cesar"),
    _twin("violin", "in Castle Square", "near the museum of Geneva"),
    _twin("mayor", "Oscar, who likes to buy honey", "on a cloudy day"),
    _twin("tuesday", "fix a guitar", "in Rose Garden"),
    _twin("code", "ten two eight", "five twenty six"),
    _twin("magic-words", "lemon square five", "bright museum silver"),
    _twin("favorite", "the black violin", "of Marco"),
)
"""A twin for each of `niah.STUDY_NEEDLES`, under its name."""


def needle_pairs(names: Sequence[str] | None = None) -> list[NeedlePair]:
    """The built-in needles with their twins.

    Args:
        names: of `niah.needle_set()`; None for all.

    Raises:
        InputError: a needle that has no twin.
    """
    twins = {twin.name: twin for twin in TWINS}
    unknown = [name for name in names or () if name not in twins]
    if unknown:
        raise InputError(f"needle {unknown[0]!r} has no twin; expected one of {', '.join(twins)}")
    return [NeedlePair(niah.NEEDLES[name], twins[name]) for name in (twins if names is None else names)]
