"""The clean builder: whole sentences, distinct needle places, exactly the requested number of tokens.

For one length, sentences of the haystack are chosen whose tokens fill what template, question and needle
leave (`filler.plan`); the needle then moves through the boundaries between them. The finished prompt is
counted, and where merging at a boundary made it longer or shorter the last few sentences are chosen
again. With JRT every sentence counts twice; where the room is odd, the two readings differ in one
sentence that is one token longer in the first.

How it fails: sentences longer than room ÷ (places - 1) are left out, so that ten places exist; at short
lengths the filler is therefore made of the haystack's shorter sentences. A haystack without enough of
them, or a tokenizer for which no choice of sentences comes out exactly, is refused.
"""

from collections.abc import Sequence
from statistics import fmean, quantiles
from typing import NamedTuple

from hybridlens.errors import InputError
from hybridlens.niah.filler import WINDOW, Piece, fragments, pieces, plan
from hybridlens.niah.haystack import CHARS_PER_TOKEN, Haystack
from hybridlens.niah.lengths import places
from hybridlens.niah.prompt import Frame, Prompt, Span

ATTEMPTS = 16
"""How many windows of sentences are tried for the exact end of a prompt."""

CORRECTIONS = 3
"""How often the room is corrected within one window."""


class Fill(NamedTuple):
    """The filler of one prompt.

    Attributes:
        texts: the sentences of every reading of the context, in order.
        costs: their tokens.
        swap: (index, sentence) where the first reading has another sentence than the second; else None.
    """

    texts: tuple[str, ...]
    costs: tuple[int, ...]
    swap: tuple[int, str] | None


class Supply(NamedTuple):
    """What fillers are made of: the haystack's sentences in order, and fragments for sums that need them."""

    sentences: tuple[Piece, ...]
    fragments: tuple[Piece, ...]


def make_supply(frame: Frame, haystack: Haystack, longest: int) -> Supply:
    """The haystack's first sentences, enough for prompts of `longest` tokens, and a few fragments of them.

    Raises:
        InputError: the haystack holds no sentence.
    """
    chosen: list[str] = []
    chars = 0
    for sentence in haystack.sentences:
        if chars >= CHARS_PER_TOKEN * longest and len(chosen) >= 4 * WINDOW:
            break
        chosen.append(sentence)
        chars += len(sentence) + 1
    if not chosen:
        raise InputError(f"haystack {haystack.name!r} is empty: it holds no sentence; give one with text")
    found = pieces(frame.tokenizer, chosen)
    longest_first = sorted(found[:WINDOW], key=lambda piece: -piece.cost)[:3]
    short = [fragment for piece in longest_first for fragment in fragments(frame.tokenizer, piece.text)]
    return Supply(tuple(found), tuple(short))


