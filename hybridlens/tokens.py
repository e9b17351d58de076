"""From what a user may give as tokens to a batch of rows, and back to text.

`tokens` is a tensor or array [batch, pos], a list of ids, a list of lists, a string, a list of strings, a tokenizer's
whole output, or one or several prompts of `hybridlens.niah`, which know their ids. Rows of different lengths are padded
on the right, where a causal model never looks, and their lengths travel with them, so that each row gives what it gives
alone; `hybridlens.padding` has the rules for rows that come padded. A text that begins with its BOS, as a chat template
writes it, gets no second one.

How it fails: an empty prompt, a batch of none, ids outside the vocabulary, a prompt longer than the
context, text that is no valid Unicode and text without a tokenizer each raise `InputError`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Annotated, Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hybridlens.bos import begun
from hybridlens.boundary_words import BROKEN, Unchecked, shown, sound
from hybridlens.errors import InputError
from hybridlens.padding import Layout, TokenBatch, found, mask_of, moved
from hybridlens.shapes import Lengths


@runtime_checkable
class Encoded(Protocol):
    """A prompt that knows its ids, and how its text became them."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Special tokens included."""
        ...

    @property
    def add_special_tokens(self) -> bool:
        """Whether the tokenizer added those."""
        ...


TokensLike: TypeAlias = Annotated[
    Tensor
    | np.ndarray
    | str
    | Mapping[str, Any]
    | Sequence[int | np.integer[Any]]
    | Sequence[str]
    | Sequence[Sequence[int] | np.ndarray | Tensor]
    | Encoded
    | Sequence[Encoded],
    Unchecked("tokens"),
]

OUTPUT = {
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "special_tokens_mask",
    "offset_mapping",
    "length",
    "overflow_to_sample_mapping",
    "overflowing_tokens",
    "num_truncated_tokens",
}
"""What a tokenizer's output may hold; anything else in it would be meant to change the run."""

EXPECTED = "expected text, ids, lists of either, a tensor, or a tokenizer's output"


def as_batch(
    tokens: TokensLike,
    tokenizer: Any,
    *,
    lengths: Sequence[int] | Lengths | None = None,
    d_vocab: int,
    n_ctx: int | None,
    pad: int = 0,
    prepend_bos: bool | None = None,
) -> Layout:
    """Check what was given and lay it out as rows.

    Args:
        tokens: a tensor [batch, pos] or [pos], ids, text, or what a tokenizer gave, with its attention mask.
        tokenizer: for text, and for its padding token.
        lengths: real tokens of each row of a tensor padded on the right, whole numbers from 1 up.
        d_vocab: ids run from 0 to d_vocab - 1.
        n_ctx: longest row allowed; None for no limit.
        pad: id that fills shorter rows.
        prepend_bos: of text, whether a BOS stands before it; None for the tokenizer's own way.

    Raises:
        InputError: see the module.
    """
    mask = None
    tokens = ids_of(tokens)
    if isinstance(tokens, Mapping):
        tokens, mask = _output(tokens)
    if isinstance(tokens, np.ndarray):
        numbers = tokens.dtype.kind in "iufcb"
        tokens = torch.from_numpy(np.ascontiguousarray(tokens)) if numbers else tokens.tolist()
    if isinstance(tokens, Tensor):
        laid = _padded(_rectangle(tokens), tokenizer, lengths, mask)
    else:
        if lengths is not None:
            raise InputError("lengths are given with a tensor of tokens only; lists and text know theirs")
        texts, rows = _rows(tokens, tokenizer, prepend_bos)
        _check_ids([token for row in rows for token in row], d_vocab)
        counts = [len(row) for row in rows]
        if 0 in counts:
            raise InputError(f"prompt {counts.index(0)} is empty, expected at least one token")
        filled = torch.tensor([row + [pad] * (max(counts) - len(row)) for row in rows], dtype=torch.long)
        if len(set(counts)) > 1:
            if mask is not None:
                raise InputError("an attention mask was given for rows of unequal length, expected rows of one length")
            laid = Layout(TokenBatch(filled, torch.tensor(counts)), None)
        else:
            laid = Layout(TokenBatch(filled, None), None) if texts else _padded(filled, tokenizer, None, mask)
    _check(laid.batch.tokens, d_vocab, n_ctx)
    return laid


