"""The granular score against hand-worked cases of the paper's table 2, and every refusal of a rubric."""

import itertools
import json
import random
from pathlib import Path

import pytest
from bounds import close
from hypothesis import given
from hypothesis import strategies as st

from hybridlens import niah
from hybridlens.errors import InputError
from hybridlens.niah.essays import ACTIVITIES, PARKS, WEATHER, essay_sentences

FULL = niah.PAPER_SENTENCE
CORRECTED = "The best thing to do in San Francisco is to eat a sandwich and sit in Dolores Park on a sunny day."

# Worked by hand from table 2.
TABLE_2 = [
    ("", 0.0),
    ("The best way to get to the top of the mountain is to start by walking.", 0.0),
    ("Eat a sandwich!", 1.0),
    ("You could eat a\nsandwich, I think", 1.0),
    ("Dolores Park is in San Francisco", 0.5),
    ("sit in Dolores Park", 1.0),
    ("a sunny day", 1.0),
    ("eat a sandwich in Dolores Park", 1.5),
    ("eat a sandwich and sit in Dolores Park", 2.0),
    ("sit in Dolores Park on a sunny day", 2.0),
    ("eat a sandwich and sit in Dolores Park on a sunny day", 3.0),
    ("Go there and eat a sandwich and sit in Dolores Park on a SUNNY day.", 3.0),
    ("eat a sandwich, eat a sandwich, eat a sandwich", 1.0),
    ("is to eat a sandwich and sit in Dolores Park on a sunny day", 4.0),
    (CORRECTED, 4.0),
    (FULL, 5.0),
    (FULL.rstrip("."), 5.0),
    (FULL.upper(), 5.0),
    ("the best thing to do in san francisco is eat a sandwich and sit in dolores park on a sunny day .", 5.0),
    # from the paper's appendix F
    (FULL.replace("sunny day.", "sunny day on a sunny day.") + "\nThe above is a joke.", 5.0),
    (f"{CORRECTED} {FULL}", 5.0),
    (f"“{FULL}” — that’s it", 5.0),
    # one word of the needle wrong: no full match, no points for what holds the word
    (FULL.replace("sandwich", "burger"), 2.0),
    (FULL.replace("San Francisco", "Paris"), 3.0),
    (FULL.replace("sunny", "cold"), 2.0),
]


@pytest.mark.parametrize(("text", "expected"), TABLE_2)
def test_table_2(text: str, expected: float) -> None:
    """Every value is worked by hand; the cases take nine different scores, so a constant can not pass."""
    assert niah.score(text) == expected


def test_published_rubric_asks_for_on_a_sunny_day() -> None:
    """The one difference of the authors' code, shown from both sides."""
    assert niah.score("a sunny day", niah.PUBLISHED_RUBRIC) == 0.0
    assert niah.score("on a sunny day", niah.PUBLISHED_RUBRIC) == 1.0
    assert niah.score(FULL, niah.PUBLISHED_RUBRIC) == 5.0
    assert niah.score(CORRECTED, niah.PUBLISHED_RUBRIC) == 4.0


def test_accuracy_moves_in_steps_of_a_tenth_percent() -> None:
    """Over every set of phrases, a score is a multiple of 0.5: a hundred prompts move by 0.5 / 500."""
    parts = ["eat a sandwich", "Dolores Park", "sit in Dolores Park", "sunny day", CORRECTED, FULL]
    scores = {
        niah.score(". ".join(chosen))
        for size in range(len(parts) + 1)
        for chosen in itertools.combinations(parts, size)
    }
    assert scores == {0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0}
    close(min(scores - {0.0}) / 5 / 100, 0.001)


@given(st.text())
def test_score_is_in_range_and_ignores_case_and_punctuation(text: str) -> None:
    """Any text at all: between 0 and 5, and the same after normalisation (which changes most texts)."""
    value = niah.score(text)
    assert 0.0 <= value <= 5.0
    assert niah.score(niah.normalise(text)) == value
    assert niah.normalise(niah.normalise(text)) == niah.normalise(text)


@given(st.permutations(niah.PAPER_RUBRIC), st.sampled_from(TABLE_2))
def test_order_of_rules_has_no_effect(rules: list[niah.Rule], case: tuple[str, float]) -> None:
    """All orders give table 2's value, also where two `set` rules match."""
    assert niah.score(case[0], rules) == case[1]