def shortest_fit(frame: Frame, supply: Supply, n_places: int) -> int:
    """The shortest length with `n_places` distinct places, made of ordinary sentences, in tokens.

    It is what template, question and needle take, and `n_places` - 1 sentences of the haystack's lower
    quartile of lengths, rounded up to the next ten.
    """
    costs = [piece.cost for piece in supply.sentences]
    quartile = quantiles(costs, n=4)[0] if len(costs) > 1 else costs[0]
    base = frame.count([frame.needle.sentence] * frame.readings)
    exact = base + frame.readings * (n_places - 1) * quartile
    return int(-(-exact // 10) * 10)


def _contexts(frame: Frame, fill: Fill, needle: str | None, place: int) -> tuple[list[str], list[Span]]:
    """The context of every reading, and the needle's characters in it (none without a needle)."""
    contexts: list[str] = []
    spans: list[Span] = []
    for reading in range(frame.readings):
        texts = list(fill.texts)
        if fill.swap is not None and reading == 0:
            texts[fill.swap[0]] = fill.swap[1]
        if needle is not None:
            before = " ".join(texts[:place])
            start = len(before) + (1 if before else 0)
            spans.append((start, start + len(needle)))
            texts.insert(place, needle)
        contexts.append(" ".join(texts))
    return contexts, spans


def _choose(usable: Sequence[Piece], extra: Sequence[Piece], total: int, readings: int, skip: int) -> Fill | None:
    """Sentences that make `total` tokens in all readings together, or None when these can not."""
    room, odd = divmod(total, readings)
    tail = int(4 * fmean(piece.cost for piece in usable)) if usable else 0
    chosen = plan(usable, extra, room, tail, skip)
    if chosen is None:
        return None
    swap: tuple[int, str] | None = None
    if odd:
        taken, spare = set(chosen), dict[int, Piece]()
        for piece in usable:
            if piece not in taken:
                spare.setdefault(piece.cost, piece)
        for index in reversed(range(len(chosen))):
            if chosen[index].cost + 1 in spare:
                swap = (index, spare[chosen[index].cost + 1].text)
                break
        else:
            return None
    return Fill(tuple(piece.text for piece in chosen), tuple(piece.cost for piece in chosen), swap)


def _search(
    frame: Frame, supply: Supply, length: int, cap: int, needle: str | None, place: int | None, least: int
) -> Fill:
    """A filler that makes the prompt exactly `length` tokens long.

    Args:
        frame: what surrounds the context.
        supply: what to choose from.
        length: tokens of the finished prompt.
        cap: the greatest cost of a sentence.
        needle: the sentence to insert, None for a control.
        place: before which sentence; None for the end of the context.
        least: how many sentences there have to be at least.

    Raises:
        InputError: no choice that was tried comes out exactly.
    """
    usable = [piece for piece in supply.sentences if 0 < piece.cost <= cap]
    extra = [piece for piece in supply.fragments if 0 < piece.cost <= cap]
    alone = [needle or ""] * frame.readings
    estimate = length - frame.count(alone)
    found, usable = len(usable), _long_enough(usable, estimate)
    for skip in range(ATTEMPTS if usable else 1):
        total = estimate
        for _ in range(CORRECTIONS):
            fill = _choose(usable, extra, total, frame.readings, skip) if total >= 0 else None
            if fill is None or len(fill.texts) < least:
                break
            contexts, _spans = _contexts(frame, fill, needle, len(fill.texts) if place is None else place)
            short = length - frame.count(contexts)
            if short == 0:
                return fill
            total += short
    raise InputError(
        f"no choice of the haystack's sentences makes a prompt of exactly {length} tokens with at least "
        f"{least} sentences of at most {cap} tokens (it has {found} such); give a longer length, fewer "
        "depths, or a haystack with more short sentences"
    )


def _cap(frame: Frame, length: int, n_places: int) -> int:
    """The greatest cost of a sentence: with `n_places` - 1 sentences of this cost the room is used up."""
    room = length - frame.count([frame.needle.sentence] * frame.readings)
    return room // frame.readings // max(n_places - 1, 1)


def check_fit(frame: Frame, supply: Supply, lengths: Sequence[int], n_places: int) -> None:
    """Refuse lengths in which the needle does not fit.

    Raises:
        InputError: template, question, needle and the haystack's shortest sentence between each two
            places take more than the shortest length.
    """
    shortest = min(lengths)
    base = frame.count([frame.needle.sentence] * frame.readings)
    least = min(piece.cost for piece in supply.sentences)
    if base + frame.readings * (n_places - 1) * least > shortest:
        alone = ""
        if len(supply.sentences) == 1:
            alone = " (no sentence ends inside the haystack, which counts as one; sentences end at . ! ? … 。 ！ ？)"
        raise InputError(
            f"needle {frame.needle.sentence!r} does not fit length {shortest}: with template and question it "
            f"takes {base} tokens, and {n_places} distinct places need {n_places - 1} sentences of filler, "
            f"{least} tokens or more each{alone}; give lengths of at least {shortest_fit(frame, supply, n_places)}"
        )


def clean_prompts(frame: Frame, supply: Supply, length: int, depths: Sequence[int]) -> list[Prompt]:
    """The prompts of one length, one for each depth, in the order given."""
    cap, needle = _cap(frame, length, len(depths)), frame.needle.sentence
    common = _search(frame, supply, length, cap, needle, None, len(depths) - 1)
    at = places(common.costs, depths)
    prompts: list[Prompt] = []
    for depth in depths:
        last = at[depth] == len(common.texts)
        fill, place = common, at[depth]
        contexts, spans = _contexts(frame, fill, needle, place)
        draft = frame.draft(contexts)
        if draft.length != length:
            fill = _search(frame, supply, length, cap, needle, None if last else place, place + (not last))
            contexts, spans = _contexts(frame, fill, needle, len(fill.texts) if last else place)
            draft = frame.draft(contexts)
        prompts.append(frame.prompt(draft, spans, length, depth, "clean"))
    return prompts


def clean_control(frame: Frame, supply: Supply, length: int, n_places: int) -> Prompt:
    """The prompt of one length with the needle left out and filler in its stead, of equal token count."""
    cap = _cap(frame, length, n_places)
    fill = _search(frame, supply, length, cap, None, None, n_places - 1)
    contexts, _ = _contexts(frame, fill, None, 0)
    return frame.prompt(frame.draft(contexts), (), length, None, "clean")


def _long_enough(usable: Sequence[Piece], room: int) -> list[Piece]:
    """`usable`, repeated from its start until it fills `room` with a window of sentences to spare."""
    if not usable:
        return []
    total = sum(piece.cost for piece in usable)
    repeats = 1 + max(0, room) // total + -(-(WINDOW + ATTEMPTS) // len(usable))
    return list(usable) * (1 if total > room and len(usable) > 4 * WINDOW else repeats)
