"""What a comparison of rankings says, in sentences with their intervals.

A ranking is said to keep more than another only where the 95 % interval of the difference of their areas, over the
same prompts, is above 0; two whose interval holds 0 are "not told apart". A winner is named only where it is told
apart from every other row.

How it fails: with many rows some differences clear 0 by chance (of 20 that are nothing, one), and the sentences do
not correct for that. Random rankings are spoken of by their mean and by how far draws lie apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from analyses.study.rankings.curves import Needed, Value
from analyses.study.rankings.results import RANDOM, RUN_TIME, RankingComparison


def sentences(found: RankingComparison) -> list[str]:
    """All that is said, in order.

    Args:
        found: a comparison.
    """
    if found.full == 0:
        return [
            f"{found.model} answers none of the {found.scores.shape[1]} prompts with all its heads, "
            "so no ranking can be judged by what it keeps."
        ]
    return [_untouched(found), _best(found), *_against_reference(found), *_draws(found), *_losses(found), *found.notes]


def best_rows(found: RankingComparison) -> tuple[str, ...]:
    """The row of the largest area, and all that are not told apart from it; alone where it wins.

    The mean over random draws is a level, not a ranking, and is left out.
    """
    rows = [name for name in found.names if name != RANDOM] or list(found.names)
    best = max(rows, key=lambda name: found.area[found.row(name)].value)
    others = [name for name in rows if name != best and found.difference(best, name).sign <= 0]
    others.sort(key=lambda name: -found.area[found.row(name)].value)
    return (best, *others)


def _untouched(found: RankingComparison) -> str:
    when = "in reading and answering" if found.phase == "both" else "in answering"
    where = "the model's" if found.scope == "model" else "each layer's"
    return (
        f"{found.model} scores {_percent(found.full)} on {found.scores.shape[1]} prompts with all of {where} "
        f"{found.counts[-1]} heads and {_percent(float(found.accuracy[0, 0]))} with none; heads are silent {when}."
    )


def _best(found: RankingComparison) -> str:
    best, *others = best_rows(found)
    place = found.row(best)
    head = f"{_area(found.area[place])}, {_needed(found.heads_needed[place])}"
    if others:
        return (
            f"The largest area under the curve is that of {best} ({head}), which is not told apart from "
            f"{_listed(others)}: no ranking can be said to keep retrieval with the fewest heads."
        )
    if found.names in ((best,), (best, RANDOM)):
        return f"{best} was compared with no other ranking ({head})."
    return f"{best} keeps retrieval with the fewest heads ({head}); it is told apart from every other ranking."


def _against_reference(found: RankingComparison) -> list[str]:
    """Which rows keep less than the reference, which more, and which are not told apart."""
    groups: dict[int, list[str]] = {-1: [], 1: [], 0: []}
    for name, difference in zip(found.names, found.above_reference, strict=True):
        if name != found.reference:
            groups[difference.sign].append(f"{name} ({_signed(difference)})")
    what = {-1: "does worse", 1: "does better", 0: "is not told apart"}
    said: list[str] = []
    for sign, names in groups.items():
        if names:
            verb = what[sign] if len(names) == 1 else what[sign].replace("does", "do").replace("is", "are")
            preposition = "from" if sign == 0 else "than"
            said.append(f"{_listed(names)} {verb} {preposition} {found.reference}, by area.")
    if not groups[-1] and found.reference == RUN_TIME and len(found.names) > 1:
        said.append(f"No ranking was found to do worse than {RUN_TIME}.")
    return said


def _draws(found: RankingComparison) -> list[str]:
    if not found.draws:
        return []
    areas = found.draw_area
    said = [
        f"Random orders of the heads have an area of {_number(float(areas.mean()))} on average, from "
        f"{_number(float(areas.min()))} to {_number(float(areas.max()))} over {len(found.draws)} draws."
    ]
    low = [name for name in found.ranked if found.difference(name, RANDOM).sign <= 0]
    if low:
        said.append(f"Not better than the mean of random orders, as far as can be told: {_listed(low)}.")
    return said


def _losses(found: RankingComparison) -> list[str]:
    """What the rest of the model loses, at the heads that retrieval needs."""
    said: list[str] = []
    losses = found.ability.loss
    for name in best_rows(found)[:1]:
        row, n = found.row(name), found.heads_needed[found.row(name)].heads
        at, full = float(losses[row, found.counts.index(n)]), float(losses[row, -1])
        if at == at and full == full:
            heads = "head" if n == 1 else "heads"
            said.append(
                f"With the {n} {heads} that {name} needs, held-out filler costs {at:.3f} nats a token; "
                f"the untouched model has {full:.3f}."
            )
    return said


def _area(value: Value) -> str:
    return f"area {_number(value.value)}, 95 % interval {_number(value.low)} to {_number(value.high)}"


def _needed(value: Needed) -> str:
    interval = f", interval {value.low} to {value.high}" if value.low != value.high else " in every draw of prompts"
    heads = "head" if value.heads == 1 else "heads"
    return f"{value.heads} {heads} for half of the untouched accuracy{interval}"


def _signed(value: Value) -> str:
    return f"{value.value:+.2f}, {value.low:+.2f} to {value.high:+.2f}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _number(value: float) -> str:
    return f"{value:.3f}"


def _listed(names: Sequence[str]) -> str:
    """Names as people list them."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
