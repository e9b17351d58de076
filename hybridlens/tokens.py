"""From what a user may give as tokens to a batch of rows, and back to text.

`tokens` is a tensor [batch, pos], a list of ids, a list of lists, a string or a list of strings. Rows
of different lengths are padded on the right, where a causal model never looks, and their lengths
travel with them, so that each row gives what it gives alone.

How it fails: an empty prompt, a batch of none, ids outside the vocabulary, a prompt longer than the
context and text without a tokenizer each raise `InputError`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from hybridlens.errors import InputError
from hybridlens.shapes import Lengths, Tokens

TokensLike: TypeAlias = Tensor | np.ndarray | str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]


class TokenBatch(NamedTuple):
    """Rows of tokens, padded on the right."""

    tokens: Tokens
    lengths: Lengths | None
    """Real tokens of each row; None where all rows are full."""


def as_batch(
    tokens: TokensLike,
    tokenizer: Any,
    *,
    lengths: Sequence[int] | Tensor | None = None,
    d_vocab: int,
    n_ctx: int | None,
    pad: int = 0,
) -> TokenBatch:
    """Check what was given and lay it out as rows.

    Args:
        tokens: a tensor [batch, pos] or [pos], ids, or text.
        tokenizer: for text.
        lengths: real tokens of each row of a padded tensor.
        d_vocab: ids run from 0 to d_vocab - 1.
        n_ctx: longest row allowed; None for no limit.
        pad: id that fills shorter rows.

    Raises:
        InputError: see the module.
    """
    if isinstance(tokens, np.ndarray):
        tokens = torch.from_numpy(tokens)
    if isinstance(tokens, Tensor):
        batch = _from_tensor(tokens, lengths)
    else:
        if lengths is not None:
            raise InputError("lengths are given with a tensor of tokens only; lists and text know theirs")
        rows = _rows(tokens, tokenizer)
        longest = max((len(row) for row in rows), default=0)
        padded = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], dtype=torch.long)
        counts = [len(row) for row in rows]
        ragged = torch.tensor(counts) if len(set(counts)) > 1 else None
        batch = TokenBatch(padded.reshape(len(rows), longest), ragged)
        _check_lengths(counts)
    _check(batch.tokens, d_vocab, n_ctx)
    return batch


def encode(text: str, tokenizer: Any) -> list[int]:
    """The ids of a text, special tokens as the tokenizer adds them.

    Words that the tokenizer does not know are warned about, since the model cannot see them.

    Raises:
        InputError: for an empty text, or without a tokenizer.
    """
    if not text:
        raise InputError("an empty text was given, expected a prompt of at least one token")
    if tokenizer is None:
        raise InputError(f"text {_short(text)} needs a tokenizer; give one to HybridLens, or pass token ids")
    ids = cast(list[int], tokenizer(text)["input_ids"])
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in ids:
        warnings.warn(
            f"the tokenizer does not know {ids.count(unknown)} of the {len(ids)} tokens of {_short(text)}; "
            f"the model sees {tokenizer.unk_token} in their place",
            stacklevel=2,
        )
    return ids


def to_strings(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Each token as the piece of text it stands for."""
    return [cast(str, tokenizer.decode([i])) for i in ids]


def _from_tensor(tokens: Tensor, lengths: Sequence[int] | Tensor | None) -> TokenBatch:
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise InputError(f"tokens have dtype {tokens.dtype}, expected integer ids")
    tokens = tokens.long()
    if tokens.ndim == 1:
        tokens = tokens[None]
    if tokens.ndim != 2:
        raise InputError(f"tokens have shape {list(tokens.shape)}, expected [batch, pos]")
    if lengths is None:
        return TokenBatch(tokens, None)
    counts = torch.as_tensor(lengths, device=tokens.device)
    if counts.is_floating_point() or counts.dtype == torch.bool:
        raise InputError(f"lengths have dtype {counts.dtype}, expected whole numbers")
    if counts.shape != tokens.shape[:1]:
        raise InputError(f"{counts.numel()} lengths given for {tokens.shape[0]} rows of tokens")
    _check_lengths(counts.tolist())
    if int(counts.max()) > tokens.shape[1]:
        raise InputError(f"a length of {int(counts.max())} given, but rows have {tokens.shape[1]} tokens")
    return TokenBatch(tokens, None if bool((counts == tokens.shape[1]).all()) else counts)


def _rows(tokens: Any, tokenizer: Any) -> list[list[int]]:
    if isinstance(tokens, str):
        return [encode(tokens, tokenizer)]
    if isinstance(tokens, Mapping):
        raise InputError("a tokenizer's whole output was given, expected its ids; pass it as tokens['input_ids']")
    if not isinstance(tokens, Iterable):
        raise InputError(f"tokens are {tokens!r}, expected text, ids, lists of either, or a tensor")
    items = list(cast(Iterable[Any], tokens))
    if not items:
        raise InputError("a batch of no rows was given, expected at least one prompt")
    if all(isinstance(item, str) for item in items):
        return [encode(item, tokenizer) for item in items]
    if all(_is_id(item) for item in items):
        return [[int(item) for item in items]]
    if all(isinstance(item, (list, tuple, Tensor)) for item in items):
        rows = [item.tolist() if isinstance(item, Tensor) else list(item) for item in items]
        wrong = next((i for row in rows for i in row if not _is_id(i)), None)
        if wrong is not None:
            raise InputError(f"{wrong!r} stands among the ids, expected whole numbers")
        return [[int(i) for i in row] for row in rows]
    kinds = sorted({type(item).__name__ for item in items})
    raise InputError(f"tokens are a list of {', '.join(kinds)}, expected ids, lists of ids, or strings")


def _is_id(item: object) -> bool:
    return isinstance(item, Integral) and item is not True and item is not False


def _check_lengths(lengths: Sequence[int]) -> None:
    for row, length in enumerate(lengths):
        if length < 1:
            raise InputError(f"prompt {row} is empty, expected at least one token")


def _check(tokens: Tensor, d_vocab: int, n_ctx: int | None) -> None:
    if tokens.shape[0] == 0:
        raise InputError("a batch of no rows was given, expected at least one prompt")
    if tokens.shape[1] == 0:
        raise InputError("prompt 0 is empty, expected at least one token")
    check_context(tokens.shape[1], n_ctx)
    if tokens.device.type == "meta":
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= d_vocab:
        wrong = low if low < 0 else high
        raise InputError(f"token {wrong} is outside the vocabulary, expected 0..{d_vocab - 1}")


def check_context(length: int, n_ctx: int | None) -> None:
    """Refuse a sequence longer than the model's context.

    Raises:
        InputError: when `length` exceeds `n_ctx`.
    """
    if n_ctx is not None and length > n_ctx:
        raise InputError(f"{length} tokens given, but the model's context is {n_ctx}; shorten the prompt")


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
