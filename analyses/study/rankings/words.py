"""What a comparison of rankings says, in sentences with their intervals.

Which ranking keeps most is said by the rule of `analyses.study.rankings.deciding`, whose intervals hold together, over
all pairs and looks: a winner is named only where every other ranking keeps less for sure, those within the precision of
the best are said to be equal within it, and what is neither is open, with its interval and what it would take.

How it fails: what is said of the paper's method and of the random level goes by 95 % intervals one by one, of which
some clear 0 by chance (of 20 differences that are nothing, one). Random rankings are spoken of by their mean and by how
far draws lie apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from analyses.study.rankings.deciding import ALPHA, Decision
from analyses.study.rankings.results import RANDOM, RUN_TIME, RankingComparison
from hybridlens.display import listed, many

SHOWN = 4
"""Open rankings that a sentence lists; a report has a table of all."""


def sentences(found: RankingComparison) -> list[str]:
    """All that is said, in order.

    Args:
        found: a comparison.
    """
    if found.full == 0:
        return [
            f"{found.model} answers 0 of {many(found.scores.shape[1], 'prompt')} with all its heads, "
            "so no ranking can be judged by what it keeps."
        ]
    rest = [_untouched(found), *_against_reference(found), *_draws(found), *_losses(found)]
    return [*_best(found), *rest, rule(found.decision), *found.notes]


def rule(decision: Decision) -> str:
    """How it is decided which ranking keeps most."""
    looks = decision.looks
    first = f"{', '.join(f'{n:,}' for n in looks[:3])}{', …' if len(looks) > 4 else ''}"
    when = f"{first} and at most {looks[-1]:,} prompts" if len(looks) > 3 else f"{first} prompts"
    pairs = len(decision.names) * (len(decision.names) - 1) // 2
    return (
        f"The rule: after {when} the areas of every two rankings are compared over the same prompts, by t intervals, "
        f"widened to what a kind of prompt not seen could change. Looks share the {100 * ALPHA:.0f} % of error by the "
        f"prompts that they add, {many(pairs, 'pair')} equally, so that in {100 - 100 * ALPHA:.0f} % of studies all "
        "intervals hold at once. A ranking is equal to the best where no other's area can be more than "
        f"{decision.precision:g} above its own, keeps less where another's is above it for sure, and is open "
        "otherwise; prompts are added while one is open and the budget (--prompts) lasts."
    )


def best_rows(found: RankingComparison) -> tuple[str, ...]:
    """The row of the largest area, and all others that may keep as much; alone where it wins.

    The mean over random draws is a level, not a ranking, and is left out.
    """
    rows = [name for name in found.by_area() if name != RANDOM] or list(found.names)
    return (rows[0], *(name for name in rows[1:] if name not in found.decision.behind))


def _untouched(found: RankingComparison) -> str:
    when = "in reading and answering" if found.phase == "both" else "in answering"
    where = "the model's" if found.scope == "model" else "each layer's"
    return (
        f"{found.model} scores {100 * found.full:.1f} % on {many(found.scores.shape[1], 'prompt')} with all of {where} "
        f"{many(found.counts[-1], 'head')} and {100 * float(found.accuracy[0, 0]):.1f} % with none; "
        f"heads are silent {when}."
    )


def _best(found: RankingComparison) -> list[str]:
    """Who keeps most, and by what numbers."""
    best = best_rows(found)[0]
    area, needed = found.area[found.place(best)], found.heads_needed[found.place(best)]
    sure = " in every draw of prompts" if needed.low == needed.high else f", interval {needed.low} to {needed.high}"
    numbers = (
        f"The area of {best} under accuracy, over all numbers of heads kept, is {area.value:.3f} (95 % interval "
        f"{area.low:.3f} to {area.high:.3f}); it keeps half of the untouched accuracy with "
        f"{many(needed.heads, 'head')}{sure}."
    )
    if found.names in ((best,), (best, RANDOM)):
        return [f"{best} was compared with no other ranking.", numbers]
    return [*_decided(found, best), numbers]


def _decided(found: RankingComparison, best: str) -> list[str]:
    """What the rule says of all rankings."""
    decision = found.decision
    standings = decision.equal, decision.behind, decision.open
    equal, behind, left = ([name for name in found.by_area() if name in names] for names in standings)
    within = f"within {decision.precision:g} of the area under accuracy"
    less = [f"{_listed(behind)} {_keep(behind)} less for sure."] if behind else []
    if left:
        first = (
            f"Open on {many(decision.prompts, 'prompt')}: which ranking keeps retrieval with the fewest heads. "
            f"{_called(best)} keeps most accuracy over all numbers of heads, but not for sure."
        )
        unsettled = (
            f"Not settled, {within}, is by how much one falls short of the best of the others: "
            f"{listed([_short(decision, name) for name in left], SHOWN)}."
        )
        as_much = [f"{_listed(equal)} {_keep(equal)} as much as the best, {within}."] if equal else []
        return [first, unsettled, _more(decision), *as_much, *less]
    if not equal:
        return ["No ranking keeps retrieval with the fewest heads: each keeps less than another, at common counts."]
    if len(equal) == 1:
        return [f"{equal[0]} keeps retrieval with the fewest heads, and is told apart from every other ranking."]
    each = _listed([_short(decision, name) for name in equal])
    return [f"No ranking alone keeps retrieval with the fewest heads: the best are equal {within}, {each}.", *less]


def _called(name: str) -> str:
    """A ranking as a sentence begins with it; the paper's is named as such."""
    return f"The paper's ranking, {name}," if name == RUN_TIME else name


