"""A seeded generator of essay-like text with a closed vocabulary: the built-in haystack.

Sentences come from a small context-free grammar, `GRAMMAR`: every symbol has a tuple of alternatives,
and ``{symbol}`` inside an alternative is replaced by one of that symbol's alternatives, drawn at random.
The forms of the start symbol ``sentence`` are dealt like a deck of cards, so that no form comes back
before all the others have been used and neighbouring sentences differ in shape. The text has capital
letters, commas, full stops and question marks; it is about places, weather, food, work and writing, and
it likes to say "the best thing", so that a needle does not stand out by its words alone.

How it fails: the text is grammatical but says nothing, and its vocabulary (`vocabulary`) is closed, so a
model that was trained on it finds it easier than real essays. By construction no sentence holds a word of
`RESERVED_WORDS` or a pair of `RESERVED_PAIRS`: the phrases that the built-in rubrics give points for never
occur in the filler, and no sentence says what to do in San Francisco. A new alternative has to keep to
that; the tests enumerate the grammar.
"""

import random
import re
from collections.abc import Iterator, Mapping


def _listed(items: str) -> tuple[str, ...]:
    """The items of a list written as one string with commas between them."""
    return tuple(items.split(", "))


CITIES: tuple[str, ...] = _listed(
    "Lima, Paris, London, Rome, Berlin, Tokyo, Cairo, Oslo, Boston, Chicago, Denver, Seattle, Madrid, "
    "Vienna, Dublin, Athens, Prague, Lisbon, Sydney, Toronto, Mumbai, Nairobi, Warsaw, Geneva, Montreal, "
    "Helsinki, New York, Los Angeles, San Diego"
)
"""Cities of any sentence form. San Francisco is only in forms that give no advice (``anywhere``)."""

PARKS: tuple[str, ...] = _listed(
    "Hyde Park, Lincoln Park, River Park, Golden Park, Stanley Park, Victoria Park, Green Park, Central "
    "Park, Memorial Park, Castle Park"
)
"""Parks of the filler; the paper's Dolores Park is reserved for needles."""

ACTIVITIES: tuple[str, ...] = _listed(
    "walk along the river, read a good book, drink a cup of tea, sail a boat, feed the birds, watch the "
    "boats, visit the museum, buy fresh bread, listen to music, climb the hill, ride a bike, play chess, "
    "paint a picture, write a letter, take a nap, fly a kite, catch a fish, cook a soup, dance in the "
    "street, look at the stars, swim in the lake, talk with friends"
)
"""Things to do, each a verb phrase in its base form."""

WEATHER: tuple[str, ...] = _listed("rainy, cold, warm, windy, cloudy, hot, foggy, snowy, grey, clear")
"""Kinds of day. "sunny" is only in forms that speak of mornings, afternoons and evenings."""

FOODS: tuple[str, ...] = _listed("bread, soup, cheese, fish, rice, fruit, tea, coffee, cake, salad, honey, pasta")
"""Foods that need no article."""

