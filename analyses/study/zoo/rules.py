"""What the models say together, by rule: each question with its answer, the numbers behind it, and the rule in words.

A question is asked of the models that it is about, and answered from stored points alone (`RULES`). Of each model the
interval of one number is set against a threshold: it lies above, below, or holds it. Models that do not retrieve as
they are say nothing of what takes retrieval away.

How it fails: an answer of "open" says which models leave it so, with their intervals. Each interval is made at 95 % and
none is corrected for there being several models, so that of twenty models without any effect one may seem to have one;
seeds of one shape are models of their own. Few tiny models are no sample of all models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from analyses.study.points import Point
from analyses.study.zoo.of_study import ABOVE, RETRIEVAL, SILENT
from analyses.study.zoo.reading import MEMORY_POINTS, TOGETHER
from analyses.study.zoo.results import Member, Zoo
from hybridlens.display import Displayed, listed
from hybridlens.viz.words import percent

SOME = 0.1
"""A share of the highest score, or of answers, that is no longer next to nothing: the paper's claims of "no retrieval"
are judged by the same (`analyses.study.verdict`)."""

ABLE = 0.5
"""A model retrieves where its retrieval has an interval above this."""

EVERYTHING, KEYS, STATES, CONVOLUTIONS = MEMORY_POINTS

DELTA = "_delta"
"""How the kinds of recurrence end whose states erase what a key recalls before they write."""

Outcome: TypeAlias = Literal["yes", "no", "open"]


class _ZooAnswer(NamedTuple):
    """Fields of `ZooAnswer`."""

    question: str
    outcome: Outcome
    measured: tuple[str, ...]
    rule: str
    reason: str


class ZooAnswer(Displayed, _ZooAnswer):
    """One question over several models.

    Attributes:
        question: in words.
        outcome: "yes", "no" or "open".
        measured: a line for each model that it was asked of, with its interval.
        rule: what decides, in words.
        reason: why it is open; empty where it is not.
    """

    __slots__ = ()

    def summary(self) -> str:
        """The answer, and why it is open."""
        return f"{self.question} {self.outcome}{f' ({self.reason})' if self.reason else ''}"


class Rule(NamedTuple):
    """One question.

    Attributes:
        question: in words.
        words: what decides.
        decide: the answer of a zoo, with the lines behind it and why it is open.
    """

    question: str
    words: str
    decide: Callable[[Zoo], tuple[Outcome, list[str], str]]


def answers(zoo: Zoo) -> tuple[ZooAnswer, ...]:
    """Every question with its answer."""
    found: list[ZooAnswer] = []
    for rule in RULES:
        outcome, measured, reason = rule.decide(zoo)
        found.append(ZooAnswer(rule.question, outcome, tuple(measured), rule.words, reason))
    return tuple(found)


def retrieves(member: Member) -> bool:
    """Whether a model retrieves as it is."""
    point = member.of(RETRIEVAL)
    return point.value is not None and point.lowest > ABLE


def side(point: Point, threshold: float) -> int:
    """1 where an interval lies above a threshold, -1 below, 0 where it holds it, or nothing was measured."""
    if point.value is None:
        return 0
    return 1 if point.lowest > threshold else -1 if point.highest < threshold else 0


def _line(member: Member, point: Point) -> str:
    return f"{member.name}: {said(point)}"


def said(point: Point) -> str:
    """A share with its interval in percent, or why there is none."""
    if point.value is None:
        return f"not measured ({point.absent})"
    ends = "" if point.low is None or point.high is None else f" ({100 * point.low:.1f} to {100 * point.high:.1f})"
    return f"{percent(point.value)}{ends}".replace("-", "−")


def _any(members: Sequence[Member], quantity: str, lacking: str) -> tuple[Outcome, list[str], str]:
    """Yes where some model's number lies above nothing, no where every model's lies under `SOME`."""
    if not members:
        return "open", [], lacking
    points = {member: member.of(quantity) for member in members}
    lines = [_line(member, point) for member, point in points.items()]
    if any(side(point, 0.0) > 0 for point in points.values()):
        return "yes", lines, ""
    unsure = [member.name for member, point in points.items() if side(point, SOME) >= 0]
    return ("open", lines, f"the interval reaches {SOME:.0%} or is missing in {listed(unsure, 9)}") if unsure else (
        "no", lines, ""
    )  # fmt: skip


def _with_attention_gone(zoo: Zoo) -> tuple[Outcome, list[str], str]:
    hybrids = [one for one in zoo.members if one.kind == "hybrid" and retrieves(one)]
    return _any(hybrids, SILENT + ABOVE, "no hybrid here retrieves as it is")


def _without_attention_ever(zoo: Zoo) -> tuple[Outcome, list[str], str]:
    alone = [one for one in zoo.members if one.kind == "recurrence alone"]
    return _any(alone, RETRIEVAL + ABOVE, "there is no model without attention")


def _learned(zoo: Zoo) -> tuple[Outcome, list[str], str]:
    """Whether what recurrences do alone is what hybrids leave to attention."""
    gone, never = (_with_attention_gone(zoo), _without_attention_ever(zoo))
    lines = [f"with attention gone: {gone[0]}", f"where attention was never there: {never[0]}"]
    if "open" in (gone[0], never[0]):
        return "open", lines, "one of the two questions above is open"
    if gone[0] == "yes":
        return "open", lines, "a hybrid retrieves without attention, so that there is no exclusivity to explain"
    return ("yes" if never[0] == "yes" else "no"), lines, ""


def _shares(zoo: Zoo) -> tuple[Outcome, list[str], str]:
    """Whether a delta-rule hybrid's answers follow both of its memories."""
    hybrids = [one for one in zoo.members if one.kind == "hybrid" and any(kind.endswith(DELTA) for kind in one.mixers)]
    able = [one for one in hybrids if side(one.of(EVERYTHING), ABLE) > 0]
    if not able:
        return "open", [], "no hybrid of the delta rule here tells the needle that it has read"
    lines = [
        f"{one.name}: follows states {said(one.of(STATES))}, keys and values {said(one.of(KEYS))}, no single memory "
        f"{said(one.of(TOGETHER))}"
        for one in able
    ]
    sides = {one.name: [side(one.of(name), SOME) for name in (STATES, KEYS, TOGETHER)] for one in able}
    if all(both == [1, 1] for *both, _ in sides.values()):
        return "yes", lines, ""
    if all(-1 in both and joint < 0 for *both, joint in sides.values()):
        return "no", lines, ""
    speaking = [name for name, (*_, joint) in sides.items() if joint > 0]
    if speaking:
        why = "memories of two prompts silence each other, so that several are needed, or contradict each other, in"
        return "open", lines, f"{why} {listed(speaking, 9)}"
    parted = [name for name, (*both, joint) in sides.items() if both != [1, 1] and not (-1 in both and joint < 0)]
    return "open", lines, f"not told apart from {SOME:.0%} in {listed(parted, 9)}" if parted else "it differs by model"


