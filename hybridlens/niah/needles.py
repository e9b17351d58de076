"""The needles that are built in, each with its question and rubric.

`PAPER_NEEDLE` is the paper's. Others have its shape with other places and activities (`best_thing`), or
another shape (`in_steps`): who somebody is, where something is kept, a duty, a code, a secret. So a result can
be shown to hold for more than one sentence, and for more than one kind of question. All their words are known
to the embedded models' tokenizer, and no sentence stood in a training document. Their rubrics give points for
long phrases only, so that a model which never saw the needle but speaks in sentences of its form stays under
10 %. `needle_set` names those that a study of several needles takes.

How it fails: a needle whose words the tokenizer does not know is warned about when prompts are made, not
here; and the paper's rubric, fixed by the paper, pays for "sunny day" and "Dolores Park", which a model
with a small vocabulary says by chance.
"""

import re
import warnings
from dataclasses import dataclass

from hybridlens.boundary import public
from hybridlens.display import Displayed, Named, Piece, Table, Words
from hybridlens.display.markup import Plain
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

PAPER_SENTENCE = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."
PAPER_QUESTION = "What is the best thing to do in San Francisco?"


@public
@dataclass(frozen=True)
class Needle(Displayed):
    """A sentence to hide, the question that asks for it, and how answers are graded.

    Attributes:
        name: what results call it.
        sentence: the sentence with its final punctuation; a full stop is added to one that has none.
        question: the question, as it stands after ``QUESTION:``.
        rubric: the rules that grade an answer, ``(Rule("eat a sandwich", 2, "add"), …)``; checked against the
            sentence when the needle is made.

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
        if sentence[-1] not in ".!?…。！？｡":
            sentence += "."
        object.__setattr__(self, "sentence", sentence)
        object.__setattr__(self, "question", question)
        check_rubric(self.rubric, sentence, f"the rubric of needle {self.name!r}")
        echoed = [rule.phrase for rule in self.rubric if normalise(rule.phrase) in normalise(question)]
        if echoed:
            warnings.warn(
                f"needle {self.name!r}: the question {question!r} holds {echoed[0]!r}, which its rubric "
                "gives points for, so an answer that repeats the question scores",
                stacklevel=4,
            )

    def summary(self) -> str:
        """Its name and sentence."""
        return f"{self.name}: {self.sentence}"

    def row(self) -> dict[str, Plain]:
        """Its texts, and how many rules grade an answer."""
        return {"needle": self.name, "sentence": self.sentence, "question": self.question, "rules": len(self.rubric)}

    def table(self) -> Table:
        """Its rubric: a row a rule."""
        rows = [(rule.phrase, rule.points, rule.mode) for rule in self.rubric]
        return Table(
            ("phrase", "points", "mode"), rows, {"mode": "add: to the score; set: the score, where it is lower"}
        )

    def view(self) -> tuple[Piece, ...]:
        """Its question, and its rubric."""
        return (Words(self.question), self.table())


PAPER_NEEDLE = Needle("paper", PAPER_SENTENCE, PAPER_QUESTION, PAPER_RUBRIC)
"""The paper's needle with table 2 as its rubric."""

PUBLISHED_NEEDLE = Needle("paper-published", PAPER_SENTENCE, PAPER_QUESTION, PUBLISHED_RUBRIC)
"""The paper's needle with the rubric of the authors' code."""


