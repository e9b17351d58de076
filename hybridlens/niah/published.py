"""The published builder: what the authors' code did, so that their numbers can be compared.

The haystack's text is tokenised without special tokens and cut to L - 200 - len(needle) tokens; the needle
goes to int(n · depth), walked back to the last sentence end (a "." token; where a tokenizer has another for a "."
inside a text, that one too, and 。！？… of texts that end so), or to position 0 when there is none before it
(depth 100 appends it); the tokens are decoded, put into the template and tokenised again.
The needle is encoded between line breaks, as in the code that the authors built on. `Prompt.needle_span`
is one too low, because their sampler prepends BOS after the indices were computed.

How it fails (on purpose): prompts of one length differ by some tokens from each other and from L, so they
do not batch without padding; at short lengths several depths give the same prompt; the context ends in
the middle of a sentence. Only the order of a folder's files is ours (sorted; theirs was the file system's).
With JRT the context is built for L and then stands twice, so the prompt is nearly twice as long as L;
that this is what the authors did is our reading of "given twice".
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from hybridlens.errors import InputError
from hybridlens.niah.encoding import Tokenizer, encode
from hybridlens.niah.haystack import CHARS_PER_TOKEN, Haystack
from hybridlens.niah.prompt import Frame, Prompt, Span

BUFFER = 200
"""Tokens that the authors' builder keeps free for template, question and answer."""

MARKS = (".", "。", "！", "？", "…")
"""What ends a sentence; of Latin marks the "." alone, as in the authors' code."""


def haystack_ids(tokenizer: Tokenizer, haystack: Haystack, longest: int) -> tuple[int, ...]:
    """The haystack's first `longest` tokens, without special ones; a shorter haystack is repeated."""
    text = haystack.text[: CHARS_PER_TOKEN * longest]
    ids = encode(tokenizer, text, special=False).ids
    if len(ids) < 2 * longest and len(text) < len(haystack.text):  # of long tokens, or white space
        ids = encode(tokenizer, haystack.text, special=False).ids
    if not ids:
        raise InputError(f"haystack {haystack.name!r} is empty: it has no tokens; give one with text")
    return tuple(islice(ids * (1 + longest // len(ids)), longest))


def _decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of `ids`, spaces as they come; unknown tokens are special ones and vanish, as in theirs."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _needle_ids(frame: Frame) -> tuple[int, ...]:
    """The needle's own tokens, between line breaks."""
    return encode(frame.tokenizer, f"\n{frame.needle.sentence}\n", special=False).ids


def shortest_fit(frame: Frame) -> int:
    """The shortest length whose budget holds the needle and one token of filler, in tokens."""
    return BUFFER + len(_needle_ids(frame)) + 1


def check_fit(frame: Frame, lengths: Sequence[int]) -> None:
    """Refuse lengths whose budget the needle does not fit.

    Raises:
        InputError: the shortest length leaves no token of filler beside the needle.
    """
    shortest, needle = min(lengths), len(_needle_ids(frame))
    if shortest - BUFFER <= needle:
        raise InputError(
            f"needle {frame.needle.sentence!r} does not fit length {shortest}: published semantics keep "
            f"{BUFFER} tokens free and the needle takes {needle}; give lengths of at least "
            f"{shortest_fit(frame)}"
        )


class Ends(NamedTuple):
    """The tokens with which sentences end."""

    alone: frozenset[int]
    """Those of a "." by itself: what the authors' code looks for. A space of its own before it ends no sentence."""
    inside: tuple[tuple[int, ...], ...]
    """Those of each mark behind a letter, where they hold nothing else."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Ends":
        """A tokenizer's."""
        role = tokenizer.special_tokens_map.get("unk_token")
        unknown = None if role is None else tokenizer.convert_tokens_to_ids(str(role))
        inside: list[tuple[int, ...]] = []
        for mark in MARKS:
            found = encode(tokenizer, f"a{mark}", special=False)
            ids = tuple(i for i, (start, _) in zip(found.ids, found.offsets, strict=True) if start > 0)
            if ids and unknown not in ids:
                inside.append(ids)
        alone = (i for i in encode(tokenizer, ".", special=False).ids if str(tokenizer.decode([i])).strip())
        return cls(frozenset(alone), tuple(inside))

    def before(self, ids: Sequence[int], point: int) -> bool:
        """Whether a sentence ends just before `point`."""
        return ids[point - 1] in self.alone or any(tuple(ids[max(0, point - len(m)) : point]) == m for m in self.inside)


def _insertion_point(ids: Sequence[int], depth: int, ends: Ends) -> int:
    """int(n · depth), walked back to just after the last sentence end, else 0."""
    if depth == 100:
        return len(ids)
    point = int(len(ids) * depth / 100)
    while point > 0 and not ends.before(ids, point):
        point -= 1
    return point


def _context(frame: Frame, ids: Sequence[int], length: int) -> Sequence[int]:
    """The haystack's tokens that a prompt of this length has room for."""
    return ids[: length - BUFFER - len(_needle_ids(frame))]


def places(frame: Frame, ids: Sequence[int], length: int, depths: Sequence[int], ends: Ends) -> dict[int, int]:
    """Depth in percent -> before which of the haystack's tokens the needle goes; several depths may share one."""
    context = _context(frame, ids, length)
    return {depth: _insertion_point(context, depth, ends) for depth in depths}


def published_prompts(frame: Frame, ids: Sequence[int], length: int, at: Mapping[int, int]) -> list[Prompt]:
    """The prompts of one length, one for each depth, in the order given.

    Args:
        frame: what surrounds the context.
        ids: the haystack's tokens.
        length: L; the prompts come out near it, not at it.
        at: of each depth, where the needle goes (`places`).
    """
    needle, context = _needle_ids(frame), _context(frame, ids, length)
    prompts: list[Prompt] = []
    for depth, point in at.items():
        before, after = tuple(context[:point]), tuple(context[point:])
        text = _decode(frame.tokenizer, before + needle + after)
        span = _needle_chars(frame, text, before, needle)
        draft = frame.draft([text] * frame.readings)
        prompts.append(frame.prompt(draft, [span] * frame.readings, length, depth, "published"))
    return prompts


def _needle_chars(frame: Frame, text: str, before: Sequence[int], needle: Sequence[int]) -> Span:
    """Where the needle stands in the decoded context, without the white space around it."""
    start = len(_decode(frame.tokenizer, before))
    end = len(_decode(frame.tokenizer, [*before, *needle]))
    inner = text[start:end]
    return start + len(inner) - len(inner.lstrip()), end - (len(inner) - len(inner.rstrip()))


def published_control(frame: Frame, ids: Sequence[int], length: int) -> Prompt:
    """The prompt of one length with filler in the needle's stead, of equal budget."""
    text = _decode(frame.tokenizer, ids[: length - BUFFER])
    return frame.prompt(frame.draft([text] * frame.readings), (), length, None, "published")