@pytest.mark.parametrize("needle", list(niah.NEEDLES.values()), ids=list(niah.NEEDLES))
def test_built_in_needles_score_full_marks_and_filler_none(needle: niah.Needle) -> None:
    """The needle itself gets 5, and none of 5,000 filler sentences gets anything."""
    niah.check_rubric(needle.rubric, needle.sentence)
    assert niah.score(needle.sentence, needle.rubric) == 5.0
    assert niah.score(needle.question, needle.rubric) == 0.0
    if needle.sentence == FULL:  # reserved words; the other needles' activities do occur in the filler
        sentences = itertools.islice(essay_sentences(random.Random(3)), 5000)
        assert max(niah.score(sentence, needle.rubric) for sentence in sentences) == 0.0


BEST_THINGS = [n for n in niah.NEEDLES.values() if n.question.startswith("What is the best thing to do in ")]


@pytest.mark.parametrize("needle", BEST_THINGS, ids=[needle.name for needle in BEST_THINGS])
def test_chance_is_under_ten_percent(needle: niah.Needle) -> None:
    """A speaker who never saw the needle but answers in its form, with words of the right kind.

    Its words are drawn from the filler's and all built-in needles'; it even names the right city. The
    mean of 4,000 draws is steady to a fraction of a percent.
    """
    rng = random.Random(11)
    activities = [*ACTIVITIES, "eat a sandwich", "sit"]
    parks, weather = [*PARKS, "Dolores Park"], [*WEATHER, "sunny"]
    city = needle.question.removeprefix("What is the best thing to do in ").rstrip("?")
    total = 0.0
    for _ in range(4000):
        first, second = rng.sample(activities, 2)
        verb = rng.choice(["is", "is to"])
        total += niah.score(
            f"The best thing to do in {city} {verb} {first} and {second} in {rng.choice(parks)} "
            f"on a {rng.choice(weather)} day.",
            needle.rubric,
        )
    assert total / 4000 / 5 < 0.10


def test_best_thing_rubric_by_hand() -> None:
    """The steps of a built-in rubric, worked by hand."""
    needle = niah.best_thing("x", "Oslo", "sail a boat", "take a nap", "Hyde Park", "cold")
    assert needle.sentence == ("The best thing to do in Oslo is sail a boat and take a nap in Hyde Park on a cold day.")
    assert needle.question == "What is the best thing to do in Oslo?"
    cases = {
        "sail a boat and take a nap": 1.5,
        "in Hyde Park on a cold day": 1.5,
        "sail a boat and take a nap in Hyde Park on a cold day": 3.0,
        "in Oslo it is to sail a boat and take a nap in Hyde Park on a cold day": 4.0,
        "sail a boat": 0.0,
        "Hyde Park": 0.0,
    }
    assert {text: niah.score(text, needle.rubric) for text in cases} == cases


