"""Which tokens an edit acts on: absolute positions, the same for all rows or each row's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool
from torch import Tensor

from analyses.stream.reading import picked
from hybridlens.boundary_words import shown
from hybridlens.errors import HookFunctionError, InputError
from hybridlens.running import PosSlice
from hybridlens.shapes import Positions


class Places(NamedTuple):
    """Positions that are steered, the same for all rows or each row's own."""

    whole: tuple[int, int | None, int] | None
    """From, up to (None: without end), in steps of, in every row."""
    rows: list[frozenset[int]]
    """Of each row, where `whole` is None; or one for all."""
    each: bool
    """Whether rows have their own."""

    def mask(self, positions: Positions, n: int) -> Bool[Tensor, "batch pos"]:
        """True where a token is steered.

        Raises:
            HookFunctionError: there are other rows than `lengths` was given for.
        """
        positions = positions.expand(n, -1)
        if self.whole is not None:
            start, stop, step = self.whole
            inside = (positions >= start) & ((positions - start) % step == 0)
            return inside if stop is None else inside & (positions < stop)
        rows = self.rows if self.each else self.rows * n
        if len(rows) != n:
            raise HookFunctionError(f"steering was given lengths of {len(rows)} rows, but the batch has {n}")
        chosen = [[place in own for place in row] for row, own in zip(positions.tolist(), rows, strict=True)]
        return torch.tensor(chosen, dtype=torch.bool, device=positions.device).view(positions.shape)


def places_of(positions: PosSlice, lengths: Sequence[int] | None) -> Places:
    """Which positions are meant.

    Args:
        positions: absolute: one, a slice as a tuple, a list; with `lengths` among each prompt's own tokens.
        lengths: tokens of each row's prompt; None where they are not known.

    Raises:
        InputError: positions counted from the end without `lengths`, or outside a prompt.
    """
    if lengths is not None:
        return Places(None, [frozenset(picked(length, positions)) for length in lengths], True)
    given: Any = positions
    if isinstance(given, tuple):
        ends = cast(tuple[Any, ...], given)
        whole = all(end is None or (isinstance(end, int) and end >= 0) for end in ends)
        if whole and 2 <= len(ends) <= 3 and (len(ends) == 2 or ends[2] != 0):
            return Places((ends[0] or 0, ends[1], (ends[2] if len(ends) == 3 else None) or 1), [], False)
    else:
        listed: Any = given.tolist() if isinstance(given, Tensor) else given
        every: list[Any] = cast(list[Any], listed) if isinstance(listed, list) else [listed]
        if all(isinstance(place, int) and not isinstance(place, bool) and place >= 0 for place in every):
            return Places(None, [frozenset(every)], False)
    raise InputError(
        f"positions {shown(positions)} given, expected positions from the text's start: one, (start, stop), or a list; "
        "those counted from the end need lengths=, the tokens of each row's prompt"
    )
