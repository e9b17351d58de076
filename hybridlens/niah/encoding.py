"""What the benchmark needs of a tokenizer: ids with their character offsets.

Any fast Hugging Face tokenizer serves. The needle's token span comes from the offsets of the whole
prompt's tokens, never from a search for the needle's own ids: tokens at its ends may merge with their
neighbours, and then the ids of the needle alone occur nowhere in the prompt.

How it fails: a slow (pure Python) tokenizer has no offsets, and one whose normaliser rewrites text can
report offsets that do not cover it; both are refused with one line.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from hybridlens.boundary_words import BROKEN, shown, sound
from hybridlens.errors import InputError


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    chat_template: Any
    model_max_length: int

    @property
    def special_tokens_map(self) -> Mapping[str, Any]:
        """Role ("unk_token", "bos_token", …) -> token."""
        ...

    def __call__(self, text: Any, **kwargs: Any) -> Mapping[str, Any]:
        """Encode a text."""
        ...

    def decode(self, token_ids: Any, **kwargs: Any) -> Any:
        """The text of token ids."""
        ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """A conversation in the model's chat format."""
        ...

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token."""
        ...


class Encoding(NamedTuple):
    """A text's tokens: `ids` and, for each, the half-open character range it came from.

    Special tokens that are not in the text, such as BOS, have an empty range.
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


def encode(tokenizer: Tokenizer, text: str, special: bool = True) -> Encoding:
    """Tokens of `text` with character offsets.

    Args:
        tokenizer: a fast tokenizer.
        text: any text.
        special: whether the tokenizer adds its special tokens (BOS).

    Raises:
        InputError: the tokenizer has no offsets.
    """
    if not sound(text):
        raise InputError(f"text {shown(text)} is no valid Unicode: {BROKEN}")
    try:
        # verbose=False: a text longer than the model's context is no mistake here, it gets cut to fit
        found = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    except NotImplementedError as error:
        raise _no_offsets(tokenizer) from error
    if "offset_mapping" not in found:
        raise _no_offsets(tokenizer)
    ids = cast(Sequence[int], found["input_ids"])
    offsets = cast(Sequence[tuple[int, int]], found["offset_mapping"])
    if len(ids) != len(offsets) or (text.strip() and not any(end > start for start, end in offsets)):
        raise _no_offsets(tokenizer)
    return Encoding(tuple(int(i) for i in ids), tuple((int(start), int(end)) for start, end in offsets))


def _no_offsets(tokenizer: Tokenizer) -> InputError:
    """The error for a tokenizer without offsets."""
    return InputError(
        f"tokenizer {type(tokenizer).__name__} gives no character offsets, which place the needle's tokens; "
        "expected a fast tokenizer: load one with AutoTokenizer (tokenizer.json)"
    )


def token_span(encoding: Encoding, start: int, end: int) -> tuple[int, int]:
    """The half-open range of tokens that hold any of the characters `start` … `end` - 1.

    Args:
        encoding: the whole text's tokens.
        start: first character.
        end: one past the last character.

    Raises:
        InputError: no token covers these characters, or the ones that do are not neighbours.
    """
    inside = [index for index, (first, last) in enumerate(encoding.offsets) if first < end and last > start]
    # tokens between them may have an empty range (a space of its own whose offsets are trimmed), but no other
    between = encoding.offsets[inside[0] : inside[-1] + 1] if inside else ()
    if not inside or any(last > first and not (first < end and last > start) for first, last in between):
        raise InputError(
            f"the tokenizer's offsets do not cover characters {start} to {end} of the prompt in one piece; "
            "expected offsets in text order: use another tokenizer"
        )
    return inside[0], inside[-1] + 1


def check_open_end(tokenizer: Tokenizer, encoding: Encoding) -> None:
    """Refuse a tokenizer that ends a prompt with its end-of-text token, after which nothing is answered.

    Raises:
        InputError: the last token is end-of-text and stands for no character.
    """
    token = tokenizer.special_tokens_map.get("eos_token")
    if token is None or not encoding.ids or encoding.offsets[-1][0] < encoding.offsets[-1][1]:
        return
    if encoding.ids[-1] == tokenizer.convert_tokens_to_ids(str(token)):
        raise InputError(
            f"tokenizer {type(tokenizer).__name__} ends every text with {str(token)!r}, so no answer would "
            "follow the prompt; expected an open end: load it with add_eos_token=False"
        )


def unknown_words(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[str, ...]:
    """The words of `texts` that the tokenizer maps, wholly or in part, to its unknown token.

    Returns:
        each word once, in order of first use, with its punctuation; nothing for a tokenizer without
        an unknown token.
    """
    token = tokenizer.special_tokens_map.get("unk_token")
    if token is None:
        return ()
    unknown = tokenizer.convert_tokens_to_ids(str(token))
    words: dict[str, None] = {}
    for text in texts:
        encoding = encode(tokenizer, text, special=False)
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if index != unknown:
                continue
            begin = max(text.rfind(space, 0, start + 1) for space in " \n") + 1
            words.update(dict.fromkeys(text[begin : max(end, start + 1)].split()))
    return tuple(words)


def warn_unknown(tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    """Warn, naming the words, when the tokenizer does not know some words of `texts`."""
    unknown = unknown_words(tokenizer, texts)
    if unknown:
        named = ", ".join(repr(word) for word in unknown[:20])
        more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
        warnings.warn(
            f"the tokenizer does not know {named}{more} of the needle, question or template: they become its "
            "unknown token and can not be retrieved; use other words or another tokenizer",
            stacklevel=4,
        )