def encode(text: str, tokenizer: Any, prepend_bos: bool | None = None) -> list[int]:
    """The ids of a text, special tokens as the tokenizer adds them, with one BOS at most.

    Words that the tokenizer does not know are warned about, since the model cannot see them.

    Args:
        text: no empty one.
        tokenizer: of the model.
        prepend_bos: whether a BOS stands before the text; None for the tokenizer's own way.

    Raises:
        InputError: for an empty text, one that is no valid Unicode, without a tokenizer, or with a BOS asked of a
            tokenizer that has none.
    """
    if not text:
        raise InputError("an empty text was given, expected a prompt of at least one token")
    if not sound(text):
        raise InputError(f"text {shown(text)} is no valid Unicode: {BROKEN}")
    if tokenizer is None:
        raise InputError(
            f"text {shown(text)} needs a tokenizer; save one into the model's folder "
            "(tokenizer.save_pretrained), give one to HybridLens, or pass token ids"
        )
    ids = begun(cast(list[int], tokenizer(text)["input_ids"]), tokenizer, prepend_bos)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in ids:
        warnings.warn(
            f"the tokenizer does not know {ids.count(unknown)} of the {len(ids)} tokens of {shown(text)}; "
            f"the model sees {tokenizer.unk_token} in their place",
            stacklevel=2,
        )
    return ids


