"""Which keys the queries of a forward pass may look at, and where queries and keys stand in the text.

Keys are held in slots that the rows of a batch share. A slot's absolute position differs from row to row and
from pass to pass: a sliding window drops slots, a continued state puts held ones first, and rows of other
lengths leave slots unused. `KeySlots` says which is where; while attention runs, every attention hook function
finds it at ``hook.slots``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hybridlens.shapes import AttentionMask, KeptKeys, KeyPositions, Positions


@dataclass(frozen=True)
class KeySlots:
    """The queries and keys of a forward pass, or of a block of its queries; the same for all attention layers.

    `mask` is None where plain causal attention within the call is meant (`causal`), or where every
    query sees every key.
    """

    query_positions: Positions
    """Absolute position of each query."""
    key_positions: KeyPositions
    """Absolute position of each key slot, -1 where a row does not use it."""
    mask: AttentionMask | None
    """True where a query may look; with an axis of query heads only where these differ."""
    causal: bool
    first: int = 0
    """Index in the pass of the first query of this block; 0 when these are all."""

    def dense(self, device: torch.device) -> AttentionMask:
        """The mask as a tensor, True where a query may look."""
        if self.mask is not None:
            return self.mask.to(device)
        queries, keys = self.query_positions.shape[1], self.key_positions.shape[1]
        full = torch.ones(queries, keys, dtype=torch.bool, device=device)
        return (full.tril(self.first) if self.causal else full)[None, None]

    def block(self, start: int, stop: int) -> KeySlots:
        """The queries `start` to `stop`, and the keys that the pass has made up to the last of them."""
        keys = stop if self.causal else self.key_positions.shape[1]
        mask = None if self.mask is None else self.mask[:, :, start:stop, :keys]
        return KeySlots(
            self.query_positions[:, start:stop], self.key_positions[:, :keys], mask, self.causal, self.first + start
        )

    def select(self, rows: Tensor) -> KeySlots:
        """The same for some rows of the batch."""

        def part(value: Tensor) -> Tensor:  # what is the same for all rows may have a batch axis of one
            return value if value.shape[0] == 1 else value[rows.to(value.device)]

        mask = None if self.mask is None else part(self.mask)
        keys = self.key_positions[rows.to(self.key_positions.device)]
        return replace(self, query_positions=part(self.query_positions), key_positions=keys, mask=mask)

    def without(self, kept: KeptKeys, n_heads: int) -> KeySlots:
        """The same for a layer whose key heads have dropped some of their keys.

        Args:
            kept: False where a key is gone.
            n_heads: query heads, which share key heads in consecutive groups.
        """
        seen = kept.repeat_interleave(n_heads // kept.shape[1], dim=1)[:, :, None]
        return replace(self, mask=self.dense(kept.device) & seen, causal=False)

    def to(self, device: torch.device) -> KeySlots:
        """The same, with its tensors on `device`."""
        mask = None if self.mask is None else self.mask.to(device)
        return replace(
            self,
            query_positions=self.query_positions.to(device),
            key_positions=self.key_positions.to(device),
            mask=mask,
        )
