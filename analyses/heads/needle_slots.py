"""A needle's positions, and which key slots of a pass hold them.

Positions are absolute and looked up in tables [row, position] that are made before anything runs, so that a pass
over many rows, each with its own needle, costs one gather.

How it fails: a needle that is no span, spans or set of positions raises `InputError`; a batch of another size than
the tables', `HookFunctionError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from analyses.heads.selection import check_rows
from hybridlens.devices import sent
from hybridlens.errors import HookFunctionError, InputError
from hybridlens.hooks import HookPoint
from hybridlens.niah import Span
from hybridlens.shapes import Pattern
from hybridlens.slots import KeySlots

Needle: TypeAlias = Span | Sequence[Span] | AbstractSet[int]
"""N: a half-open range of absolute token positions, several ranges (JRT has two, a control none), or a set of
positions."""


def positions_of(needle: Needle) -> list[int]:
    """The positions of a needle, ascending.

    Raises:
        InputError: for anything but a span, spans, or a set of positions, none of them below 0 and no span empty.
    """
    spans: Any = needle  # whatever a caller without a type checker hands over
    if isinstance(needle, AbstractSet):
        spans = [(position, position + 1) if type(position) is int else position for position in needle]
    elif isinstance(spans, tuple) and all(isinstance(end, int) for end in spans):
        spans = [spans] if spans else []
    found: set[int] = set()
    for span in spans if isinstance(spans, Sequence) else [spans]:
        match span:
            case (int(start), int(stop)) if 0 <= start < stop:
                found.update(range(start, stop))
            case _:
                raise InputError(
                    f"needle {needle!r} given, expected a span (start, stop) with 0 <= start < stop, a list of spans, "
                    "or a set of positions from 0 on"
                )
    return sorted(found)


class NeedleTables(NamedTuple):
    """What is known of each row before anything runs; one row where all are alike.

    The first column stands for slots that are not used, the last for all positions beyond any needle.
    """

    needle: Bool[Tensor, "rows position"]
    """True at needle positions."""
    kept: Bool[Tensor, "rows position"]
    """True where a weight is kept or, in `binary`, replaced."""
    binary: Int[Tensor, "binary"]
    """The rows of that mode."""


class NeedleSlots(NamedTuple):
    """The tables at the key slots of a pass, ready to be broadcast over heads and queries."""

    needle: Bool[Tensor, "batch 1 1 key"]
    kept: Bool[Tensor, "batch 1 1 key"]
    binary: Int[Tensor, "binary"]
    slots: KeySlots


def needle_tables(
    needles: Sequence[Needle], kept: Sequence[tuple[bool, bool]], binary: Sequence[bool], device: torch.device
) -> NeedleTables:
    """The tables of a batch.

    Args:
        needles: of each row.
        kept: of each row, whether weights stay at needle keys, and at all others.
        binary: of each row, whether needle keys get one number.
        device: where the tables are used.

    Raises:
        InputError: positions that are none.
    """
    positions = [positions_of(needle) for needle in needles]
    beyond = 1 + max((row[-1] for row in positions if row), default=-1)
    needle = torch.zeros(len(positions), beyond + 2, dtype=torch.bool)
    for row, found in enumerate(positions):
        needle[row, [position + 1 for position in found]] = True
    inside, outside = torch.tensor(kept).unbind(dim=1)
    stays = torch.where(needle, inside[:, None], outside[:, None])
    return NeedleTables(*(sent(table, device) for table in (needle, stays, torch.tensor(binary).nonzero()[:, 0])))


def look_up(tables: NeedleTables, pattern: Pattern, hook: HookPoint) -> NeedleSlots:
    """The tables at the slots of the pass that `hook` stands in.

    Raises:
        HookFunctionError: the batch has other rows than the tables, or the slots are not known.
    """
    slots, rows, batch, device = hook.slots, tables.needle.shape[0], pattern.shape[0], pattern.device
    if slots is None:
        raise HookFunctionError(f"'{hook.name}' does not say where its keys stand; use manipulations at hook_pattern")
    check_rows("modes", rows, batch, hook)
    at = (slots.key_positions + 1).clamp(max=tables.needle.shape[1] - 1)
    needle, kept = (table.to(device).expand(batch, -1).gather(1, at) for table in (tables.needle, tables.kept))
    binary = tables.binary.to(device)
    if rows == 1:
        binary = torch.arange(batch if binary.numel() else 0, device=device)
    return NeedleSlots(needle[:, None, None], kept[:, None, None], binary, slots)
