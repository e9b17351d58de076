"""`Capacity`: how many facts a model recalls of how many, with attention and without, and what memory it has for them.

Recall is the share of prompts whose answer gives the value of the fact that is asked for; the rest give another fact's
or none (`forms.told`). As each prompt asks for one of its n facts, every place equally often, recall is also the share
of its facts that it could tell, and

    facts held = n × (recall − recall in the control),

where in the control the asked fact has given way to filler: what is said there is guessed. Recall and control are means
over the same prompts, so the interval of their difference is a paired one (`hybridlens.results.paired_difference`), and
that of facts held n times it. How often another fact's value is guessed is seen by facts that are nowhere in the prompt
(`Recall.strange`).

How it fails: a fact counts as held when it is told, so a state that holds more than its model can read out holds more
than this says. The largest of several estimates is above the true largest on average. An interval is over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from analyses.experiment.artefacts import Stored
from analyses.study.rankings.curves import Value
from hybridlens.boundary import Positive, public
from hybridlens.config import LensConfig
from hybridlens.display import Displayed, Piece, Table, listed, many, number, size
from hybridlens.display.markup import cut
from hybridlens.errors import InputError, ResultsError, UnknownNameError, closest
from hybridlens.niah import MAX_SCORE
from hybridlens.results import bootstrap_interval, paired_difference
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

UNTOUCHED = "all of the model"
SILENT = "attention taken away"
CONDITIONS = (UNTOUCHED, SILENT)
"""What is done to the model, while reading and answering alike."""

Told: TypeAlias = Literal["right", "other", "neither"]


@dataclass(frozen=True)
class FactAnswer(Displayed):
    """One answer.

    Attributes:
        condition: of `CONDITIONS`.
        facts: in the prompt; of a control one less are there.
        prompt: its number; controls have that of their prompt.
        place: of the asked fact among the facts, from 0.
        depth: of its place, percent of the context.
        control: whether the asked fact was left out.
        told: whose value is given: "right", the asked fact's; "other", another's; or "neither".
        asked: the key that is asked for.
        given: the key whose value is given; empty where none is.
        strange: whether the value of a stranger is given, of as many as there are other facts (`forms.strangers`).
        score: points by the asked fact's rubric, 0 to 5.
        text: the answer.
    """

    condition: str
    facts: int
    prompt: int
    place: int
    depth: int
    control: bool
    told: Told
    asked: str
    given: str
    strange: bool
    score: float
    text: str

    def summary(self) -> str:
        """What was asked for, and what was told."""
        left_out = ", left out" if self.control else ""
        where = f"{self.condition}, {many(self.facts, 'fact')}, prompt {self.prompt}: {self.asked}{left_out}"
        return f"{where}: told {self.told} {cut(self.text.strip(), 50)!r}"


class _Sizes(NamedTuple):
    """Fields of `MemorySizes`."""

    per_token: int
    """Bytes of keys and values of one token, all layers."""
    keys: int
    """Bytes of keys and values after a prompt, windows heeded."""
    states: int
    """Bytes of recurrent states, however long the prompt."""
    convolutions: int
    """Bytes of what convolutions remember, likewise."""


class MemorySizes(Displayed, _Sizes):
    """What a model remembers of one prompt, in bytes."""

    __slots__ = ()

    def summary(self) -> str:
        """Each kind of memory."""
        kv = f"keys and values {size(self.keys)} ({size(self.per_token)} a token)" if self.per_token else ""
        states = f"recurrent states {size(self.states)}" if self.states else ""
        conv = f"convolutions {size(self.convolutions)}" if self.convolutions else ""
        return ", ".join(part for part in (kv, states, conv) if part) or "no memory"


def memory_sizes(cfg: LensConfig, itemsize: int, length: int) -> MemorySizes:
    """What a model remembers of a prompt.

    Args:
        cfg: its sizes.
        itemsize: bytes of a number of its dtype; states are float32.
        length: tokens of the prompt.
    """
    per_token = keys = 0
    for attention in cfg.attentions:
        token = attention.memory(itemsize).token
        per_token += token
        keys += token * (length if attention.window is None else min(length, attention.window))
    both = sum(recurrent.memory(itemsize).row for recurrent in cfg.recurrences)
    states = sum(4 * math.prod(r.state_shape) for r in cfg.recurrences if r.state_shape)
    return MemorySizes(per_token, keys, states, both - states)


class _Recall(NamedTuple):
    """Fields of `Recall`."""

    condition: str
    facts: int
    n: int
    """Prompts."""
    right: Value
    """Share of answers that give the asked fact's value."""
    other: Value
    """Share that give another fact's."""
    neither: Value
    """The rest."""
    strange: Value
    """Share that give the value of one of as many facts as the others that are nowhere in the prompt: the chance of
    another fact's."""
    control: Value
    """Share that give the asked fact's value where it was left out: the chance level of it."""
    above: Value
    """Of the asked fact's value: its share less that of the control, over the same prompts."""
    held: Value
    """Facts held: the number of facts times `above`."""
    score: Value
    """Mean points by the asked fact's rubric, as a share of 5."""


class Recall(Displayed, _Recall):
    """Recall with one number of facts, each value with its 95 % interval over prompts."""

    __slots__ = ()

    def summary(self) -> str:
        """Recall, its control, and the facts held."""
        recall = f"right {self.right.value:.0%}, another's {self.other.value:.0%}, control {self.control.value:.0%}"
        held = f"{number(self.held.value, 3)} ({number(self.held.low, 3)} to {number(self.held.high, 3)})"
        return f"{self.condition}, {many(self.facts, 'fact')}: {recall}; held {held}"

    def table(self) -> Table:
        """A row for each value, with its interval."""
        rows = [(name, *getattr(self, name)) for name in MEASURES]
        return Table(("measure", "value", "low", "high"), rows, note=f"over {many(self.n, 'prompt')}")