NEEDLE = "The red fox hid nine keys under the old stone bridge."
BAD = {
    "no rules": ([], "has no rules"),
    "unknown mode": ([["red fox", 1, "plus"], [NEEDLE, 5, "set"]], "mode 'plus'"),
    "not in the needle": (
        [["blue fox", 1, "add"], [NEEDLE, 5, "set"]],
        "'blue fox' is missing from the needle",
    ),
    "maximum not in the needle": ([["The red fox hid ten keys", 5, "set"]], "is missing from the needle"),
    "maximum not reached": ([["red fox", 1, "add"], ["nine keys", 2, "add"]], "itself scores 3"),
    "set below maximum wins": ([["red fox", 5, "add"], ["keys", 2, "set"]], "itself scores 2"),
    "same phrase": ([["red fox", 1, "add"], ["Red  fox!", 1, "add"], [NEEDLE, 5, "set"]], "are the same"),
    "same phrase, other mode": (
        [["red fox", 1, "add"], ["red fox", 2, "set"], [NEEDLE, 5, "set"]],
        "are the same",
    ),
    "shared words": (
        [["red fox hid", 1, "add"], ["hid nine keys", 1, "add"], [NEEDLE, 5, "set"]],
        "share words",
    ),
    "no words": ([["...", 1, "add"], [NEEDLE, 5, "set"]], "has no words"),
    "negative": ([["red fox", -1, "add"], [NEEDLE, 5, "set"]], "is worth -1.0 points"),
    "zero": ([["red fox", 0, "add"], [NEEDLE, 5, "set"]], "is worth 0.0 points"),
    "too much": ([[NEEDLE, 6, "set"]], "is worth 6.0 points"),
    "sum too large": (
        [["red fox", 3, "add"], ["nine keys", 3, "add"], [NEEDLE, 5, "set"]],
        "sum to 6 points",
    ),
    "infinite": ([["red fox", float("inf"), "add"], [NEEDLE, 5, "set"]], "is worth inf points"),
    "not a number": ([["red fox", float("nan"), "add"], [NEEDLE, 5, "set"]], "is worth nan points"),
    "points as text": ([["red fox", "1", "add"], [NEEDLE, 5, "set"]], "has points '1'"),
    "points as truth": ([["red fox", True, "add"], [NEEDLE, 5, "set"]], "has points True"),
    "phrase as number": ([[3, 1, "add"], [NEEDLE, 5, "set"]], "has phrase 3"),
    "short row": ([["red fox", 1], [NEEDLE, 5, "set"]], "rule 1 is"),
    "extra key": ([{"phrase": "red fox", "points": 1, "mode": "add", "x": 1}], "rule 1 is"),
    "missing key": ([{"phrase": "red fox", "points": 1}], "rule 1 is"),
    "not a list": ({"phrase": "red fox"}, "(dict); expected a list of rules, like [["),
}


@pytest.mark.parametrize(("rows", "wording"), list(BAD.values()), ids=list(BAD))
def test_bad_rubrics_are_refused_in_one_line(rows: object, wording: str, tmp_path: Path) -> None:
    """Each fault has its own wording, so another check can not stand in for the one meant."""
    path = tmp_path / "rules.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        niah.load_rubric(path, NEEDLE)
    assert wording in str(caught.value)
    assert "rules.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_rubrics_name_the_file(tmp_path: Path) -> None:
    """A missing file, one that is no JSON and one that is no UTF-8."""
    (tmp_path / "broken.json").write_text("[[", encoding="utf-8")
    (tmp_path / "latin.json").write_bytes(b'["caf\xe9"]')
    for name, wording in (("none", "cannot be read"), ("broken", "is not JSON"), ("latin", "is not JSON")):
        with pytest.raises(InputError, match=wording) as caught:
            niah.load_rubric(tmp_path / f"{name}.json", NEEDLE)
        assert f"{name}.json" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_good_rubrics_load(tmp_path: Path) -> None:
    """The paper's own rubric, nesting and corrected grammar included, in both ways of writing a row."""
    path = tmp_path / "paper.json"
    path.write_text(json.dumps([list(rule) for rule in niah.PAPER_RUBRIC]), encoding="utf-8")
    assert niah.load_rubric(path, FULL) == niah.PAPER_RUBRIC
    path.write_text(json.dumps([rule._asdict() for rule in niah.PAPER_RUBRIC]), encoding="utf-8")
    assert niah.load_rubric(path, FULL) == niah.PAPER_RUBRIC
    assert niah.load_rubric(path) == niah.PAPER_RUBRIC
    with pytest.raises(InputError, match="missing from the needle"):
        niah.Needle("other", NEEDLE, "Where are the keys?", niah.load_rubric(path))


def test_needles_are_tidied_and_checked() -> None:
    """White space, the final stop, and empty parts."""
    needle = niah.Needle("n", "  The fox\n hid  keys ", " What did the fox do? ", niah.full_match_rubric("fox hid"))
    assert (needle.sentence, needle.question) == ("The fox hid keys.", "What did the fox do?")
    for sentence, question in ((" . ", "What?"), ("The fox.", " ?? ")):
        with pytest.raises(InputError, match="has no words"):
            niah.Needle("n", sentence, question, niah.full_match_rubric("The fox"))


def test_a_question_that_scores_is_warned_about() -> None:
    """The phrase that the question gives away is named."""
    rubric = (niah.Rule("fox", 1.0, "add"), niah.Rule("The fox hid keys", 5.0, "set"))
    with pytest.warns(UserWarning, match="'fox'"):
        niah.Needle("n", "The fox hid keys.", "What did the fox do?", rubric)