def to_strings(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Each token as the piece of text it stands for."""
    return [cast(str, tokenizer.decode([i])) for i in ids]


def rows_of_ids(tokens: Any, d_vocab: int) -> list[list[int]]:
    """Rows of ids as they were given, none of them too many or too few: for reading them as text.

    Raises:
        InputError: anything but one row or several of ids of the vocabulary.
    """
    if isinstance(tokens, str):
        raise InputError(f"the text {shown(tokens)} was given, expected ids of tokens")
    tokens = ids_of(tokens)
    if isinstance(tokens, Mapping):
        tokens, _ = _output(cast(Mapping[str, Any], tokens))
    if isinstance(tokens, np.ndarray):
        tokens = tokens.tolist()
    if isinstance(tokens, Tensor):
        rows = cast(list[list[int]], _rectangle(tokens.reshape(1) if tokens.ndim == 0 else tokens).tolist())
    else:
        rows = [[]] if isinstance(tokens, Sequence) and not len(tokens) else _rows(tokens, None)[1]
    _check_ids((token for row in rows for token in row), d_vocab)
    return rows


def ids_of(given: Any) -> Any:
    """The ids of a prompt that knows them, or of each of several; anything else as it is."""
    if isinstance(given, (str, Tensor, np.ndarray, Mapping)):
        return given
    if isinstance(given, Encoded):
        return given.tokens
    if isinstance(given, (list, tuple)) and given and all(isinstance(one, Encoded) for one in given):
        return [one.tokens for one in given]
    return given


def _output(given: Mapping[str, Any]) -> tuple[Any, Any]:
    """The ids of a tokenizer's output, and its attention mask, or None."""
    other = [str(name) for name in given if name not in OUTPUT]
    if "input_ids" not in given or other:
        names = ", ".join(map(str, given)) or "nothing"
        raise InputError(f"a mapping of {names[:80]} was given as tokens, expected input_ids and attention_mask alone")
    return given["input_ids"], given.get("attention_mask")


def _rectangle(tokens: Tensor) -> Tensor:
    """Integer ids [batch, pos]."""
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise InputError(f"tokens have dtype {tokens.dtype}, expected integer ids")
    rows = tokens.long()[None] if tokens.ndim == 1 else tokens.long()
    if rows.ndim != 2:
        raise InputError(f"tokens have shape {list(rows.shape)}, expected [batch, pos]")
    return rows


def _padded(tokens: Tensor, tokenizer: Any, lengths: Sequence[int] | Lengths | None, mask: Any) -> Layout:
    """Rows of one width, with what is known of their padding."""
    if mask is not None:
        if lengths is not None:
            raise InputError("lengths were given beside an attention mask, which says them; give one of the two")
        return moved(tokens, mask_of(mask, tokens), "the attention mask")
    if lengths is None:
        return found(tokens, tokenizer)
    try:
        counts = torch.as_tensor(lengths, device=tokens.device)
    except (OverflowError, ValueError, RuntimeError) as error:
        raise InputError(f"lengths = {shown(lengths)} given, but rows have {tokens.shape[1]} tokens") from error
    if counts.shape != tokens.shape[:1]:
        raise InputError(f"{counts.numel()} lengths given for {tokens.shape[0]} rows of tokens")
    for row, length in enumerate(counts.tolist()):
        if length < 1:
            raise InputError(f"prompt {row} is empty, expected at least one token")
        if length > tokens.shape[1]:
            raise InputError(f"a length of {length} given, but rows have {tokens.shape[1]} tokens")
    return Layout(TokenBatch(tokens, None if bool((counts == tokens.shape[1]).all()) else counts), None)


def _rows(tokens: Any, tokenizer: Any, prepend_bos: bool | None = None) -> tuple[bool, list[list[int]]]:
    """Whether text was given, and the ids of each row."""
    if isinstance(tokens, str):
        return True, [encode(tokens, tokenizer, prepend_bos)]
    unordered = isinstance(tokens, (set, frozenset)) or hasattr(tokens, "keys")
    if not isinstance(tokens, Iterable) or unordered or isinstance(tokens, (bytes, bytearray, memoryview)):
        raise InputError(f"tokens are {shown(tokens)}, {EXPECTED}")
    items = list(cast(Iterable[Any], tokens))
    if not items:
        raise InputError("a batch of no rows was given, expected at least one prompt")
    if all(isinstance(item, str) for item in items):
        return True, [encode(item, tokenizer, prepend_bos) for item in items]
    if all(map(is_id, items)):
        return False, [[int(item) for item in items]]
    if all(isinstance(item, (list, tuple, range)) or getattr(item, "ndim", 0) == 1 for item in items):
        rows: list[list[Any]] = [item.tolist() if hasattr(item, "tolist") else list(item) for item in items]
        wrong = [i for row in rows for i in row if not is_id(i)]
        if wrong:
            raise InputError(f"{shown(wrong[0])} stands among the ids, expected whole numbers")
        return False, [[int(i) for i in row] for row in rows]
    kinds = sorted({type(item).__name__ for item in items})
    raise InputError(f"tokens are a list of {', '.join(kinds)}, expected ids, lists of ids, or strings")


def is_id(item: object) -> bool:
    """Whether this is a whole number, of Python, numpy or torch, and no truth value."""
    if isinstance(item, Tensor):
        return item.ndim == 0 and not (item.is_floating_point() or item.is_complex() or item.dtype == torch.bool)
    return isinstance(item, Integral) and item is not True and item is not False


def _check_ids(ids: Iterable[int], d_vocab: int) -> None:
    wrong = next((token for token in ids if not 0 <= token < d_vocab), None)
    if wrong is not None:
        raise InputError(f"token {shown(wrong)} is outside the vocabulary, expected 0..{d_vocab - 1}")


def _check(tokens: Tensor, d_vocab: int, n_ctx: int | None) -> None:
    if tokens.shape[0] == 0:
        raise InputError("a batch of no rows was given, expected at least one prompt")
    if tokens.shape[1] == 0:
        raise InputError("prompt 0 is empty, expected at least one token")
    check_context(tokens.shape[1], n_ctx)
    if tokens.device.type == "meta":
        return
    _check_ids(torch.stack(tokens.aminmax()).tolist(), d_vocab)


def check_context(length: int, n_ctx: int | None) -> None:
    """Refuse a sequence longer than the model's context.

    Raises:
        InputError: when `length` exceeds `n_ctx`.
    """
    if n_ctx is not None and length > n_ctx:
        raise InputError(f"{length} tokens given, but the model's context is {n_ctx}; shorten the prompt")
