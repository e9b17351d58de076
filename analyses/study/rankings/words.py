"""What a comparison of rankings says, in sentences with their intervals.

A ranking is said to keep more than another only where the 95 % interval of the difference of their areas, over the
same prompts, is above 0; two whose interval holds 0 are "not told apart". A winner is named only where it is told
apart from every other row.

How it fails: with many rows some differences clear 0 by chance (of 20 that are nothing, one), and the sentences do
not correct for that. Random rankings are spoken of by their mean and by how far draws lie apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from analyses.study.rankings.results import RANDOM, RUN_TIME, RankingComparison
from hybridlens.display import many


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
    return [*_best(found), _untouched(found), *_against_reference(found), *_draws(found), *_losses(found), *found.notes]


def best_rows(found: RankingComparison) -> tuple[str, ...]:
    """The row of the largest area, and all that are not told apart from it; alone where it wins.

    The mean over random draws is a level, not a ranking, and is left out.
    """
    rows = [name for name in found.names if name != RANDOM] or list(found.names)
    best = max(rows, key=lambda name: found.area[found.place(name)].value)
    others = [name for name in rows if name != best and found.difference(best, name).sign <= 0]
    others.sort(key=lambda name: -found.area[found.place(name)].value)
    return (best, *others)


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
    best, *others = best_rows(found)
    area, needed = found.area[found.place(best)], found.heads_needed[found.place(best)]
    sure = " in every draw of prompts" if needed.low == needed.high else f", interval {needed.low} to {needed.high}"
    numbers = (
        f"The area of {best} under accuracy, over all numbers of heads kept, is {area.value:.3f} (95 % interval "
        f"{area.low:.3f} to {area.high:.3f}); it keeps half of the untouched accuracy with "
        f"{many(needed.heads, 'head')}{sure}."
    )
    if others:
        first = (
            f"No ranking can be said to keep retrieval with the fewest heads: {best} keeps most accuracy over all "
            f"numbers of heads, and is not told apart from {_listed(others)}."
        )
    elif found.names in ((best,), (best, RANDOM)):
        first = f"{best} was compared with no other ranking."
    else:
        first = f"{best} keeps retrieval with the fewest heads, and is told apart from every other ranking."
    return [first, numbers]


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
        f"{_listed(names)} {(one if len(names) == 1 else several)[sign]} {found.reference}, by area."
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
