"""Which keys the queries of a forward pass may look at, and where queries and keys stand in the text.

Keys are held in slots that the rows of a batch share. A slot's absolute position differs from row to row and
from pass to pass: a sliding window drops slots, a continued state puts held ones first, and rows of other
lengths leave slots unused. `KeySlots` says which is where; while attention runs, every attention hook function
finds it at ``hook.slots``.

What may be seen is a rule, not a tensor: `KeySlots.dense` makes the tensor for the queries and keys at hand, so that
a long pass can be gone through in blocks of queries, with the few keys that each block's window reaches
(`KeySlots.reached`), and no mask of all queries by all keys is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor

from hybridlens.shapes import AttentionMask, KeyPositions, Positions, Valid

KeptOfHeads: TypeAlias = Bool[Tensor, "batch head 1 key"]


@dataclass(frozen=True)
class KeySlots:
    """The queries and keys of a forward pass, or of a block of its queries; the same for layers of the same window."""

    query_positions: Positions
    """Absolute position of each query."""
    key_positions: KeyPositions
    """Absolute position of each key slot, -1 where a row does not use it."""
    causal: bool
    """The pass began with nothing: a query sees the keys made up to its own, padding or not."""
    window: int | None = None
    """Keys that a query sees, its own included; None: all up to its own."""
    open: bool = False
    """Every query sees every key, whatever the positions say."""
    valid: Valid | None = None
    """False at queries that are padding of a continued pass: they see everything, so that no softmax is empty."""
    kept: KeptOfHeads | None = None
    """False where a query head has lost a key."""
    first: int = 0
    """Index in the pass of the first query of this block; 0 when these are all."""
    first_key: int = 0
    """Index in the pass of the first key slot here."""

    @property
    def plain(self) -> bool:
        """Whether plain causal attention within the call is meant."""
        windowed = self.window is not None and self.query_positions.shape[1] > self.window
        return self.causal and not windowed and self.kept is None and self.first == self.first_key == 0

    def mask(self, device: torch.device) -> AttentionMask | None:
        """`dense`; None where plain causal attention is meant, or every query sees every key."""
        return None if self.open or self.plain else self.dense(device)

    def dense(self, device: torch.device) -> AttentionMask:
        """True where a query may look; with an axis of query heads only where these differ."""
        return self._dense.to(device)

    @cached_property
    def _dense(self) -> AttentionMask:
        """`dense` where the positions are; made once for all layers."""
        positions, held = self.query_positions, self.key_positions
        queries, keys, device = positions.shape[1], held.shape[1], held.device
        if self.open:
            return torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
        if self.causal:
            ahead = self.first - self.first_key
            seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril_(ahead)
            mask = (seen if self.window is None else seen.triu_(ahead - self.window + 1))[None, None]
        else:
            seen = (positions[:, :, None] >= held[:, None, :]) & (held >= 0)[:, None, :]
            if self.window is not None:
                seen = seen & (positions[:, :, None] < (held + self.window)[:, None, :])
            mask = (seen if self.valid is None else seen | ~self.valid[:, :, None])[:, None]
        return mask if self.kept is None else mask & self.kept

    def block(self, start: int, stop: int) -> KeySlots:
        """The queries `start` to `stop`, and the keys that the pass has made up to the last of them."""
        return self.part(start, stop, slice(0, stop if self.causal else self.key_positions.shape[1]))

    def reached(self, start: int, stop: int) -> slice:
        """The key slots that hold whatever the queries `start` to `stop` see, but for those that are padding.

        The keys of the pass itself are in its last slots, in order. A window that begins among them has passed all
        that was held before.
        """
        held = self.key_positions.shape[1] - self.query_positions.shape[1]
        oldest = start - self.window + 1 if self.window is not None else -1
        return slice(held + oldest if oldest >= 0 else 0, held + stop)

    def part(self, start: int, stop: int, keys: slice) -> KeySlots:
        """Some consecutive queries and key slots of a whole pass."""
        return replace(
            self,
            query_positions=self.query_positions[:, start:stop],
            key_positions=self.key_positions[:, keys],
            valid=None if self.valid is None else self.valid[:, start:stop],
            kept=None if self.kept is None else self.kept[..., keys],
            first=start,
            first_key=keys.start,
        )

    def select(self, rows: Tensor) -> KeySlots:
        """The same for some rows of the batch."""

        def part(value: Tensor) -> Tensor:  # what is the same for all rows may have a batch axis of one
            return value if value.shape[0] == 1 else value[rows.to(value.device)]

        return replace(
            self,
            query_positions=part(self.query_positions),
            key_positions=self.key_positions[rows.to(self.key_positions.device)],
            valid=None if self.valid is None else part(self.valid),
            kept=None if self.kept is None else part(self.kept),
        )

    def without(self, kept: Bool[Tensor, "batch kv_head key"], n_heads: int) -> KeySlots:
        """The same for a layer whose key heads have dropped some of their keys.

        Args:
            kept: False where a key is gone.
            n_heads: query heads, which share key heads in consecutive groups.
        """
        seen = kept.repeat_interleave(n_heads // kept.shape[1], dim=1)[:, :, None]
        return replace(self, kept=seen.to(self.key_positions.device), open=False)