def _twice(zoo: Zoo) -> tuple[Outcome, list[str], str]:
    """Whether reading twice helps the states that can hold the needle at all."""
    able: list[tuple[Member, str]] = []
    for one in zoo.members:
        if one.kind == "recurrence alone" and side(one.of(RETRIEVAL + ABOVE), 0.0) > 0:
            able.append((one, "read twice, gain over once"))
        elif one.kind == "hybrid" and side(one.of(SILENT + ABOVE), 0.0) > 0:
            able.append((one, "read twice without attention, gain over once"))
    if not able:
        return "open", [], "in no model here do states alone retrieve"
    points = [(one, one.of(name)) for one, name in able]
    lines = [_line(one, point) for one, point in points]
    if all(side(point, 0.0) > 0 for _, point in points):
        return "yes", lines, ""
    if all(side(point, 0.0) < 0 or side(point, SOME) < 0 for _, point in points):
        return "no", lines, ""
    return "open", lines, f"the interval holds 0, and reaches {SOME:.0%}, in {listed(_undecided(points), 9)}"


def _undecided(points: Iterable[tuple[Member, Point]]) -> list[str]:
    return [one.name for one, point in points if side(point, 0.0) == 0]


RULES: tuple[Rule, ...] = (
    Rule(
        "Does any recurrence retrieve with attention gone?",
        "Hybrids whose retrieval has an interval above 50 %: accuracy with no head while reading and answering, less "
        "that of the same prompts without a needle. Yes where one interval lies above 0; no where each ends under 10 "
        "points.",
        _with_attention_gone,
    ),
    Rule(
        "Does it when attention was never there?",
        "Models of recurrent layers alone: accuracy less that of the same prompts without a needle. Yes where one "
        "interval lies above 0; no where each ends under 10 points.",
        _without_attention_ever,
    ),
    Rule(
        "Is it learned, then, that attention alone retrieves in hybrids?",
        "Yes where no hybrid retrieves with attention gone and a recurrence alone does; no where neither does; open "
        "otherwise.",
        _learned,
    ),
    Rule(
        "Does the DeltaNet hybrid share retrieval between its memories?",
        "Hybrids of the delta rule that tell the needle that they have read in over half of the answers: in mixed "
        "memories, answers that follow the recurrent states, and those that follow keys and values, each set against "
        "all other memories, and those that follow none of them alone. Yes where in each model both of the former have "
        "intervals above 10 %; no where in each one of these ends under 10 %, and so does that of no single memory, "
        "above which several are needed together, or contradict each other.",
        _shares,
    ),
    Rule(
        "Does reading twice help where the state can hold the needle?",
        "Models whose recurrences alone retrieve above their control: accuracy read twice less read once, prompt by "
        "prompt with equal contexts. Yes where every interval lies above 0; no where every one ends under 0, or under "
        "10 points.",
        _twice,
    ),
)
"""The questions, in the order of the report."""
