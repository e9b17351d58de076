"""What the functions of this package read: activations at hook points, of prompts of any lengths.

Prompts are read in batches of a few; of what they hold only what is asked for is kept, on the CPU. What follows the
position that is asked for is not read at all, since a causal model never looks there.

How it fails: a hook point that is no row of numbers a token (scores, patterns, what experts were chosen) raises
`InputError` with what would do.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.utilities.slice import Slice

from analyses.patching.alignment import places_of
from hybridlens.boundary_words import shown
from hybridlens.devices import sent
from hybridlens.errors import InputError
from hybridlens.hooks import HookFunction, HookPoint, check_name, reads_only
from hybridlens.model import HybridLens
from hybridlens.padding import TokenBatch
from hybridlens.running import PosSlice
from hybridlens.tokens import TokensLike

Key = TypeVar("Key", bound=Hashable)

BATCH = 16
"""Prompts read at once."""

LOGITS = 1 << 24
"""Logits held at once."""


def token_point(lens: HybridLens, name: str, what: str) -> str:
    """The hook point that a name stands for, which holds numbers for each token and nothing but.

    Args:
        lens: the model.
        name: of a hook point, or an alias.
        what: what is to be done there, as in "steering".

    Raises:
        UnknownNameError: there is no such point.
        InputError: it holds something for every two tokens, or whole numbers.
    """
    name = check_name(name, lens.hook_dict)
    axes = lens.hook_dict[name].axes
    if axes[:2] != ("b", "p") or "k" in axes or name.endswith("hook_expert_indices"):
        raise InputError(
            f"{what} needs a hook point with numbers for each token, but {name!r} has the axes {' '.join(axes)}; "
            "take one whose axes begin with b p, such as a residual stream, a recurrent write or a state"
        )
    return name


class Rows(NamedTuple):
    """A batch of prompts as it is read."""

    batch: TokenBatch
    first: int
    """Which prompt its first row is."""

    @property
    def valid(self) -> Bool[Tensor, "batch pos"]:
        """False at padding."""
        tokens, lengths = self.batch
        places = torch.arange(tokens.shape[1], device=tokens.device)
        if lengths is None:
            return torch.ones_like(tokens, dtype=torch.bool)
        return places < lengths.to(tokens.device)[:, None]


def rows_of(lens: HybridLens, prompts: TokensLike) -> list[list[int]]:
    """Each prompt as its own tokens, padding left out."""
    tokens, lengths = lens.batch(prompts)
    rows: list[list[int]] = tokens.tolist()
    return rows if lengths is None else [row[:n] for row, n in zip(rows, lengths.tolist(), strict=True)]


def batches(lens: HybridLens, rows: Sequence[Sequence[int]], size: int = BATCH) -> Iterator[Rows]:
    """Prompts in batches, in their order, padded on the right."""
    for first in range(0, len(rows), size):
        some = rows[first : first + size]
        lengths = torch.tensor([len(row) for row in some], device=lens.device)
        tokens = [[*row, *[lens.pad_token] * (int(lengths.max()) - len(row))] for row in some]
        equal = bool((lengths == lengths[0]).all())
        yield Rows(TokenBatch(torch.tensor(tokens, device=lens.device), None if equal else lengths), first)


def cut_at(
    lens: HybridLens, prompts: TokensLike, position: int | Sequence[int]
) -> tuple[list[list[int]], tuple[int, ...]]:
    """Each prompt up to its position, and the positions from its start.

    Args:
        lens: the model.
        prompts: of any lengths.
        position: of each, or one for all; counted from the end where below 0.

    Raises:
        InputError: not one position for each prompt, or one outside it.
    """
    rows = rows_of(lens, prompts)
    given = [position] * len(rows) if isinstance(position, int) else list(position)
    if len(given) != len(rows):
        raise InputError(f"{len(given)} positions given for {len(rows)} prompts, expected one for each, or one for all")
    positions = [places_of([place], len(row))[0] for place, row in zip(given, rows, strict=True)]
    return [row[: p + 1] for row, p in zip(rows, positions, strict=True)], tuple(positions)


def picked(size: int, positions: PosSlice) -> list[int]:
    """The positions of a prompt of `size` tokens that an index, a slice as a tuple, or a list names; None names all.

    Raises:
        InputError: the prompt has no such position.
    """
    try:
        return np.arange(size)[Slice.unwrap(cast(Any, positions)).slice].reshape(-1).tolist()
    except (IndexError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"positions {shown(positions)} given, but a prompt has the positions 0..{size - 1}; give a position, a "
            "slice as a tuple (start, stop), or a list"
        ) from error


def at_last(kept: dict[Key, Tensor], key: Key, last: Int[Tensor, "batch"]) -> HookFunction:
    """A hook function that keeps, under a key, what stands at each row's last token."""

    @reads_only
    def keep(x: Tensor, hook: HookPoint) -> None:
        kept[key] = x[torch.arange(len(last), device=x.device), sent(last, x.device)]

    return keep


@torch.no_grad()
def activations(
    lens: HybridLens,
    prompts: TokensLike,
    names: Sequence[str],
    position: int | Sequence[int] = -1,
    batch_size: int = BATCH,
) -> tuple[dict[str, Float[Tensor, "prompt *axes"]], tuple[int, ...]]:
    """What stands at hook points at one position of each prompt, float32 on the CPU, and the positions.

    Args:
        lens: the model; hooks that are on it act.
        prompts: of any lengths.
        names: hook points, as `token_point` gives them.
        position: of each prompt, or one for all; counted from the end where below 0.
        batch_size: prompts in one forward pass.

    Raises:
        InputError: not one position for each prompt, or one outside it.
    """
    rows, positions = cut_at(lens, prompts, position)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for read in batches(lens, [rows[row] for row in order], batch_size):
        kept: dict[str, Tensor] = {}
        last = read.valid.sum(dim=1) - 1
        with lens.hooks([(name, at_last(kept, name, last)) for name in names]):
            lens.network(*read.batch, last_only=True)
        for name, part in kept.items():
            parts[name].append(part.to("cpu", torch.float32))
    back = torch.tensor(order).argsort()
    return {name: torch.cat(found)[back] for name, found in parts.items()}, positions


def blocks_of(lens: HybridLens, n: int) -> int:
    """How many of `n` rows are unembedded at once."""
    return max(1, min(n, LOGITS // lens.cfg.d_vocab))
