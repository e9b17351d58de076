"""The needles that are built in, each with its question and rubric.

`PAPER_NEEDLE` is the paper's. The others have the same shape but other places and activities, so that a
result can be shown to hold for more than one sentence; their words are all in the built-in essays'
vocabulary or in the paper's needle. Their rubrics give points for long phrases only, so that a model
which never saw the needle but speaks in sentences of its form stays under 10 %.

How it fails: a needle whose words the tokenizer does not know is warned about when prompts are made, not
here; and the paper's rubric, fixed by the paper, pays for "sunny day" and "Dolores Park", which a model
with a small vocabulary says by chance.
"""

import re
import warnings
from dataclasses import dataclass

from hybridlens.errors import InputError
from hybridlens.niah.rubric import (
    MAX_SCORE,
    PAPER_RUBRIC,
    PUBLISHED_RUBRIC,
    Rubric,
    Rule,
    check_rubric,
    normalise,
)

PAPER_SENTENCE = (
    "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."
)
PAPER_QUESTION = "What is the best thing to do in San Francisco?"


@dataclass(frozen=True)
class Needle:
    """A sentence to hide, the question that asks for it, and how answers are graded.

    Attributes:
        name: what results call it.
        sentence: the sentence with its final punctuation; a full stop is added to one that has none.
        question: the question, as it stands after ``QUESTION:``.
        rubric: the rules that grade an answer, checked against the sentence when the needle is made.

    Raises:
        InputError: an empty sentence or question, or a rubric that `check_rubric` refuses.

    Warns:
        UserWarning: the question itself holds a phrase that scores.
    """

    name: str
    sentence: str
    question: str
    rubric: Rubric

    def __post_init__(self) -> None:
        """Tidy white space, end the sentence with punctuation, check the rubric."""
        sentence = " ".join(self.sentence.split())
        question = " ".join(self.question.split())
        if not re.search(r"\w", sentence):
            raise InputError(f"needle {self.sentence!r} has no words; give a sentence to hide")
        if not re.search(r"\w", question):
            raise InputError(f"question {self.question!r} has no words; give the needle's question")
        if sentence[-1] not in ".!?":
            sentence += "."
        object.__setattr__(self, "sentence", sentence)
        object.__setattr__(self, "question", question)
        check_rubric(self.rubric, sentence, f"the rubric of needle {self.name!r}")
        echoed = [rule.phrase for rule in self.rubric if normalise(rule.phrase) in normalise(question)]
        if echoed:
            warnings.warn(
                f"needle {self.name!r}: the question {question!r} holds {echoed[0]!r}, which its rubric "
                "gives points for, so an answer that repeats the question scores",
                stacklevel=3,
            )


PAPER_NEEDLE = Needle("paper", PAPER_SENTENCE, PAPER_QUESTION, PAPER_RUBRIC)
"""The paper's needle with table 2 as its rubric."""

PUBLISHED_NEEDLE = Needle("paper-published", PAPER_SENTENCE, PAPER_QUESTION, PUBLISHED_RUBRIC)
"""The paper's needle with the rubric of the authors' code."""


def best_thing(name: str, city: str, first: str, second: str, park: str, weather: str) -> Needle:
    """A needle of the paper's form, with a rubric in the paper's steps but for longer phrases.

    Args:
        name: what results call it.
        city: where; also what the question asks for.
        first: a verb phrase, "sail a boat".
        second: another, "take a nap".
        park: where the second happens.
        weather: the kind of day.

    Returns:
        "The best thing to do in {city} is {first} and {second} in {park} on a {weather} day." Half of
        the sentence's second part ("{first} and {second}", "in {park} on a {weather} day") is worth 1.5
        points, corrected grammar ("is to …") sets 4, the whole sentence sets 5.
    """
    activities, place = f"{first} and {second}", f"in {park} on a {weather} day"
    sentence = f"The best thing to do in {city} is {activities} {place}."
    rubric = (
        Rule(activities, 1.5, "add"),
        Rule(place, 1.5, "add"),
        Rule(f"is to {activities} {place}", 4.0, "set"),
        Rule(sentence, MAX_SCORE, "set"),
    )
    return Needle(name, sentence, f"What is the best thing to do in {city}?", rubric)


NEEDLES: dict[str, Needle] = {
    needle.name: needle
    for needle in (
        PAPER_NEEDLE,
        PUBLISHED_NEEDLE,
        best_thing("lisbon", "Lisbon", "fly a kite", "drink a cup of tea", "Golden Park", "windy"),
        best_thing("oslo", "Oslo", "sail a boat", "take a nap", "Hyde Park", "cold"),
        best_thing("nairobi", "Nairobi", "read a good book", "feed the birds", "Castle Park", "clear"),
        best_thing("vienna", "Vienna", "buy fresh bread", "listen to music", "Stanley Park", "warm"),
        best_thing("tokyo", "Tokyo", "paint a picture", "play chess", "Memorial Park", "rainy"),
    )
}
"""The needles that are built in, by name."""
