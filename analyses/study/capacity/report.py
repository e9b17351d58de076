"""`report.html` of recall against the number of facts: what it says in sentences, by rule, then the numbers.

Rules. A condition is shown to hold facts where, at some number of them, the interval of facts held lies above 0. It
tells more than half of n facts where the interval of recall less control lies above a half at n, less than half where
it lies below. Everything else is called open.

How it fails: pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.experiment.text import columns, percent_interval
from analyses.study.capacity import sections
from analyses.study.capacity.results import SILENT, UNTOUCHED, Capacity, Recall
from analyses.study.capacity.sections import held_words
from hybridlens.display import listed, many
from hybridlens.viz.article import Article
from hybridlens.viz.words import INTERVALS, percent

HALF = 0.5
"""Of its facts: what telling most of them means."""

RULES = (
    "Facts are shown to be held where the interval of facts held lies above 0; more than half are told where that of "
    "recall less control lies above a half, less than half where it lies below; else it is open."
)


def article_of(found: Capacity, record: Mapping[str, Any]) -> Article:
    """The page's contents, from what was found and the run's `run.json`."""
    window = record.get("facts", {}).get("window")
    beyond = (
        f"Attention sees the last {window} tokens only, and prompts have {found.length}: facts at their start have "
        "left it, whatever their number."
    )
    shown = (sections.recalled, sections.held, sections.by_place, sections.memory, sections.answers)
    return Article(
        subject="capacity",
        over="How many facts are recalled of how many",
        origin=(
            f"{many(len(found.answers), 'answer')} to {many(len(found.of(UNTOUCHED, found.counts[0])), 'prompt')} of "
            f"{found.length} tokens",
            f"{listed(found.counts)} facts of the form {found.form}",
            f"seed {record.get('seed')}",
        ),
        finding=finding(found),
        notes=(RULES, *([beyond] if window is not None and found.length > window else []), INTERVALS),
        sections=tuple(section(found) for section in shown),
    )


def finding(found: Capacity) -> tuple[str, ...]:
    """What the untouched model recalls, what is left without attention, what else is told, and in how much memory."""
    said = [_untouched(found), _half(found.curve(UNTOUCHED))]
    if SILENT in found.conditions:
        said.append(_silent(found))
    last = found.curve(UNTOUCHED)[-1]
    if last.right.value < 1:
        said.append(
            f"With {many(last.facts, 'fact')}, the untouched model's answers give another fact's value in "
            f"{percent(last.other.value)} (by chance {percent(last.strange.value)}) and none's in "
            f"{percent(last.neither.value)}."
        )
    said.append(f"For a prompt of {found.length} tokens the model has {found.memory.summary()}.")
    return tuple(said)


def _untouched(found: Capacity) -> str:
    curve = found.curve(UNTOUCHED)
    recalls = "; ".join(f"{_share(one)} with {many(one.facts, 'fact')}" for one in dict.fromkeys((curve[0], curve[-1])))
    kind = "" if SILENT in found.conditions else ", which has no attention,"
    best = found.most_held(UNTOUCHED)
    shown = held_words(best) if _holds(curve) else f"no fact that could be shown ({held_words(best)})"
    return f"{found.model}{kind} gives the asked fact's value in {recalls}. At most it holds {shown}."


def _half(curve: list[Recall]) -> str:
    """Up to how many facts more than half are told, and from how many on less."""
    more = [one.facts for one in curve if one.above.low > HALF]
    less = [one.facts for one in curve if one.above.high < HALF]
    open_ = [one.facts for one in curve if one.facts not in (*more, *less)]
    parts = [
        f"{words} at {listed(counts)}"
        for words, counts in (("more", more), ("less", less), ("it is open which", open_))
        if counts
    ]
    return f"Is more than half of n facts told? By the number of facts n: {'; '.join(parts)}."


def _silent(found: Capacity) -> str:
    """What is left with attention taken away throughout."""
    curve, best = found.curve(SILENT), found.most_held(SILENT)
    where = "states and convolutions alone" if sections.memory_of(found, SILENT) else "no memory at all"
    begin = f"With attention taken away while reading and answering ({where})"
    if _holds(curve):
        return f"{begin}, it holds at most {held_words(best)}: facts are recalled without attention."
    most = max(one.held.high for one in curve)
    return (
        f"{begin}, no fact is shown to be held with any number of them: the asked fact's value is given in "
        f"{_share(curve[0])} with {many(curve[0].facts, 'fact')}, and the intervals of facts held end at {most:.1f} or "
        "below."
    )


def _holds(curve: list[Recall]) -> bool:
    return any(one.held.low > 0 for one in curve)


def _share(one: Recall) -> str:
    return f"{percent(one.right.value)} ({100 * one.right.low:.0f} to {100 * one.right.high:.0f})"


def capacity_table(found: Capacity) -> str:
    """Recall, confusion and facts held, as text for a terminal."""
    rows = [
        [
            "condition",
            "facts",
            "right (95 % interval)",
            "another's",
            "none's",
            "chance: right",
            "another's",
            "facts held",
        ]
    ]
    for one in found.recalls:
        shares = (f"{100 * share.value:.1f}" for share in (one.other, one.neither, one.control, one.strange))
        held, low, high = (f"{x:z.2f}".replace("-", "−") for x in one.held)
        rows.append(
            [
                one.condition,
                str(one.facts),
                percent_interval(*one.right),
                *shares,
                f"{held} ({low} to {high})",
            ]
        )
    title = f"{found.model}: answers in % to prompts of {found.length} tokens; {found.memory.summary()}"
    return f"{title}\n{columns(rows)}\n{sections.HELD}"