def _keep(names: Sequence[str]) -> str:
    return "keep" if len(names) > 1 else "keeps"


def _short(decision: Decision, name: str) -> str:
    """A ranking, and by how much it may fall short of the best of the others."""
    found = decision.shortfall(name)
    return f"{name} ({found.low:+.3f} to {found.high:+.3f})".replace("-", "−")


def _more(decision: Decision) -> str:
    """What it would take to settle what is open."""
    if decision.needed is None:
        return (
            f"As differences spread over these prompts, the most that there can be, {decision.looks[-1]:,}, would not "
            "settle it; a larger --precision would."
        )
    return (
        f"As differences spread over these prompts, about {decision.needed - decision.prompts:,} more would settle it: "
        f"--prompts {decision.needed} goes on from here."
    )


def _against_reference(found: RankingComparison) -> list[str]:
    """Which rows keep less than the reference, which more, and which are not told apart."""
    groups: dict[int, list[str]] = {-1: [], 1: [], 0: []}
    for name, difference in zip(found.names, found.above_reference, strict=True):
        if name != found.reference:
            by = "{:+.2f}, {:+.2f} to {:+.2f}".format(*difference).replace("-", "−")
            groups[difference.sign].append(f"{name} ({by})")
    one = {-1: "does worse than", 1: "does better than", 0: "is not told apart from"}
    several = {-1: "do worse than", 1: "do better than", 0: "are not told apart from"}
    said = [
        f"By area under accuracy, each at 95 % by itself, {_listed(names)} "
        f"{(one if len(names) == 1 else several)[sign]} {found.reference}."
        for sign, names in groups.items()
        if names
    ]
    if not groups[-1] and found.reference == RUN_TIME and len(found.names) > 1:
        said.append(f"No ranking was found to do worse than {RUN_TIME}.")
    return said


def _draws(found: RankingComparison) -> list[str]:
    if not found.draws:
        return []
    mean, low, high = (float(area) for area in (found.draw_area.mean(), found.draw_area.min(), found.draw_area.max()))
    said = [
        f"Random orders of the heads have an area of {mean:.3f} on average, from {low:.3f} to {high:.3f} over "
        f"{many(len(found.draws), 'draw')}."
    ]
    beaten = [name for name in found.ranked if found.difference(name, RANDOM).sign <= 0]
    if beaten:
        said.append(f"Not better than the mean of random orders, as far as can be told: {_listed(beaten)}.")
    return said


def _losses(found: RankingComparison) -> list[str]:
    """What the rest of the model loses, at the heads that the best ranking needs."""
    best = best_rows(found)[0]
    losses, n = found.ability.loss[found.place(best)], found.heads_needed[found.place(best)].heads
    at, full = float(losses[found.counts.index(n)]), float(losses[-1])
    if math.isnan(at) or math.isnan(full):
        return []
    return [
        f"With the {many(n, 'head')} that {best} needs, held-out filler costs {at:.3f} nats a token; the untouched "
        f"model has {full:.3f}."
    ]


def _listed(names: Sequence[str]) -> str:
    """Names as people list them."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
