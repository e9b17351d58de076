"""A twin for each needle of a study: the same form, question and number of words, and another answer.

How it fails: twins have as many words, but a tokenizer may cut these into other numbers of tokens
(`pairs.prompt_pairs` leaves such twins out).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hybridlens import niah
from hybridlens.errors import InputError
from hybridlens.niah import Needle, best_thing, in_steps

TWINS: tuple[Needle, ...] = (
    best_thing("paper", "San Francisco", "fly a kite", "rest", "Hyde Park", "cold"),
    best_thing("oslo", "Oslo", "ride a bike", "walk", "Golden Park", "windy"),
    in_steps(
        "strangest",
        "The strangest thing to do in Havana is whistle in Regent Park and fix a radio on a busy day.",
        "What is the strangest thing to do in Havana?",
        "whistle in Regent Park",
        "fix a radio on a busy day",
    ),
    in_steps(
        "sailors",
        "In Athens the sailors like to plant a tree and camp in Union Square on a warm day.",
        "What do the sailors like to do in Athens?",
        "plant a tree and camp",
        "in Union Square on a warm day",
    ),
    in_steps(
        "secret-word",
        "The secret word of Rosa is the green basket of Simon.",
        "What is the secret word of Rosa?",
        "the green basket",
        "of Simon",
    ),
    in_steps(
        "treasure",
        "The hidden treasure of Seoul is the yellow mirror of Cesar.",
        "What is the hidden treasure of Seoul?",
        "the yellow mirror",
        "of Cesar",
    ),
    in_steps(
        "violin",
        "Hugo keeps the violin in Castle Square near the museum of Geneva.",
        "Where does Hugo keep the violin?",
        "in Castle Square",
        "near the museum of Geneva",
    ),
    in_steps(
        "mayor",
        "The mayor of Dublin is Oscar, who likes to buy honey on a cloudy day.",
        "Who is the mayor of Dublin?",
        "Oscar, who likes to buy honey",
        "on a cloudy day",
    ),
    in_steps(
        "tuesday",
        "Every Tuesday Bianca has to fix a guitar in Rose Garden.",
        "What does Bianca have to do every Tuesday?",
        "fix a guitar",
        "in Rose Garden",
    ),
    in_steps(
        "code",
        "The code for the ladder in Quito is ten two eight five twenty six.",
        "What is the code for the ladder in Quito?",
        "ten two eight",
        "five twenty six",
    ),
    in_steps(
        "magic-words",
        "The magic words of Karim are lemon square five bright museum silver.",
        "What are the magic words of Karim?",
        "lemon square five",
        "bright museum silver",
    ),
    in_steps(
        "favorite",
        "The favorite thing of Zagreb is the black violin of Marco.",
        "What is the favorite thing of Zagreb?",
        "the black violin",
        "of Marco",
    ),
)
"""A twin for each of `niah.STUDY_NEEDLES`, under its name: same form, same question, another answer."""


class NeedlePair(NamedTuple):
    """Two needles that answer one question."""

    a: Needle
    b: Needle


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