@public
def best_thing(name: str, city: str, first: str, second: str, park: str, weather: str) -> Needle:
    """A needle of the paper's form, with a rubric in the paper's steps but for longer phrases.

    Args:
        name: what results call it.
        city: where; also what the question asks for.
        first: a verb phrase, "sail a boat".
        second: another, "rest".
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


@public
def in_steps(name: str, sentence: str, question: str, first: str, second: str) -> Needle:
    """A needle of any form, graded by two phrases of its answer.

    Args:
        name: what results call it.
        sentence: what is hidden.
        question: what asks for it.
        first: a phrase of the sentence that the question does not hold.
        second: another one after it.

    Returns:
        a needle whose phrases are worth 1.5 points each; everything from the first to the end of the second,
        said in one piece, sets 4, the whole sentence sets 5.

    Raises:
        InputError: the phrases do not stand in the sentence in that order, or are all of it.
    """
    start, end = sentence.find(first), sentence.rfind(second)
    if start < 0 or end < start + len(first):
        raise InputError(
            f"needle {name!r}: {first!r} and {second!r} are not in {sentence!r} in that order; give two of its phrases"
        )
    rubric = (
        Rule(first, 1.5, "add"),
        Rule(second, 1.5, "add"),
        Rule(sentence[start : end + len(second)], 4.0, "set"),
        Rule(sentence, MAX_SCORE, "set"),
    )
    return Needle(name, sentence, question, rubric)


STUDY_NEEDLES: tuple[Needle, ...] = (
    PAPER_NEEDLE,
    best_thing("oslo", "Oslo", "sail a boat", "rest", "Hyde Park", "cold"),
    in_steps(
        "strangest",
        "The strangest thing to do in Havana is juggle in Balboa Park and race a horse on a gloomy day.",
        "What is the strangest thing to do in Havana?",
        "juggle in Balboa Park",
        "race a horse on a gloomy day",
    ),
    in_steps(
        "sailors",
        "In Athens the sailors like to ride a bike and whistle in Palace Garden on a misty day.",
        "What do the sailors like to do in Athens?",
        "ride a bike and whistle",
        "in Palace Garden on a misty day",
    ),
    in_steps(
        "secret-word",
        "The secret word of Rosa is the purple lantern of Yusuf.",
        "What is the secret word of Rosa?",
        "the purple lantern",
        "of Yusuf",
    ),
    in_steps(
        "treasure",
        "The hidden treasure of Seoul is the silver turtle of Diana.",
        "What is the hidden treasure of Seoul?",
        "the silver turtle",
        "of Diana",
    ),
    in_steps(
        "violin",
        "Hugo keeps the violin in Willow Garden near the station of Prague.",
        "Where does Hugo keep the violin?",
        "in Willow Garden",
        "near the station of Prague",
    ),
    in_steps(
        "mayor",
        "The mayor of Dublin is Petra, who likes to play chess on a foggy day.",
        "Who is the mayor of Dublin?",
        "Petra, who likes to play chess",
        "on a foggy day",
    ),
    in_steps(
        "tuesday",
        "Every Tuesday Bianca has to wash an elephant in Harbor Square.",
        "What does Bianca have to do every Tuesday?",
        "wash an elephant",
        "in Harbor Square",
    ),
    in_steps(
        "code",
        "The code for the ladder in Quito is seven twelve three nine four eleven.",
        "What is the code for the ladder in Quito?",
        "seven twelve three",
        "nine four eleven",
    ),
    in_steps(
        "magic-words",
        "The magic words of Karim are honey tower eleven quiet bridge orange.",
        "What are the magic words of Karim?",
        "honey tower eleven",
        "quiet bridge orange",
    ),
    in_steps(
        "favorite",
        "The favorite thing of Zagreb is the orange wagon of Felix.",
        "What is the favorite thing of Zagreb?",
        "the orange wagon",
        "of Felix",
    ),
)
"""The needles of a study of several needles: the paper's, its form again, and ten of other forms."""


def needle_set() -> tuple[str, ...]:
    """Names of the built-in needles that a study of several takes: all forms, the paper's first.

    The published twin of the paper's needle and more needles of its form are in `NEEDLES`, and not here.
    """
    return tuple(needle.name for needle in STUDY_NEEDLES)


class Needles(Named[Needle]):
    """Needles by name: a dict that shows itself as a table."""


NEEDLES = Needles(
    {
        needle.name: needle
        for needle in (
            *STUDY_NEEDLES,
            PUBLISHED_NEEDLE,
            best_thing("lisbon", "Lisbon", "fly a kite", "sing", "Golden Park", "windy"),
            best_thing("nairobi", "Nairobi", "read a good book", "walk", "Castle Park", "clear"),
            best_thing("vienna", "Vienna", "buy fresh bread", "sleep", "Stanley Park", "warm"),
            best_thing("tokyo", "Tokyo", "paint a picture", "wait", "Memorial Park", "rainy"),
        )
    }
)
"""The needles that are built in, by name."""
