"""Padding: found in what was given, moved to the right, and put back in what comes out.

The network reads rows that begin at position 0 and are padded on the right, where a causal model never looks. What
is given may be padded on either side: an attention mask says so, or the tokenizer's padding token at an end of a row.
`Layout` keeps both forms apart: `batch` is what is computed, and `as_given` turns a result to the positions of the
tokens as they were given.

How it fails: a mask with a hole, a row of nothing but padding, and padding that cannot be told from text, since the
tokenizer pads with a token that also ends or begins texts, raise `InputError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hybridlens.boundary_words import shown
from hybridlens.devices import sent
from hybridlens.errors import InputError
from hybridlens.shapes import Lengths, Tokens

Side: TypeAlias = Literal["left", "right"]

UNTOLD = "say how many tokens of each row are text with lengths=, or pass the tokenizer's whole output or the texts"


class TokenBatch(NamedTuple):
    """Rows of tokens, padded on the right."""

    tokens: Tokens
    lengths: Lengths | None
    """Real tokens of each row; None where all rows are full."""


class Layout(NamedTuple):
    """Rows as they are computed, and where their tokens stood when they were given."""

    batch: TokenBatch
    left: tuple[int, ...] | None
    """Padding on the left of each row as given; None where there was none."""

    def as_given(self, value: Tensor, axis: int = 1) -> Tensor:
        """A result [batch, …] with its axis of positions turned to those of the tokens as given."""
        if self.left is None:
            return value
        return torch.stack([row.roll(n, axis - 1) for row, n in zip(value, self.left, strict=True)])

    def as_computed(self, value: Tensor) -> Tensor:
        """A tensor [batch, pos, …] at the positions given, turned to those that are computed."""
        if self.left is None:
            return value
        return torch.stack([row.roll(-n, 0) for row, n in zip(value, self.left, strict=True)])

    def real(self, device: torch.device) -> Bool[Tensor, "batch pos"] | None:
        """False at positions, as computed, that hold padding; None where all rows are full."""
        lengths = self.batch.lengths
        if lengths is None:
            return None
        return torch.arange(self.batch.tokens.shape[1], device=device) < sent(lengths, device)[:, None]

    def blanked(self, value: Tensor) -> Tensor:
        """A result [batch, pos, …] at the positions given; at those of padding, which mean nothing, NaN."""
        real = self.real(value.device)
        if real is None:
            return value
        padding = ~real.view(*real.shape, *[1] * (value.ndim - 2))
        return self.as_given(value.masked_fill(padding, torch.nan))

    def positions(self, wanted: Any) -> Int[Tensor, "batch chosen"]:
        """The positions of each row that an index, list or slice names, counted among the row's own tokens.

        Args:
            wanted: what numpy takes as an index of one axis; -1 is each row's last token.

        Raises:
            InputError: a row has no such position, or a slice that holds more of one row than of another.
        """
        tokens, lengths = self.batch
        sizes = [tokens.shape[1]] if lengths is None else lengths.tolist()
        rows: list[list[int]] = []
        ends = (wanted.start, wanted.stop, wanted.step) if isinstance(wanted, slice) else wanted
        named = shown(ends.tolist() if isinstance(ends, np.ndarray) else ends)
        for size in sizes:
            try:
                rows.append(np.arange(size)[wanted].reshape(-1).tolist())
            except (IndexError, TypeError, ValueError, OverflowError) as error:
                raise InputError(f"pos_slice {named} given, but a row has the positions 0..{size - 1}") from error
        if len({len(row) for row in rows}) > 1:
            raise InputError(
                f"pos_slice {named} holds {len(rows[0])} positions of row 0 and other numbers of others, since rows "
                f"have {', '.join(map(str, sizes[:8]))} tokens; name positions that all have, such as -1 or 0"
            )
        return torch.tensor(rows * (len(tokens) // len(rows)), dtype=torch.long, device=tokens.device)


def chosen(value: Tensor, axis: int, index: Int[Tensor, "batch chosen"]) -> Tensor:
    """The positions `index` of each row of a result [batch, …], along its axis of positions."""
    shape = [1] * value.ndim
    shape[0], shape[axis] = index.shape
    sizes = list(value.shape)
    sizes[axis] = index.shape[1]
    return value.gather(axis, index.to(value.device).view(shape).expand(sizes))


def moved(tokens: Tokens, real: Bool[Tensor, "batch pos"], what: str) -> Layout:
    """Rows with their padding on the right.

    Args:
        tokens: as given.
        real: True where a token is text.
        what: what said so, for errors.

    Raises:
        InputError: text that is not in one piece, or a row of none.
    """
    counts = real.sum(dim=1)
    left = real.int().argmax(dim=1)
    places = torch.arange(tokens.shape[1], device=tokens.device)
    inside = (places >= left[:, None]) & (places < (left + counts)[:, None])
    for row, (count, whole) in enumerate(zip(counts.tolist(), (inside == real).all(dim=1).tolist(), strict=True)):
        if count == 0:
            raise InputError(f"prompt {row} is empty, expected at least one token: {what} says that all is padding")
        if not whole:
            raise InputError(f"{what} of row {row} has a hole, expected the text of a row in one piece")
    if bool(real.all()):
        return Layout(TokenBatch(tokens, None), None)
    shift = tuple(left.tolist()) if bool(left.any()) else None
    if shift is not None:
        tokens = torch.stack([row.roll(-n) for row, n in zip(tokens, shift, strict=True)])
    return Layout(TokenBatch(tokens, counts), shift)


def sided(laid: Layout, given: Any, lengths: object, side: Side | None) -> Layout:
    """Rows that were given, or are to be given back, padded on a side.

    Args:
        laid: the rows, read without regard to the side.
        given: as they were given. Rows of different lengths, and texts, have no padding yet: results are laid out with
            theirs on that side.
        lengths: as given beside a tensor; then its padding is on that side.
        side: "left" or "right"; None for what the rows say themselves, else right.

    Raises:
        InputError: the rows come padded, and on the other side; or it is no side.
    """
    if side not in (None, "left", "right"):
        raise InputError(f"padding_side = {shown(side)} given, expected 'left' or 'right'")
    tokens, counts = laid.batch
    if side is None or counts is None:
        return laid
    width = tokens.shape[1]
    if lengths is not None:
        if side == "right":
            return laid
        places = torch.arange(width, device=tokens.device)
        return moved(tokens, places >= (width - counts)[:, None], "lengths")
    other = "right" if laid.left is None else "left"
    if side != other and _full_rows(given, width):
        raise InputError(f"padding_side = {side!r} given, but the rows come padded on the {other}; leave it out")
    left = None if side == "right" else tuple(width - count for count in counts.tolist())
    return Layout(laid.batch, left)


def _full_rows(given: Any, width: int) -> bool:
    """Whether what was given as tokens are rows of one width, padding and all, and not text."""
    if isinstance(given, Mapping):
        return _full_rows(cast(Mapping[str, Any], given)["input_ids"], width)
    if isinstance(given, str):
        return False
    return all(not isinstance(row, str) and (not hasattr(row, "__len__") or len(row) == width) for row in given)


def found(tokens: Tokens, tokenizer: Any) -> Layout:
    """Rows whose ends say which of their tokens are padding: the tokenizer's padding token.

    Raises:
        InputError: the tokenizer pads with a token that has another meaning, and it cannot be told which is meant.
    """
    pad = padding_token(tokenizer)
    shared = pad is None
    pad = getattr(tokenizer, "pad_token_id", None) if shared else pad
    if pad is None or tokens.device.type == "meta" or not bool((tokens == pad).any()):
        return Layout(TokenBatch(tokens, None), None)
    text = tokens != pad
    before = text.int().cumsum(dim=1) == 0
    after = text.flip(1).int().cumsum(dim=1).flip(1) == 0
    if not shared:
        return moved(tokens, ~(before | after), "its padding")
    for side, runs in (("begins", before.sum(dim=1).tolist()), ("ends", after.sum(dim=1).tolist())):
        if max(runs) > 1 or len(set(runs)) > 1:
            row = runs.index(max(runs))
            raise InputError(
                f"row {row} {side} with {runs[row]} tokens {pad} ({tokenizer.pad_token}), which may be padding or "
                f"text, since this tokenizer's padding token has another meaning too; {UNTOLD}"
            )
    return Layout(TokenBatch(tokens, None), None)


def padding_token(tokenizer: Any) -> int | None:
    """The tokenizer's padding token, where it means nothing else; None where it has none of its own."""
    pad = getattr(tokenizer, "pad_token_id", None)
    others = [getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "unk")]
    return None if pad is None or pad in others else int(pad)


def mask_of(given: Any, tokens: Tokens) -> Bool[Tensor, "batch pos"]:
    """An attention mask as truth values.

    Raises:
        InputError: it is of another shape than the tokens, or holds other numbers than 0 and 1.
    """
    try:
        mask = torch.as_tensor(np.asarray(given) if isinstance(given, Sequence) else given, device=tokens.device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"the attention mask is {shown(given)}, expected 0s and 1s in the shape of the ids") from error
    mask = mask[None] if mask.ndim == 1 else mask
    if mask.shape != tokens.shape:
        raise InputError(f"the attention mask has shape {list(mask.shape)}, but the tokens have {list(tokens.shape)}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError("the attention mask holds other numbers than 0 and 1")
    return mask == 1
