"""The token before a text: at most one, whether the text, the tokenizer or the user puts it there.

How it fails: a BOS asked of a tokenizer that has none raises `InputError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hybridlens.errors import InputError


def begun(ids: Sequence[int], tokenizer: Any, prepend_bos: bool | None = None) -> list[int]:
    """The ids of a text, with one BOS before it at most.

    Args:
        ids: as the tokenizer gives them; a text that begins with its BOS may have two.
        tokenizer: of the model.
        prepend_bos: whether a BOS is put before the text; None for the tokenizer's own way. With False a text that
            begins with its BOS keeps that one.

    Raises:
        InputError: for True, where the tokenizer has no BOS.
    """
    bos: int | None = getattr(tokenizer, "bos_token_id", None)
    text = list(ids)
    if bos is None:
        if prepend_bos:
            raise InputError("prepend_bos=True was given, but the tokenizer has no BOS; leave it out, or set bos_token")
        return text
    count = next((place for place, token in enumerate(text) if token != bos), len(text))
    if prepend_bos is None:
        wanted = count > 0
    else:
        wanted = prepend_bos or count > prepends_bos(tokenizer)
    return [bos] * wanted + text[count:]


def prepends_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer puts its BOS before every text; False for no tokenizer."""
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        return False
    return list(tokenizer("a")["input_ids"][:1]) == [bos]
