"""Choosing sentences whose token counts sum to an exact number.

All prompts of one length have exactly that many tokens, made of whole sentences. `plan` takes sentences
in the haystack's order, leaving out any that is longer than a cap, until little room is left; the rest
is filled exactly by a subset of the sentences that follow (`exact_subset`, a knapsack over small
integers). A cap of room ÷ gaps guarantees at least that many sentences, and so enough boundaries for
needles at distinct places.

How it fails: costs are counts of tokens inside running text, and a sentence may cost one token more or
less at another place (before a blank line, say), so the caller counts the finished prompt and asks again
with a corrected room. No subset reaches some sums (room 1, or a haystack whose sentences are all equally
long): then the pieces offered have to be finer.
"""

from collections.abc import Sequence
from typing import NamedTuple

from hybridlens.niah.encoding import Tokenizer, encode

WINDOW = 48
"""How many sentences after the last one taken in order are tried for the exact end."""


FRAGMENT = 64
"""Words of the longest fragment; they are for sums that whole sentences miss by little."""


class Piece(NamedTuple):
    """A sentence and what it adds to a prompt, in tokens."""

    text: str
    cost: int


def pieces(tokenizer: Tokenizer, sentences: Sequence[str]) -> list[Piece]:
    """Every sentence with its token count inside the running text, from one pass over all of them."""
    encoding = encode(tokenizer, " ".join(sentences), special=False)
    costs = [0] * len(sentences)
    index, end = 0, len(sentences[0]) if sentences else 0
    for _, last in encoding.offsets:
        while last > end:
            index += 1
            end += 1 + len(sentences[index])
        costs[index] += 1
    return [Piece(text, cost) for text, cost in zip(sentences, costs, strict=True)]


def exact_subset(costs: Sequence[int], room: int) -> list[int] | None:
    """Indices, in order, of costs that sum to `room`; None when no subset does.

    Earlier indices are preferred: a sum is formed from the shortest prefix of `costs` that can form it.
    """
    if sum(costs) < room:
        return None
    last: dict[int, int] = {0: -1}  # sum -> the last index of the way to form it that was found first
    for index, cost in enumerate(costs):
        if room in last:
            break
        for total in sorted(last, reverse=True):
            if total + cost <= room:
                last.setdefault(total + cost, index)
    if room not in last:
        return None
    way: list[int] = []
    while room > 0:
        way.append(last[room])
        room -= costs[way[-1]]
    return way[::-1]


def fragments(tokenizer: Tokenizer, sentence: str) -> list[Piece]:
    """`sentence` shortened to its first 1, 2, … `FRAGMENT` words at most, each piece ending with a full stop.

    One without spaces, as in Chinese, is shortened by characters, and keeps its own end.
    """
    words = sentence.split()[: FRAGMENT + 1]
    texts = [" ".join(words[:n]).rstrip(".,;:!?") + "." for n in range(1, len(words))]
    if len(words) == 1 and not sentence.isascii():
        texts = [sentence[:n] + sentence[-1] for n in range(1, min(len(sentence) - 1, FRAGMENT))]
    return [piece for text in texts for piece in pieces(tokenizer, ["So.", text])[1:]]


def plan(usable: Sequence[Piece], extra: Sequence[Piece], room: int, tail: int, skip: int = 0) -> list[Piece] | None:
    """Pieces whose costs sum to exactly `room`.

    Args:
        usable: sentences in the haystack's order; enough to fill the room and a window beyond it.
        extra: pieces for the exact end that are tried after whole sentences.
        room: tokens to fill, 0 or more.
        tail: how many tokens at least the exact end covers, where the room is that large.
        skip: how many sentences are left out before the exact end, to get another choice.

    Returns:
        pieces in the order of the haystack, or None when these can not sum to `room`.
    """
    taken, left = 0, room
    while taken < len(usable) and left - usable[taken].cost >= tail:
        left -= usable[taken].cost
        taken += 1
    window = [*usable[taken + skip : taken + skip + WINDOW], *extra]
    chosen = exact_subset([piece.cost for piece in window], left)
    if chosen is None:
        return None
    return [*usable[:taken], *(window[index] for index in chosen)]
