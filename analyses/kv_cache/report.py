"""`report.html` of the crossover: which memory holds the needle, in sentences, then every share and map.

What the intervals of few prompt pairs leave open is called too few to tell, with the numbers, and not a finding.

How it fails: a crossover without an answer raises `ResultsError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.experiment.text import columns, percent_interval
from analyses.kv_cache import sections
from analyses.kv_cache.crossover_results import Crossover
from analyses.kv_cache.damage import DamageMap
from analyses.kv_cache.following import (
    EVERYTHING,
    KEYS_AND_VALUES,
    RECURRENT,
    WHOLE,
    Following,
    LayerMemory,
    following,
    layer_memories,
    regions,
)
from hybridlens.viz.article import Article
from hybridlens.viz.words import percent

ENOUGH = 0.5
"""A memory that more than this share of answers follows is said to hold the needle."""

NOTHING = 0.05
"""A model that tells fewer of its needles than this holds nothing that the answers could show."""

_NAMED = 3


def article_of(found: Crossover, maps: Mapping[str, DamageMap], record: Mapping[str, Any]) -> Article:
    """The page's contents; the arguments are the answers, the maps by name, and the run's `run.json`."""
    window = record.get("facts", {}).get("window")
    windowed = window is not None
    made = [sections.followed(found, windowed)]
    if layer_memories(found.mixes):
        made.append(sections.layers(found, windowed))
    if maps:
        made.append(sections.written(maps, windowed))
    made.append(sections.combinations(found, windowed))
    return Article(
        subject="crossover",
        over="Memories of two prompts exchanged",
        origin=_origin(found, record),
        finding=finding(found, maps, window),
        notes=_notes(found),
        sections=tuple(made),
    )


def finding(found: Crossover, maps: Mapping[str, DamageMap], window: int | None) -> tuple[str, ...]:
    """Which memory holds the needle, in which layer and head, where it is written, what keeps it beyond a window."""
    said: list[str] = []
    if True in regions(found):
        where = "" if window is None else " while the needle is inside the window"
        said += [_holds(found, True, where), *_which_layer(found, True), *_places(maps, "inside")]
    if False in regions(found):
        said.append(_outside(found, window))
        if following(found, EVERYTHING, False).memory.mean >= NOTHING:
            said += _places(maps, "outside")
    return tuple(said)


def _holds(found: Crossover, inside: bool, where: str) -> str:
    """The verdict over the two kinds of memory, with both shares."""
    intact, kv, recurrent = (following(found, memory, inside) for memory in (EVERYTHING, KEYS_AND_VALUES, RECURRENT))
    if intact.memory.mean < NOTHING:
        return (
            f"Nothing can be said of where the needle is held{where}: the model tells it in {_share(intact)} of "
            f"{_pairs(intact.n)}, with nothing exchanged."
        )
    keys, values = (found.shares(f"only {part} B", inside).b.mean for part in ("keys", "values"))
    verdict = _verdict(kv, recurrent) or f"{_too_few(intact.n)} which kind of memory holds the needle"
    return (
        f"{verdict}{where}: set against all else, keys and values decide {_share(kv)} of the answers "
        f"and recurrent states {_share(recurrent)} ({_pairs(intact.n)}, either way round; untouched, the model "
        f"tells {percent(intact.memory.mean)}). With the values alone from the other prompt {percent(values)} tell "
        f"the other needle, with the keys alone {percent(keys)}."
    )


def _verdict(kv: Following, recurrent: Following) -> str | None:
    """What the shares of both kinds of memory support; None where there are too few prompt pairs to tell.

    One holds the needle where more than `ENOUGH` of the answers follow it and its interval lies above the other's.
    Neither decides where both intervals end below `ENOUGH`, and either does where both begin above it.
    """
    if kv.memory.mean > ENOUGH and kv.memory.interval.low > recurrent.memory.interval.high:
        return "Keys and values hold the needle, and not the recurrent state"
    if recurrent.memory.mean > ENOUGH and recurrent.memory.interval.low > kv.memory.interval.high:
        return "The recurrent states hold the needle, and not keys and values"
    if max(kv.memory.interval.high, recurrent.memory.interval.high) < ENOUGH:
        if max(kv.memory.mean, recurrent.memory.mean) <= NOTHING:
            return "No kind of memory holds the needle by itself"
        return "Neither kind of memory alone decides which needle is told"
    if min(kv.memory.interval.low, recurrent.memory.interval.low) > ENOUGH:
        return "Either kind of memory decides which needle is told, when it alone is exchanged"
    return None


def _which_layer(found: Crossover, inside: bool) -> list[str]:
    """The layers, and heads, whose memory alone decides most answers; nothing where no layers were mixed."""
    shares = [(one, following(found, one.memory, inside)) for one in layer_memories(found.mixes)]
    order = sorted(shares, key=lambda both: (-both[1].memory.mean, -both[1].shift, _in_parts(both[0])))
    best = [both for both in order if both[1].memory.mean >= NOTHING][:_NAMED]
    if not best:
        most = [max(shares, key=lambda both: both[1].shift)] if shares else []
        return [
            f"No memory of a single layer decided as many as {percent(NOTHING)} of the answers of {_pairs(share.n)} by "
            f"itself; the words' log-probability is moved most by {one.memory.words} "
            f"({sections.shift_words(share.shift)})."
            for one, share in most
        ]
    named = "; ".join(f"{one.memory.words}: {_share(share)}" for one, share in best)
    if best[0][1].memory.interval.low > ENOUGH:
        alone = "Of single memories, the answer follows"
    elif max(share.memory.interval.high for _, share in shares) < ENOUGH:
        alone = "No memory of a single layer or head decides most answers by itself; the answer follows"
    else:
        alone = f"{_too_few(best[0][1].n)} whether a single memory decides most answers; these follow"
    return [f"{alone} {named}."]


def _in_parts(one: LayerMemory) -> int:
    """Smaller memories after those they are part of."""
    return len(one.memory.words)


def _outside(found: Crossover, window: int | None) -> str:
    """What keeps a needle that has left the window."""
    intact, kv, recurrent = (following(found, memory, False) for memory in (EVERYTHING, KEYS_AND_VALUES, RECURRENT))
    begin = f"Once the needle has left the window of {window} tokens"
    if intact.memory.mean < NOTHING:
        sure = intact.memory.interval.high < ENOUGH
        verdict = "nothing keeps it" if sure else f"{_too_few(intact.n)} whether anything keeps it"
        return (
            f"{begin}, {verdict}: the model tells it in {_share(intact)} of {_pairs(intact.n)}, and exchanging all "
            f"that it remembers moves the preference for the other needle's words by "
            f"{sections.shift_words(intact.shift)} (keys and values {sections.shift_words(kv.shift)}, recurrent states "
            f"{sections.shift_words(recurrent.shift)}){_compared(found)}."
        )
    unsure = f" ({_too_few(kv.n)} which)" if _verdict(kv, recurrent) is None else ""
    return (
        f"{begin}, the model still tells it in {_share(intact)} of {_pairs(intact.n)}; what keeps it{unsure}: keys and "
        f"values of later tokens decide {_share(kv)} of the answers, recurrent states {_share(recurrent)}. "
        f"{' '.join(_which_layer(found, False))}"
    ).strip()


def _compared(found: Crossover) -> str:
    if True not in regions(found):
        return ""
    return f"; inside the window it moves by {sections.shift_words(following(found, EVERYTHING, True).shift)}"


def _places(maps: Mapping[str, DamageMap], where: str) -> list[str]:
    """Where damage is greatest in the maps of one prompt, in a sentence."""
    dropped, reset, replaced = (maps.get(f"{where}-{kind}") for kind in sections.KINDS)
    if dropped is None or reset is None or replaced is None:
        return []
    said = "Written down" if where == "inside" else "Outside the window"
    parts = [f"dropping keys and values costs most at {_worst(dropped)}"]
    parts += [f"resetting recurrent layers at {_worst(reset)}", f"replacing their states at {_worst(replaced)}"]
    return [f"{said}, in one prompt ({len(dropped.tokens)} tokens, needle “{dropped.pair}”): {', '.join(parts)}."]


def _worst(found: DamageMap) -> str:
    """The place and group of the greatest damage, and how much."""
    damage = found.damage
    group, place = divmod(int(damage.argmax()), len(found.places))
    lost = float(damage[group, place])
    if lost < 0.1:
        return f"no place (at most {max(lost, 0.0):.2f} nats)"
    of = "in the needle" if sections.touches(found, place) else "outside the needle"
    single = [i for i, name in enumerate(found.groups) if name != "all layers"]
    most = max(single, key=lambda i: (float(damage[i].max()), len(found.groups[i])))
    alone = f"; {found.groups[most]} alone {float(damage[most].max()):.1f}"
    text = f"positions {sections.place_words(found, place)}, {of} ({found.groups[group]}, {lost:.1f} nats"
    return f"{text}{'' if most == group else alone})"


def _pairs(n: int) -> str:
    return "1 prompt pair" if n == 1 else f"{n} prompt pairs"


def _too_few(n: int) -> str:
    return f"{_pairs(n)} {'is' if n == 1 else 'are'} too few to tell"


def _share(one: Following) -> str:
    """A share that follows the memory, with its interval."""
    low, high = one.memory.interval
    return f"{percent(one.memory.mean)} [{100 * low:.0f}, {100 * high:.0f}]"


def _notes(found: Crossover) -> tuple[str, ...]:
    notes = [
        "A mixed state is one that no text leads to. An answer that tells neither needle may mean that two memories "
        "are needed, or that the model is lost: read the answers."
    ]
    part = sections.partly(found)
    if part:
        notes.append(
            f"Of {part} prompt pairs the last token sees only a part of the needle; they are in neither group."
        )
    return tuple(notes)


def _origin(found: Crossover, record: Mapping[str, Any]) -> tuple[str, ...]:
    """How much was answered, of what."""
    pairs = _pairs(len({(cell.pair, cell.length, cell.depth) for cell in found.cells}))
    needles = len({cell.pair for cell in found.cells})
    lengths = sorted({cell.length for cell in found.cells})
    return (
        f"{len(found.cells):,} answers from {len(found.mixes)} mixes of {pairs}",
        f"{needles} {'pair' if needles == 1 else 'pairs'} of needles",
        f"{', '.join(map(str, lengths))} tokens",
        "shares with 95 % intervals over prompt pairs",
        f"seed {record.get('seed')}",
    )


def crossover_table(found: Crossover, model: str, window: int | None) -> str:
    """Which memory the answers follow, with the needle inside and outside the window."""
    where = {True: "inside", False: "outside"}
    rows = [["needle", "from one prompt, all else from the other", "told its needle", "the other", "neither", "shift"]]
    for inside in regions(found):
        for memory in WHOLE:
            one = following(found, memory, inside)
            told = percent_interval(one.memory.mean, *one.memory.interval)
            others = [f"{100 * share.mean:.1f}" for share in (one.rest, one.neither)]
            name = "" if window is None else where[inside]
            rows.append([name, memory.words, told, *others, f"{one.shift:+.1f}".replace("-0.0", "+0.0")])
    title = f"{model}: answers in % [95 % interval over prompt pairs]; shift towards the memory's needle in nats"
    return f"{title}\n{columns(rows, left=2)}"
