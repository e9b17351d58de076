"""Repeated random tokens, the keys that heads are looked at for, and how much of their attention these get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.heads.attended import Shares
from hybridlens.boundary import Positive, Seed, public
from hybridlens.devices import sent
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.shapes import Tokens
from hybridlens.tokens import check_context

SCORES: Mapping[str, str] = {
    "induction": "attention to what followed earlier copies of the token",
    "previous": "attention to the token before",
    "duplicate": "attention to earlier copies of the token",
}
"""Name of a score -> what it is."""

MEASURES = ("mean", "share")

Wanted: TypeAlias = Bool[Tensor, "batch query key"]


@public
def repeated_tokens(lens: HybridLens, rows: Positive, period: Positive, seed: Seed = 0) -> Tokens:
    """Random prompts [row, pos]: the BOS, if the tokenizer has one, and different random tokens, all of them twice.

    Special tokens of the tokenizer are left out.

    Raises:
        InputError: a vocabulary or context too small.
    """
    special = set[int](getattr(lens.tokenizer, "all_special_ids", None) or ())
    known = torch.tensor([token for token in range(lens.cfg.d_vocab) if token not in special])
    if period > len(known):
        raise InputError(
            f"{period} different tokens asked for, but the vocabulary has {len(known)}; give a shorter period"
        )
    bos = getattr(lens.tokenizer, "bos_token_id", None)
    check_context(2 * period + (bos is not None), lens.cfg.n_ctx)
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.stack([known[torch.randperm(len(known), generator=rng)[:period]] for _ in range(rows)])
    first = torch.full((rows, 0 if bos is None else 1), 0 if bos is None else bos)
    return sent(torch.cat([first, drawn, drawn], dim=1), lens.device)


def looked_for(tokens: Tokens, exclude_first: bool = False) -> dict[str, Wanted]:
    """Which keys each query is asked for, by score; the first key never where it is excluded.

    Raises:
        InputError: no query has such a key: no token occurs twice, or there are too few.
    """
    length = tokens.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril(-1)
    duplicate = (tokens[:, :, None] == tokens[:, None]) & earlier
    nothing = torch.zeros_like(duplicate[:, :, :1])
    induction = torch.cat([nothing, duplicate[:, :, :-1]], dim=2)
    previous = (earlier & ~earlier.tril(-2)).expand_as(duplicate)
    keys = {"induction": induction, "previous": previous, "duplicate": duplicate}
    if exclude_first:
        keys = {name: torch.cat([nothing, wanted[:, :, 1:]], dim=2) for name, wanted in keys.items()}
    for name, wanted in keys.items():
        if not bool(wanted.any(dim=(1, 2)).all()):
            raise InputError(f"a prompt has no query for the {name} score; give prompts in which a token occurs twice")
    return keys


def without(shares: Shares, first: bool, current: bool) -> Shares:
    """Shares with those of the first key, and of the query's own token, at 0 where they are left out."""
    if not first and not current:
        return shares
    shares = shares.clone()
    if first:
        shares[..., 0] = 0.0
    if current:
        shares.diagonal(dim1=-2, dim2=-1).zero_()
    return shares


def measured_of(shares: Shares, wanted: Wanted, measure: str) -> Float[Tensor, "head"]:
    """One score of each head of a layer."""
    paid = (shares * wanted[:, None]).sum(dim=-1, dtype=torch.float64)
    if measure == "mean":
        asked = wanted.any(dim=-1)
        return (paid.sum(dim=-1) / asked.sum(dim=-1)[:, None]).mean(dim=0)
    total = shares.sum(dim=(-2, -1), dtype=torch.float64)
    return torch.where(total > 0, paid.sum(dim=-1) / total, 0.0).mean(dim=0)
