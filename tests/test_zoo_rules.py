"""What many models say together: every outcome of every rule on planted numbers, and what stored tables are for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planted_zoo import ALONE, DELTA, HYBRID, PURE, Ends, a_member, a_zoo

from analyses.study.zoo import stored as tables
from analyses.study.zoo.of_study import ABOVE, RETRIEVAL, SILENT
from analyses.study.zoo.reading import TOGETHER
from analyses.study.zoo.results import Member, Zoo
from analyses.study.zoo.rules import EVERYTHING, KEYS, RULES, STATES, answers
from analyses.study.zoo.stored import beside_stored, joined, recomputed
from hybridlens.errors import UnknownNameError

GONE, NEVER, LEARNED, SHARED, TWICE = (rule.question for rule in RULES)
HIGH, LOW, WIDE, SOME = (0.9, 0.8, 1.0), (0.0, 0.0, 0.04), (0.05, -0.02, 0.15), (0.3, 0.2, 0.4)
TOLD = {RETRIEVAL: HIGH}


def outcome(question: str, *members: Member) -> str:
    found = {one.question: one for one in answers(a_zoo(*members))}[question]
    assert bool(found.reason) == (found.outcome == "open")
    return found.outcome


def hybrid(silent: Ends | None, name: str = "a", told: Ends = HIGH, **sizes: Any) -> Member:
    return a_member(name, {RETRIEVAL: told, SILENT + ABOVE: silent}, **sizes)


def alone(above: Ends | None, name: str = "r", gain: Ends | None = None) -> Member:
    numbers = {RETRIEVAL: HIGH, RETRIEVAL + ABOVE: above, "read twice, gain over once": gain}
    return a_member(name, numbers, **ALONE)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([hybrid(LOW)], "no"),
        ([hybrid(LOW), hybrid(SOME, "b")], "yes"),
        ([hybrid(LOW), hybrid(WIDE, "b")], "open"),
        ([hybrid(LOW), hybrid(None, "b")], "open"),
        ([hybrid(SOME, told=SOME)], "open"),  # it does not retrieve as it is, so nothing is taken away
        ([hybrid(SOME, **ALONE)], "open"),
        ([hybrid(SOME, **PURE)], "open"),
    ],
)
def test_attention_gone(members: list[Member], expected: str) -> None:
    assert outcome(GONE, *members) == expected


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([alone(SOME)], "yes"),
        ([alone(LOW), alone(LOW, "s")], "no"),
        ([alone(WIDE)], "open"),
        ([hybrid(LOW)], "open"),
    ],
)
def test_attention_never_there(members: list[Member], expected: str) -> None:
    assert outcome(NEVER, *members) == expected


@pytest.mark.parametrize(
    ("silent", "above", "expected"),
    [(LOW, SOME, "yes"), (LOW, LOW, "no"), (SOME, SOME, "open"), (WIDE, SOME, "open"), (LOW, WIDE, "open")],
)
def test_learned_follows_from_the_two_before(silent: Ends, above: Ends, expected: str) -> None:
    assert outcome(LEARNED, hybrid(silent), alone(above)) == expected


@pytest.mark.parametrize(
    ("states", "keys", "joint", "expected"),
    [
        (SOME, SOME, LOW, "yes"), (LOW, HIGH, LOW, "no"), (HIGH, LOW, LOW, "no"), (WIDE, HIGH, LOW, "open"),
        (None, HIGH, LOW, "open"), (LOW, SOME, SOME, "open"), (LOW, SOME, WIDE, "open"), (LOW, HIGH, None, "open"),
    ],
)  # fmt: skip
def test_both_memories(states: Ends | None, keys: Ends, joint: Ends | None, expected: str) -> None:
    member = a_member("d", {EVERYTHING: HIGH, STATES: states, KEYS: keys, TOGETHER: joint}, "crossover", **DELTA)
    assert outcome(SHARED, member) == expected
    exclusive = {EVERYTHING: HIGH, STATES: LOW, KEYS: HIGH, TOGETHER: LOW}
    beside = outcome(SHARED, member, a_member("e", exclusive, "crossover", **DELTA))
    assert beside == ("no" if expected == "no" else "open")  # seeds may differ
    if expected == "yes":
        found = answers(a_zoo(member, a_member("e", exclusive, "crossover", **DELTA)))
        assert {one.question: one.reason for one in found}[SHARED] == "it differs by model"
    others = a_member("m", {EVERYTHING: HIGH, STATES: SOME, KEYS: SOME}, "crossover", **HYBRID)
    assert outcome(SHARED, others) == "open"  # it is asked of the delta rule
    assert outcome(SHARED, replace(member, asked=replace_points(member, EVERYTHING, LOW))) == "open"


def replace_points(member: Member, quantity: str, ends: Ends) -> Any:
    """The experiments of a model with one number changed."""
    return a_member("x", {point.quantity: ends if point.quantity == quantity else (point.value, point.low, point.high)
                          for _, point in member.points() if point.value is not None}, "crossover").asked  # fmt: skip


@pytest.mark.parametrize(
    ("gains", "expected"),
    [([SOME], "yes"), ([SOME, SOME], "yes"), ([SOME, WIDE], "open"), ([LOW], "no"), ([(-0.3, -0.4, -0.2)], "no")],
)
def test_reading_twice(gains: list[Ends], expected: str) -> None:
    members = [alone(SOME, f"r{i}", gain) for i, gain in enumerate(gains)]
    assert outcome(TWICE, *members) == expected
    assert outcome(TWICE, alone(LOW, gain=SOME)) == "open"  # nothing is held that could be helped
    numbers = {RETRIEVAL: HIGH, SILENT + ABOVE: SOME, "read twice without attention, gain over once": gains[0]}
    assert outcome(TWICE, a_member("h", numbers)) == outcome(TWICE, members[0])


def test_what_was_not_asked_says_why_and_names_are_looked_up() -> None:
    zoo = a_zoo(hybrid(None))
    assert zoo.member("a").of("no such number").absent == "it was not run"
    assert zoo.member("a").of(SILENT + ABOVE).absent == "it was not planted"
    with pytest.raises(UnknownNameError, match=r"no model 'b' here.*there is a"):
        zoo.member("b")


def test_a_saved_zoo_is_the_same_and_stands_beside_what_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of the same weights are compared, models of others are not; the rest of the table stands behind."""
    whole = a_zoo(hybrid(LOW), alone(SOME))
    assert Zoo.load(whole.save(tmp_path / "zoo.json")) == whole
    monkeypatch.setattr(tables, "TABLE", tmp_path / "zoo.json")
    again, note = beside_stored(a_zoo(hybrid(LOW)))
    assert again.names == ("a", "r")
    assert "2 of 2 numbers as stored" in note
    assert note.endswith("The rest is the stored table.")
    changed = a_zoo(hybrid((0.01, 0.0, 0.04)))
    found = recomputed(changed, whole)
    assert (found.numbers, found.equal) == (2, 1)
    assert "0.01, stored 0" in found.unlike[0]
    other = a_zoo(replace(hybrid(LOW), weights="others"))
    assert recomputed(other, whole).numbers == 0
    assert joined(other, whole).names == ("a", "r")
    more = a_zoo(a_member("a", {"facts": 1.0}, "capacity"))
    assert [one.part for one in joined(more, whole).member("a").asked] == ["study", "capacity"]
    assert beside_stored(other) == (other, "")  # a model of a user's own stands alone
    monkeypatch.setattr(tables, "TABLE", tmp_path / "none.json")
    assert beside_stored(changed) == (changed, "")
