"""`report.html` of the crossover: which memory holds the needle, in sentences, then every share and map.

What the intervals of few prompt pairs leave open is called too few to tell, with the numbers, and not a finding.

How it fails: a crossover without an answer raises `ResultsError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analyses.experiment.text import columns, percent_interval
from analyses.kv_cache import sections
from analyses.kv_cache.crossover_results import Crossover
from analyses.kv_cache.damage import DamageMap, touches
from analyses.kv_cache.following import EVERYTHING, KINDS, Following, Memory, following, kinds, layer_memories, whole
from hybridlens.display import many
from hybridlens.viz.article import Article
from hybridlens.viz.words import INTERVALS, percent

ENOUGH = 0.5
"""A memory that more than this share of answers follows is said to hold the needle."""

NOTHING = 0.05
"""A model that tells fewer of its needles than this holds nothing that the answers could show."""

MIXED = (
    "A mixed state is one that no text leads to. An answer that tells neither needle may mean that two memories "
    "are needed, or that the model is lost: read the answers."
)

_NAMED = 3


def article_of(found: Crossover, maps: Mapping[str, DamageMap], record: Mapping[str, Any]) -> Article:
    """The page's contents; the arguments are the answers, the maps by name, and the run's `run.json`."""
    window = record.get("facts", {}).get("window")
    windowed = window is not None
    shown = [
        sections.followed(found, windowed),
        sections.layers(found, windowed) if layer_memories(found.mixes) else None,
        sections.written(maps, windowed) if maps else None,
        sections.combinations(found, windowed),
    ]
    partly = sections.partly(found)
    group = "it is in neither group" if partly == 1 else "they are in neither group"
    part = f"In {_pairs(partly)} the last token sees only a part of the needle; {group}."
    return Article(
        subject="crossover",
        over="Memories of two prompts exchanged",
        origin=_origin(found, record),
        finding=finding(found, maps, window),
        notes=(MIXED, *([part] if partly else []), INTERVALS),
        sections=tuple(section for section in shown if section is not None),
    )


def finding(found: Crossover, maps: Mapping[str, DamageMap], window: int | None) -> tuple[str, ...]:
    """Which memory holds the needle, in which layer and head, where it is written, what keeps it beyond a window."""
    said: list[str] = []
    inside = True in found.regions
    if inside or window is None:  # without attention no token is seen again, and there is no window to leave
        where = "" if window is None else " while the needle is inside the window"
        shown = _places(maps, "inside" if inside else "outside", True)
        said += [*_holds(found, where, inside), *_which_layer(found, inside), *shown]
    if False in found.regions and window is not None:
        said.append(_outside(found, window))
        if following(found, EVERYTHING, False).memory.mean >= NOTHING:
            said += _places(maps, "outside", False)
    return tuple(said)


def _holds(found: Crossover, where: str, inside: bool) -> list[str]:
    """The verdict over two kinds of memory, with both shares, while the needle is seen; then what was asked."""
    everything, *two = whole(found)[:3]
    intact, *shares = (following(found, memory, inside) for memory in (everything, *two))
    if two and intact.memory.mean < NOTHING:
        return [
            f"Nothing can be said of where the needle is held{where}: the model tells it in {_share(intact)} of "
            f"{_pairs(intact.n)}, with nothing exchanged."
        ]
    apart = ""
    if "only keys B" in {mix.name for mix in found.mixes}:
        keys, values = (found.shares(f"only {part} B", inside).b.mean for part in ("keys", "values"))
        apart = (
            f" With the values alone from the other prompt it tells the other needle in {percent(values)}, with the "
            f"keys alone in {percent(keys)}."
        )
    if not two:
        (only,) = (KINDS[kind].words for kind in kinds(found))
        told = f"the model tells its needle in {_share(intact)} of {_pairs(intact.n)}, with a 95 % interval over pairs"
        return [f"{only[0].upper()}{only[1:]} are all that this model remembers by: {told}.{apart}"]
    verdict = _verdict(two, shares)
    first, second = (f"{memory.words} {{}}{_share(one)}" for memory, one in zip(two, shares, strict=True))
    return [
        f"{verdict or f'{_too_few(intact.n)} which kind of memory holds the needle'}{where}: with memories "
        f"exchanged between two prompts, {first.format('decide ')} of the answers, {second.format('')}.",
        f"These are shares of the answers of {_pairs(intact.n)}, with 95 % intervals over pairs; each memory was set "
        f"against all others, either way round. Untouched, the model tells its needle in "
        f"{percent(intact.memory.mean)}.{apart}",
    ]


_HOLD = {
    "keys and values": ("Keys and values", "keys and values"),
    "recurrent states": ("The recurrent states", "the recurrent state"),
    "convolution inputs": ("The convolutions' inputs", "the convolutions' inputs"),
}
"""Each kind of memory as what holds the needle, and as what does not."""


def _verdict(two: Sequence[Memory], found: Sequence[Following]) -> str | None:
    """What the shares of both kinds of memory support; None where there are too few prompt pairs to tell.

    One holds the needle where more than `ENOUGH` of the answers follow it and its interval lies above the other's.
    Neither decides where both intervals end below `ENOUGH`, and either does where both begin above it.
    """
    shares = [one.memory for one in found]
    for i, (mine, other) in enumerate((shares, shares[::-1])):
        if mine.mean > ENOUGH and mine.interval.low > other.interval.high:
            return f"{_HOLD[two[i].words][0]} hold the needle, and not {_HOLD[two[1 - i].words][1]}"
    if max(share.interval.high for share in shares) < ENOUGH:
        if max(share.mean for share in shares) <= NOTHING:
            return "No kind of memory holds the needle by itself"
        return "Neither kind of memory alone decides which needle is told"
    if min(share.interval.low for share in shares) > ENOUGH:
        return "Either kind of memory decides which needle is told, when it alone is exchanged"
    return None


def _which_layer(found: Crossover, inside: bool) -> list[str]:
    """The layers, and heads, whose memory alone decides most answers; nothing where no layers were mixed."""
    memories = layer_memories(found.mixes)
    shares = [(one.memory.words, following(found, one.memory, inside)) for one in memories]
    if not shares:
        return []
    decide = {m.layer for m, (_, share) in zip(memories, shares, strict=True) if share.memory.interval.low > NOTHING}
    # of memories that are followed alike, the smaller come after those they are part of, whose names are shorter
    order = sorted(shares, key=lambda both: (-both[1].memory.mean, -both[1].shift, len(both[0])))
    best = [(words, share) for words, share in order if share.memory.mean >= NOTHING][:_NAMED]
    if not best:
        words, share = max(shares, key=lambda both: both[1].shift)
        return [
            f"No memory of a single layer decided as many as {percent(NOTHING)} of the answers of {_pairs(share.n)} by "
            f"itself; the words' log-probability is moved most by {words} ({sections.shift_words(share.shift)})."
        ]
    if best[0][1].memory.interval.low > ENOUGH:
        alone = "Of single memories, the answer follows"
    elif len(decide) > 1:
        layers = " and ".join(filter(None, (", ".join(map(str, sorted(decide)[:-1])), str(max(decide)))))
        alone = f"Layers {layers} share it, each deciding a part of the answers by itself; the answer follows"
    elif max(share.memory.interval.high for _, share in shares) < ENOUGH:
        alone = "No memory of a single layer or head decides most answers by itself; the answer follows"
    else:
        alone = f"{_too_few(best[0][1].n)} whether a single memory decides most answers; these follow"
    return [f"{alone} {'; '.join(f'{words}: {_share(share)}' for words, share in best)}."]


def _outside(found: Crossover, window: int | None) -> str:
    """What keeps a needle that has left the window."""
    everything, *two = whole(found)[:3]
    intact, *shares = (following(found, memory, False) for memory in (everything, *two))
    begin = f"Once the needle has left the window of {window} tokens"
    if intact.memory.mean < NOTHING:
        sure = intact.memory.interval.high < ENOUGH
        verdict = "nothing keeps it" if sure else f"{_too_few(intact.n)} whether anything keeps it"
        named = zip(two, shares, strict=True)
        parts = ", ".join(f"{memory.words} {sections.shift_words(one.shift)}" for memory, one in named)
        compared = ""
        if True in found.regions:
            moved = following(found, EVERYTHING, True).shift
            compared = f"; inside the window it moves by {sections.shift_words(moved)}"
        return (
            f"{begin}, {verdict}: the model tells it in {_share(intact)} of {_pairs(intact.n)}, and exchanging all "
            f"that it remembers moves the preference for the other needle's words by "
            f"{sections.shift_words(intact.shift)}{f' ({parts})' if parts else ''}{compared}."
        )
    begin = f"{begin}, the model still tells it in {_share(intact)} of {_pairs(intact.n)}; what keeps it"
    which = " ".join(_which_layer(found, False))
    if not two:
        return f"{begin} is all that later tokens left. {which}".strip()
    kv, other = shares
    unsure = f" ({_too_few(kv.n)} which)" if _verdict(two, shares) is None else ""
    return (
        f"{begin}{unsure}: keys and values of later tokens decide {_share(kv)} of the answers, {two[1].words} "
        f"{_share(other)}. {which}"
    ).strip()


_DOING = {
    "dropped": "dropping keys and values",
    "reset": "resetting recurrent layers",
    "replaced": "replacing their states",
}


def _places(maps: Mapping[str, DamageMap], where: str, first: bool) -> list[str]:
    """Where damage is greatest in the maps of one prompt, in a sentence."""
    here = {kind: found for kind in sections.KINDS if (found := maps.get(f"{where}-{kind}")) is not None}
    if not here:
        return []
    of = next(iter(here.values()))
    said = "Damage shows where the needle is written down" if first else "Outside the window likewise"
    done = "; ".join(f"{_DOING[kind]} costs {_worst(found)}" for kind, found in here.items())
    prompt = f"In one prompt ({many(len(of.tokens), 'token')}, needle “{of.pair}”)"
    return [f"{said}. {prompt}, measured by the log-probability of its answer, {done}."]


def _worst(found: DamageMap) -> str:
    """The place and group of the greatest damage, and how much."""
    damage = found.damage
    group, place = divmod(int(damage.argmax()), len(found.places))
    lost = float(damage[group, place])
    if lost < 0.1:
        return f"at most {max(lost, 0.0):.2f} nats, wherever it is done"
    of = "in the needle" if touches(found, place) else "outside the needle"
    single = [i for i, name in enumerate(found.groups) if name != "all layers"]
    most = max(single, key=lambda i: (float(damage[i].max()), len(found.groups[i])))
    alone = f"; {found.groups[most]} alone {float(damage[most].max()):.1f}"
    text = f"most at positions {found.place_words(place)}, {of} ({found.groups[group]}, {lost:.1f} nats"
    return f"{text}{'' if most == group else alone})"


def _pairs(n: int) -> str:
    return many(n, "prompt pair")


def _too_few(n: int) -> str:
    return f"{_pairs(n)} {'is' if n == 1 else 'are'} too few to tell"


def _share(one: Following) -> str:
    """A share that follows the memory, with its interval."""
    low, high = one.memory.interval
    return f"{percent(one.memory.mean)} ({100 * low:.0f} to {100 * high:.0f})"


def _origin(found: Crossover, record: Mapping[str, Any]) -> tuple[str, ...]:
    """How much was answered, of what."""
    pairs = _pairs(len({(cell.pair, cell.length, cell.depth) for cell in found.cells}))
    needles = len({cell.pair for cell in found.cells})
    lengths = sorted({cell.length for cell in found.cells})
    return (
        f"{many(len(found.cells), 'answer')} from {many(len(found.mixes), 'mix', 'mixes')} of {pairs}",
        many(needles, "pair of needles", "pairs of needles"),
        f"{', '.join(map(str, lengths))} tokens",
        f"seed {record.get('seed')}",
    )


def crossover_table(found: Crossover, model: str, window: int | None) -> str:
    """Which memory the answers follow, with the needle inside and outside the window."""
    rows = [["needle", "from one prompt, all else from the other", "told its needle", "the other", "neither", "shift"]]
    for inside in found.regions:
        for memory in whole(found):
            one = following(found, memory, inside)
            told = percent_interval(one.memory.mean, *one.memory.interval)
            others = [f"{100 * share.mean:.1f}" for share in (one.rest, one.neither)]
            where = "" if window is None else "inside" if inside else "outside"
            rows.append([where, memory.words, told, *others, f"{one.shift:+z.1f}".replace("-", "−")])
    title = f"{model}: answers in % (95 % interval over prompt pairs); shift towards the memory's needle in nats"
    return f"{title}\n{columns(rows, left=2)}"