MEASURES = ("right", "other", "neither", "strange", "control", "above", "held", "score")
"""The measured fields of `Recall`."""

MEANINGS = {
    "right": "share of answers that give the asked fact's value",
    "other": "share that give another fact's",
    "neither": "share that give none's",
    "strange": "share that give the value of one of as many facts as the others, which are nowhere in the prompt",
    "control": "share that give the asked fact's value where it was left out",
    "above": "right less control",
    "held": "facts held: facts × (right − control)",
    "score": "mean points by the rubric, as a share of 5",
}


@dataclass(frozen=True, eq=False)
class Capacity(Plotted, Stored, text=True):
    """Recall against the number of facts.

    Attributes:
        model: what results call it.
        form: what the facts say.
        bits: of one value among all that could be drawn.
        length: tokens of every prompt.
        counts: numbers of facts, ascending.
        conditions: what was done to the model: of `CONDITIONS`, the second where it has attention.
        memory: what the model has to remember a prompt with.
        answers: condition by condition, number of facts by number, prompt by prompt, its control after it.
    """

    model: str
    form: str
    bits: float
    length: int
    counts: tuple[int, ...]
    conditions: tuple[str, ...]
    memory: MemorySizes
    answers: tuple[FactAnswer, ...]

    @public
    def of(self, condition: str, facts: Positive, control: bool = False) -> list[FactAnswer]:
        """The answers under one condition with one number of facts, prompt by prompt.

        Raises:
            UnknownNameError: a condition that there is not.
            InputError: a number of facts that was not run.
        """
        if condition not in self.conditions:
            close = closest(condition, self.conditions)
            raise UnknownNameError(f"no condition {condition!r}{close}; there is {', '.join(self.conditions)}")
        if facts not in self.counts:
            raise InputError(f"{facts} facts asked for; there are {', '.join(map(str, self.counts))}")
        found = [a for a in self.answers if (a.condition, a.facts, a.control) == (condition, facts, control)]
        if not found:
            raise ResultsError(f"no answer under {condition!r} with {facts} facts; run the cells first")
        return found

    @public
    def recall(self, condition: str, facts: Positive) -> Recall:
        """What one number of facts gives under one condition; errors as `of`."""
        there, left_out = self.of(condition, facts), self.of(condition, facts, control=True)
        right = [float(a.told == "right") for a in there]
        guessed = [float(a.told == "right") for a in left_out]
        above = sum(right) / len(right) - sum(guessed) / len(guessed)
        low, high = paired_difference(right, guessed)
        return Recall(
            condition=condition,
            facts=facts,
            n=len(there),
            right=_share(right),
            other=_share([float(a.told == "other") for a in there]),
            neither=_share([float(a.told == "neither") for a in there]),
            strange=_share([float(a.strange) for a in there]),
            control=_share(guessed),
            above=Value(above, low, high),
            held=Value(facts * above, facts * low, facts * high),
            score=_share([a.score / MAX_SCORE for a in there]),
        )

    @cached_property
    def recalls(self) -> tuple[Recall, ...]:
        """Every condition with every number of facts."""
        return tuple(self.recall(condition, facts) for condition in self.conditions for facts in self.counts)

    def curve(self, condition: str) -> list[Recall]:
        """One condition with every number of facts, ascending."""
        return [one for one in self.recalls if one.condition == condition]

    def most_held(self, condition: str) -> Recall:
        """The number of facts at which most are held."""
        return max(self.curve(condition), key=lambda one: one.held.value)

    def summary(self) -> str:
        """What is held at most, under each condition."""
        best = [self.most_held(condition) for condition in self.conditions]
        held = [f"{one.condition}: {one.held.value:.1f} of {one.facts}" for one in best]
        return f"facts held at most, {listed(held)}; {many(len(self.answers), 'answer')} of {self.length} tokens"

    def table(self) -> Table:
        """A row for each condition and number of facts, with the intervals of what matters most."""
        ends = ("right", "held")
        columns = ["condition", "facts", "prompts"]
        for name in MEASURES:
            columns += [name, f"{name}_low", f"{name}_high"] if name in ends else [name]
        rows: list[list[str | float]] = []
        for one in self.recalls:
            row: list[str | float] = [one.condition, one.facts, one.n]
            for name in MEASURES:
                value: Value = getattr(one, name)
                row += [*value] if name in ends else [value.value]
            rows.append(row)
        heat = ("right", "other", "neither", "strange", "control")
        return Table(tuple(columns), rows, MEANINGS, heat, note=f"95 % intervals over prompts; {self.memory.summary()}")

    def view(self) -> tuple[Piece, ...]:
        """Recall and facts held with every number of facts."""
        return (self.table(),)

    def plot(self) -> Plot:
        """Recall against the number of facts under each condition, with 95 % intervals and the control."""
        from hybridlens.viz.charts import bar_chart
        from hybridlens.viz.entries import Value as Bar
        from hybridlens.viz.plot import Plot

        bars = {
            condition: [Bar(*one.right, one.n, one.control.value) for one in self.curve(condition)]
            for condition in self.conditions
        }
        return Plot(bar_chart([str(n) for n in self.counts], bars, "facts in the prompt", RECALLED))


RECALLED = "answers that give the asked fact's value, %<br>bars: 95 % interval over prompts"


def _share(scores: Sequence[float]) -> Value:
    return Value(sum(scores) / len(scores), *bootstrap_interval(scores))
