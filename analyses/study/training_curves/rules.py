"""What curves of training say, by rule: when retrieval is there, whether states unlearn it, what announces it.

Every rule reads stored points alone, and is printed beside its answer (`RULES`). Curves are known at the kept steps
only: what is said to happen at a step happened after the kept step before it.

How it fails: intervals are of one step each, and the two rules on what is lost look at all pairs of steps, so the more
steps the likelier a pair parts by chance; where it rests on a single high step, train another seed. Half of the final
value is half of an estimate, whose own interval the announcing rule leaves out. Where a run is still going on, the last
kept step is not the final one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from analyses.study.points import Point
from analyses.study.training_curves.results import (
    CONTROLS,
    CONVOLUTIONS,
    INDUCTION,
    INTACT,
    KEYS,
    SILENT,
    STATES,
    STRENGTH,
    TAP,
    RunCurves,
)
from hybridlens.display import Displayed, many, number
from hybridlens.viz.words import percent

T = TypeVar("T")

Curve: TypeAlias = Mapping[int, Point]
"""Step -> point, by step."""

Outcome: TypeAlias = Literal["yes", "no", "open"]

HALF = 0.5

NOTHING = 0.01
"""A strength, a product of shares of which each goes to 1, that is next to nothing."""

_ANNOUNCED = (
    "From which kept step on is the {} of the strongest head at least half of its last value, and from which is "
    "retrieval at least half of its own? Announced where the first comes sooner and, at some kept step from it on and "
    "before the second, the interval of retrieval lies below half of its last value; not where it is the other way "
    "round. Open where neither is so, where the last retrieval is not told from its control, or where the strength is "
    f"above half of its last value at the first kept step already, or under {NOTHING:g}, next to nothing, at the last."
)
STRENGTHS = {f"announced by {name}": name for name in (INDUCTION, STRENGTH)}
"""Question -> the strength that it is about."""

RULES: Mapping[str, str] = {
    "retrieves": "The first kept step from which on retrieval with attention is above half at every kept step.",
    "retrieves without attention": "The same while no head speaks; of a model without attention, the same of all that "
    "it has.",
    "takes over": "The first kept step from which on, at every kept step, answers follow keys and values more often "
    "than recurrent states and convolution inputs, their intervals apart; and the last kept step before it at which it "
    "was the other way round.",
    "unlearns": "Without attention, retrieval at one kept step has an interval that lies above that of its control at "
    "that step and above that of retrieval at a later kept step: of all such pairs, the one furthest apart.",
    "states lose it": "Answers that follow the recurrent states, against all other memories, have at one kept step an "
    "interval that lies above that of a later kept step: of all such pairs, the one furthest apart.",
    "tap": "The lag of the convolutions through which some head's keys compose most at the last kept step, and the "
    "first kept step from which on it is that lag.",
    **{question: _ANNOUNCED.format(name) for question, name in STRENGTHS.items()},
}
"""Question -> the rule that answers it."""


@dataclass(frozen=True)
class RuleAnswer(Displayed):
    """What one rule says of one run.

    Attributes:
        run: its name.
        question: of `RULES`.
        outcome: "open" where it is not decided.
        sentence: the answer with its numbers.
        step: at which it happens; None where it does not.
        lag: for announcements, steps from the strength's half to that of retrieval; None elsewhere.
    """

    run: str
    question: str
    outcome: Outcome
    sentence: str
    step: int | None = None
    lag: int | None = None

    def summary(self) -> str:
        """The run and the sentence."""
        return f"{self.run}, {self.question}: {self.outcome}. {self.sentence}"


def answers(run: RunCurves) -> tuple[RuleAnswer, ...]:
    """What every rule says of a run."""
    bare = SILENT if run.attention else INTACT
    return (
        retrieves(run, "retrieves", INTACT) if run.attention else _no_attention(run, "retrieves"),
        retrieves(run, "retrieves without attention", bare),
        takes_over(run),
        unlearns(run, bare),
        states_lose(run),
        tap(run),
        *(announces(run, question, strength) for question, strength in STRENGTHS.items()),
    )


def _no_attention(run: RunCurves, question: str) -> RuleAnswer:
    return RuleAnswer(run.name, question, "open", "The model has no attention.")


def first_from(curve: Mapping[int, T], holds: Callable[[T], bool]) -> int | None:
    """The first step from which on something holds at every step; None where it does not at the last."""
    found = None
    for step in reversed(list(curve)):
        if not holds(curve[step]):
            break
        found = step
    return found


def before(curve: Curve, step: int) -> int | None:
    """The kept step before another; None where that is the first."""
    return max((one for one in curve if one < step), default=None)


def retrieves(run: RunCurves, question: str, quantity: str) -> RuleAnswer:
    """From when on retrieval is above half."""
    curve = run.curve(quantity)
    if not curve:
        return RuleAnswer(run.name, question, "open", f"It was not measured ({run.absent(quantity)}).")
    last = max(curve)
    since = first_from(curve, lambda point: point.known > HALF)
    if since is None:
        best = max(curve, key=lambda step: (curve[step].known, -step))
        most = "" if curve[best].known == curve[last].known else f"; at most {_share(curve[best])}, at step {best}"
        said = f"At the last kept step, {last}, it is {_share(curve[last])}{most}."
        return RuleAnswer(run.name, question, "no", said)
    earlier = before(curve, since)
    was = "the first that was kept" if earlier is None else f"{_share(curve[earlier])} at step {earlier}"
    said = f"Above half from step {since} on ({_share(curve[since])}; {was}); {_share(curve[last])} at step {last}."
    return RuleAnswer(run.name, question, "yes", said, since)


def takes_over(run: RunCurves) -> RuleAnswer:
    """From when on answers come from attention's memory, and whether they came from the recurrent layers' before."""
    question = "takes over"
    if not run.attention:
        return _no_attention(run, question)
    keys = run.curve(KEYS)
    others = {name: curve for name in (STATES, CONVOLUTIONS) if (curve := run.curve(name))}
    if not keys or not others:
        missing = run.absent(KEYS if not keys else STATES)
        return RuleAnswer(run.name, question, "open", f"It was not measured ({missing}).")

    def rest(step: int) -> tuple[str, Point]:
        found = {name: curve[step] for name, curve in others.items() if step in curve}
        name = max(found, key=lambda name: found[name].known)
        return name, found[name]

    def words(step: int) -> str:
        name, point = rest(step)
        return f"{_what(KEYS)} are followed by {_share(keys[step])}, {_what(name)} by {_share(point)}"

    after = {step: keys[step].lowest > rest(step)[1].highest for step in keys}
    turned = [step for step in keys if rest(step)[1].lowest > keys[step].highest]
    last, since = max(keys), first_from(after, bool)
    if since is None:
        outcome: Outcome = "no" if last in turned else "open"
        return RuleAnswer(run.name, question, outcome, f"At the last kept step, {last}, {words(last)}.")
    before_it = "at no kept step the other way round"
    if turned:
        before_it = f"before, at step {turned[-1]}, {words(turned[-1])}"
    return RuleAnswer(run.name, question, "yes", f"From step {since} on, {words(since)}; {before_it}.", since)


def _what(quantity: str) -> str:
    """The memory that a quantity is about."""
    return quantity.removeprefix("follows ")


def unlearns(run: RunCurves, quantity: str) -> RuleAnswer:
    """Whether retrieval without attention is there at some step and lost at a later one."""
    question = "unlearns"
    curve, control = run.curve(quantity), run.curve(CONTROLS[quantity])
    if not curve:
        return RuleAnswer(run.name, question, "open", f"It was not measured ({run.absent(quantity)}).")
    there = [step for step in curve if step in control and curve[step].lowest > control[step].highest]
    if not there:
        return RuleAnswer(run.name, question, "no", "At no kept step is it told from its control, so none is lost.")
    return _lost(run, question, curve, there)


def states_lose(run: RunCurves) -> RuleAnswer:
    """Whether answers follow the recurrent states at some step, and less so at a later one."""
    question, curve = "states lose it", run.curve(STATES)
    if not curve:
        return RuleAnswer(run.name, question, "open", f"It was not measured ({run.absent(STATES)}).")
    there = [step for step in curve if curve[step].lowest > 0]
    if not there:
        return RuleAnswer(run.name, question, "no", "At no kept step do answers follow them for sure.")
    return _lost(run, question, curve, there)


def _lost(run: RunCurves, question: str, curve: Curve, there: Sequence[int]) -> RuleAnswer:
    """Whether what is there at some steps is less at a later one, the intervals apart."""
    pairs = [(curve[a].lowest - curve[b].highest, a, b) for a in there for b in curve if b > a]
    apart, had, lost = max(pairs, key=lambda pair: (pair[0], -pair[1], -pair[2]), default=(0.0, there[-1], there[-1]))
    if apart <= 0:
        best = max(there, key=lambda step: (curve[step].known, -step))
        said = f"It is most at step {best} ({_share(curve[best])}), and at no later step told from that."
        return RuleAnswer(run.name, question, "no", said)
    said = f"{_share(curve[had])} at step {had}, {_share(curve[lost])} at step {lost}."
    return RuleAnswer(run.name, question, "yes", said, lost)


def tap(run: RunCurves) -> RuleAnswer:
    """Which lag keys compose most through, and since when."""
    curve = run.curve(TAP)
    if not curve:
        return RuleAnswer(run.name, TAP, "open", f"It was not measured ({run.absent(TAP)}).")
    last = max(curve)
    lag = curve[last].known
    since = first_from(curve, lambda point: point.known == lag)
    others = sorted({f"{point.known:g}" for point in curve.values()} - {f"{lag:g}"})
    before_it = f"; before, lag {' or '.join(others)} too" if others else ""
    return RuleAnswer(run.name, TAP, "yes", f"Lag {lag:g}, from step {since} on{before_it}.", since)


def announces(run: RunCurves, question: str, strength: str) -> RuleAnswer:
    """Whether a strength from weights is half there before retrieval is."""
    weights, told, control = run.curve(strength), run.curve(INTACT), run.curve(CONTROLS[INTACT])

    def open_(why: str) -> RuleAnswer:
        return RuleAnswer(run.name, question, "open", why)

    if not weights:
        return open_(f"It was not measured ({run.absent(strength)}).")
    steps = [step for step in weights if step in told]
    if not steps:
        return open_("At no kept step were both measured.")
    weights, told, last = {s: weights[s] for s in steps}, {s: told[s] for s in steps}, steps[-1]
    if last not in control or told[last].lowest <= control[last].highest:
        return open_(f"Retrieval at the last kept step, {last}, is not told from its control.")
    if weights[last].known < NOTHING:
        return open_(f"The strength is {number(weights[last].known)} at the last kept step, {last}.")
    half_strength, half_told = weights[last].known / 2, told[last].known / 2
    strong = first_from(weights, lambda point: point.known >= half_strength)
    able = first_from(told, lambda point: point.known >= half_told)
    assert strong is not None, "it holds at the last step"
    assert able is not None, "it holds at the last step"
    both = (
        f"The strength is half of its last value ({number(weights[last].known, 3)}) from step {strong} on, retrieval "
        f"half of its own ({percent(told[last].known)}) from step {able} on"
    )
    lag = able - strong
    if strong == steps[0]:
        return RuleAnswer(run.name, question, "open", f"{both}; {strong} is the first kept step.", strong, lag)
    sooner = any(told[step].highest < half_told for step in steps if strong <= step < able)
    later = any(told[step].lowest > half_told for step in steps if able <= step < strong)
    outcome: Outcome = "yes" if sooner else "no" if later else "open"
    told_apart = {"yes": f", {many(lag, 'step')} later", "no": f", {many(-lag, 'step')} sooner"}
    said = told_apart.get(outcome, f", which {'are one' if lag == 0 else 'are not told apart'}")
    return RuleAnswer(run.name, question, outcome, f"{both}{said}.", strong, lag)


def _share(point: Point) -> str:
    """A share with its interval, in percent."""
    ends = "" if point.low is None or point.high is None else f", {100 * point.low:.0f} to {100 * point.high:.0f}"
    return f"{percent(point.known)}{ends}"
