"""Two prompts side by side: of equal length, and where they differ.

A value is put in at the position that it was taken from, so that prompts of unequal length cannot be patched; they are
refused, with the place where they part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.shapes import Tokens
from hybridlens.tokens import TokensLike, to_strings


class Difference(NamedTuple):
    """A position at which two prompts have different tokens."""

    position: int
    clean: str
    corrupt: str


def token_strings(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Each token as text, or, without a tokenizer, as its id."""
    return [str(i) for i in ids] if tokenizer is None else to_strings(ids, tokenizer)


def differences(clean: Sequence[int], corrupt: Sequence[int], tokenizer: Any) -> list[Difference]:
    """Where two prompts of equal length differ.

    Raises:
        InputError: they are of unequal length.
    """
    check_lengths(clean, corrupt, tokenizer)
    strings = token_strings(clean, tokenizer), token_strings(corrupt, tokenizer)
    places = [place for place, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b]
    return [Difference(place, strings[0][place], strings[1][place]) for place in places]


def check_lengths(clean: Sequence[int], corrupt: Sequence[int], tokenizer: Any, other: str = "the corrupt") -> None:
    """Refuse prompts of unequal length; `other` says in errors which prompt the second is.

    Raises:
        InputError: with where they part.
    """
    if len(clean) == len(corrupt):
        return
    shorter = min(len(clean), len(corrupt))
    place = next((i for i in range(shorter) if clean[i] != corrupt[i]), shorter)
    sides = [" ".join(token_strings(ids[place : place + 3], tokenizer)) or "its end" for ids in (clean, corrupt)]
    raise InputError(
        f"the clean prompt has {len(clean)} tokens and {other} one {len(corrupt)}; they part at position {place} "
        f"({sides[0]!r} and {sides[1]!r}): give prompts of equal length, whose tokens stand at the same positions"
    )


def aligned(lens: HybridLens, clean: TokensLike, corrupt: TokensLike) -> tuple[Tokens, Tokens]:
    """Two prompts of equal length, [1 p] each.

    Raises:
        InputError: several prompts given as one, or prompts of unequal length.
    """
    rows = one_prompt(lens, clean, "clean"), one_prompt(lens, corrupt, "corrupt")
    check_lengths(rows[0][0].tolist(), rows[1][0].tolist(), lens.tokenizer)
    return rows


def one_prompt(lens: HybridLens, given: TokensLike, name: str) -> Tokens:
    """One prompt [1 p].

    Raises:
        InputError: several were given.
    """
    tokens = lens.batch(given).tokens
    if tokens.shape[0] != 1:
        raise InputError(f"{tokens.shape[0]} {name} prompts were given as one, expected one; patch pair by pair")
    return tokens


def shared_beginning(clean: Tokens, corrupt: Tokens) -> int:
    """How many tokens two prompts have in common from the start: up to there, all activations are the same."""
    differ = (clean[0] != corrupt[0]).nonzero()[:, 0]
    return int(differ[0]) if differ.numel() else clean.shape[1]