GRAMMAR: Mapping[str, tuple[str, ...]] = {
    "city": CITIES,
    "anywhere": (*CITIES, "San Francisco", "San Francisco", "San Francisco"),
    "park": PARKS,
    "activity": ACTIVITIES,
    "weather": WEATHER,
    "food": FOODS,
    "part": _listed("morning, afternoon, evening"),
    "sky": _listed("sunny, {weather}"),
    "season": _listed("spring, summer, autumn, winter"),
    "number": _listed("two, three, four, five, six, ten, twenty"),
    "span": _listed("days, weeks, months, years"),
    "person": _listed("friend, sister, brother, teacher, neighbor, doctor, painter, founder, uncle"),
    "people": _listed("students, founders, writers, painters, friends, children, teachers, people"),
    "object": _listed("book, letter, map, picture, computer, program, story, house, garden, market"),
    "topic": _listed("math, music, history, writing, painting, work, money, language, science, art"),
    "quality": _listed("good, new, simple, strange, small, useful, old, beautiful, hard, famous"),
    "feeling": _listed("happy, tired, surprised, calm, curious, lonely, proud"),
    "superlative": _listed("best, worst, hardest, strangest, most important, first"),
    "sight": _listed("bridge, museum, harbor, library, station, market, tower, garden, square, castle"),
    "often": _listed("often, always, sometimes, rarely, never, usually"),
    "think": _listed("think, believe, suspect, know, remember"),
    "sentence": (
        # places
        "I moved to {anywhere} in the {season}, and I stayed for {number} {span}.",
        "My {person} has lived in {anywhere} for {number} {span}.",
        "We took the train from {anywhere} to {city} on a {sky} {part}.",
        "There is a {quality} {sight} near {park}, but {people} {often} go there.",
        "When I lived in {anywhere}, I had a {quality} {object} and no money.",
        "The {sight} in {city} is older than the one in {city}.",
        "In {city} the {people} {often} meet at the {sight} in the {part}.",
        "Have you ever been to {anywhere} in the {season}?",
        "The road to {park} was closed, so we went back to the {sight}.",
        "{city} is a {quality} city, but {city} is a better place for {people}.",
        "She drew a map of {city} and gave it to her {person}.",
        "From the {sight} you can see all of {park}.",
        # the best thing, and its kin
        "The {superlative} thing about {city} is the {food}.",
        "The {superlative} thing I saw in {city} was the {sight}.",
        "The best time to visit {city} is a {sky} {part} in the {season}.",
        "The best place to {activity} is {park}, at least in the {season}.",
        "Most people in {city} say that their {food} is the best in the world.",
        "The {superlative} part of {topic} is to begin.",
        "What is the {superlative} thing about {topic}?",
        "The worst thing to do on a {weather} day is stay at home and wait.",
        "On a {weather} day it is best to {activity}.",
        "My {person} told me that the best way to learn {topic} is to {activity}.",
        # activities
        "In the {season} I like to {activity} and {activity}.",
        "If it is a {weather} day, we {activity} in {park}.",
        "You can {activity} in {city}, but you can not do it in {city}.",
        "He {often} wanted to {activity}, even on a {weather} day.",
        "Why would you {activity} when you could {activity}?",
        "After {number} {span} in {city}, I learned to {activity}.",
        "{people} in {park} {activity} every {part}.",
        "It costs nothing to {activity}, and it makes you {feeling}.",
        "They wanted to {activity}, but it was a {weather} {part}.",
        "Let us {activity} before the {part} is over.",
        "Some {people} would rather {activity} than talk about {topic}.",
        # food and weather
        "We had {food} and {food} for lunch, and then a {quality} walk.",
        "The {food} was cold, but the {part} was {sky}.",
        "My {person} makes {food} with {food} every {season}.",
        "It was a {weather} day, and the {sight} was full of {people}.",
        "It had been {weather} for {number} {span}.",
        "Nobody sells {quality} {food} in {city}.",
        "Do you want {food} or {food}?",
        "The {season} was {weather}, so the {food} was not very good.",
        # work, ideas and writing
        "I {think} that {topic} is more like {topic} than most {people} know.",
        "If you want to do {quality} work, you have to be {feeling} about {topic}.",
        "A {quality} idea {often} looks like a bad one.",
        "It took {number} {span} to finish the {object}, and nobody read it.",
        "You do not need much money to start a {quality} company.",
        "{people} who work hard are {often} {feeling}.",
        "I was {feeling} when I read the {object} for the first time.",
        "What I learned from {topic} is that you should ask {quality} questions.",
        "He wrote a {object} about {topic} when he was young.",
        "The {superlative} lesson was to make something that {people} want.",
        "There are {number} kinds of {object}, and only one of them is {quality}.",
        "Is {topic} harder than {topic}?",
        "Why do {people} {often} give up {topic} so early?",
        "In school we were told that {topic} matters, but nobody said why.",
        "To write well is to think well, and that is {often} {quality}.",
        "My first {object} was a {quality} one, and I am still {feeling} about it.",
        "Some {people} never change their minds about {topic}.",
        "A {person} once asked me how to choose between {topic} and {topic}.",
        "I {think} that the {quality} things in life take time.",
        "This is not true of {topic}, of course.",
        "It is easy to be {feeling} in the {season}.",
        "So I went home and began to {activity}.",
        "I do not {think} so.",
        "That was {number} {span} ago.",
        "Nothing about the {object} was {quality}.",
        "Then my {person} came back from {anywhere}.",
        "We were all very {feeling}.",
        "Who would not like a {quality} {object}?",
    ),
}
"""The grammar: symbol -> alternatives. ``{symbol}`` in an alternative stands for one of that symbol's own."""

RESERVED_WORDS: frozenset[str] = frozenset({"dolores", "sandwich", "eat", "sit"})
"""Words (lower case) that the filler never uses: the paper's rubric gives points for phrases of them."""

RESERVED_PAIRS: frozenset[tuple[str, str]] = frozenset({("sunny", "day")})
"""Neighbouring words (lower case) that the filler never puts together, for the same reason."""

START = "sentence"
_SLOT = re.compile(r"\{(\w+)\}")
_SLOT_OR_WORD = re.compile(r"\{(\w+)\}|([^\W\d_]+)")


def _expand(text: str, rng: random.Random) -> str:
    """`text` with every slot replaced, left to right, by one alternative drawn with `rng`.

    Within one sentence a slot that comes twice takes two different alternatives, so that no sentence
    compares a city with itself.
    """
    used: set[tuple[str, str]] = set()
    parts = _SLOT.split(text)  # words, symbol, words, symbol, …, words
    for index in range(1, len(parts), 2):
        symbol = parts[index]
        free = [alternative for alternative in GRAMMAR[symbol] if (symbol, alternative) not in used]
        choice = rng.choice(free)
        used.add((symbol, choice))
        parts[index] = _expand(choice, rng)
    return "".join(parts)


def essay_sentences(rng: random.Random) -> Iterator[str]:
    """Sentences without end, each with a capital letter at its start and its full stop or question mark.

    Args:
        rng: the only source of chance. The stream depends on nothing else, so the first n sentences
            of one seed are the same however many are taken.

    Yields:
        one sentence, without surrounding spaces.
    """
    while True:
        deck = list(GRAMMAR[START])
        rng.shuffle(deck)
        for form in deck:
            sentence = _expand(form, rng)
            yield sentence[0].upper() + sentence[1:]


def _words_of(text: str, opening: bool) -> frozenset[str]:
    """Every word that an expansion of `text` can hold; the first with a capital letter when `opening`."""
    words: set[str] = set()
    for index, match in enumerate(_SLOT_OR_WORD.finditer(text)):
        first = opening and index == 0
        symbol, word = match.groups()
        if symbol is not None:
            for alternative in GRAMMAR[symbol]:
                words |= _words_of(alternative, first)
        else:
            words.add(word[0].upper() + word[1:] if first else word)
    return frozenset(words)


def vocabulary() -> tuple[str, ...]:
    """Every word that `essay_sentences` can produce, as it is written in the text, sorted.

    A word that opens a sentence is listed with its capital letter, and without where it also stands
    inside one. Punctuation is not listed: the text uses ``.``, ``,`` and ``?`` only.
    """
    return tuple(sorted(frozenset[str]().union(*(_words_of(form, True) for form in GRAMMAR[START]))))
