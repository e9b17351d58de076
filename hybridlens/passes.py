"""One forward pass before any layer runs: positions, padding, and which keys each query may look at.

What queries may see is said once for each window that the model's attention layers have (`KeySlots`). What must be
known of it before anything runs is planned on the host (`SlotPlan`), so that no pass waits for the device.

How it fails: lengths that are on a device, and a state whose tensors somebody else made, are read once per pass.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import torch

from hybridlens.devices import sent
from hybridlens.shapes import KeyPositions, Lengths, Positions, Resid, Tokens, Valid
from hybridlens.slot_plan import SlotPlan
from hybridlens.slots import KeySlots
from hybridlens.state import HybridState

T = TypeVar("T")


class Pass:
    """What every layer of one forward pass needs to know besides the residual stream.

    Args:
        tokens: the new tokens; shorter rows padded on the right.
        lengths: real new tokens of each row; None where all rows are full.
        state: what was read before; None for nothing.
    """

    fixed: ClassVar[bool] = False
    """Whether it is to be recorded and done again, so that nothing in it may wait or be of another size next time."""
    positions: Positions
    """Absolute position of each new token."""
    valid: Valid | None
    """False on the padding of shorter rows; None when all rows are equally long."""
    key_positions: KeyPositions
    """Absolute position of each key slot, the held ones first; -1 where a row does not use it."""
    lengths: Lengths
    """Tokens that each row has read after the pass."""
    plan: SlotPlan | None
    """Lengths and slots after the pass, on the host; None on the meta device, where nothing can be read."""
    counts: tuple[int, ...] | None
    """`lengths` of the arguments, on the host."""
    begins: bool
    """Whether any row's text begins in this pass, as far as is known."""
    embedded: Resid | None
    """What entered block 0, where layers read it besides the stream; else None."""

    def __init__(self, tokens: Tokens, lengths: Lengths | None, state: HybridState | None) -> None:
        batch, new = tokens.shape
        device = tokens.device
        self._made: dict[Hashable, Any] = {}
        self._steps = torch.arange(new, device=device)
        self.continued = state is not None
        self.valid = None
        self.embedded = None
        self.plan, self.counts, self.begins = None, None, True
        before = SlotPlan.empty(batch) if state is None else state.plan
        if before is not None and not (lengths is not None and lengths.is_meta):
            self.counts = None if lengths is None else tuple(lengths.tolist())
            self.plan = before.append(new, self.counts)
            self.begins = 0 in before.lengths
        if lengths is not None:
            lengths = sent(lengths, device)
            self.valid = self._steps < lengths[:, None]
        if state is None:
            self.positions = self._steps.expand(batch, new)
            self.lengths = torch.full((batch,), new, device=device) if lengths is None else lengths
        else:
            before = state.lengths.to(device)
            self.positions = before[:, None] + self._steps
            self.lengths = before + (new if lengths is None else lengths)
        fresh = self.positions if self.valid is None else self.positions.masked_fill(~self.valid, -1)
        self.key_positions = fresh if state is None else torch.cat([state.key_positions.to(device), fresh], dim=1)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.positions.device

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made at the first call for `key` in this pass."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def slots(self, window: int | None, keys: int | None = None) -> KeySlots:
        """Which keys the queries of a layer with this window may look at.

        A query sees the keys at positions up to its own and, with a window, fewer than `window` back.

        Args:
            window: of the layer.
            keys: how many key slots the layer holds, new ones included: the newest of all; None for all.
        """
        keys = self.key_positions.shape[1] if keys is None else keys
        return self.once(("slots", window, keys), lambda: self._slots(window, keys))

    def _slots(self, window: int | None, keys: int) -> KeySlots:
        positions, held, valid = self.positions, self.key_positions, self.valid
        held = held if held.shape[1] == keys else held[:, held.shape[1] - keys :]
        if not self.continued:
            return KeySlots(positions, held, causal=True, window=window)
        one = self._steps.shape[0] == 1
        if one and self.plan is not None and self.plan.all_seen(window, keys, self.counts):  # no mask is needed
            return KeySlots(positions, held, causal=False, open=True)
        return KeySlots(positions, held, causal=False, window=window, valid=valid)

    def to(self, device: torch.device) -> Pass:
        """The same, with its tensors on `device`; made once for each."""
        if self.device == device:
            return self

        def moved() -> Pass:
            other = object.__new__(Pass)
            other._made, other.continued = {}, self.continued
            other.plan, other.counts, other.begins = self.plan, self.counts, self.begins
            other._steps, other.positions = self._steps.to(device), self.positions.to(device)
            other.valid = None if self.valid is None else self.valid.to(device)
            other.key_positions, other.lengths = self.key_positions.to(device), self.lengths.to(device)
            other.embedded = None if self.embedded is None else self.embedded.to(device)
            return other

        return self.once(("device", device), moved)


def trimmed(state: HybridState) -> HybridState:
    """The state without the leading key slots that no row's next token can see: in each layer, and then in all."""
    plan = state.plan if state.window is not None or state.windows else None
    if plan is None:
        return state
    kept = state
    if state.windows:
        passed: dict[tuple[int | None, int], int] = {}  # layers of one window mostly hold as many slots
        layers = list(state.layers)
        for layer, window in enumerate(state.windows):
            memories = layers[layer]
            if "attn" not in memories or window is None:
                continue
            key = window, memories["attn"].slots
            if key not in passed:
                passed[key] = plan.passed(window, key[1])
            if passed[key]:
                layers[layer] = {**memories, "attn": memories["attn"].newest(key[1] - passed[key])}
        kept = replace(state, layers=tuple(layers))
    slots = kept.key_positions.shape[1]
    start = 0 if kept.window is None else plan.passed(kept.window, slots)
    if not start:
        return kept
    newest = kept.each(lambda memory: memory.newest(slots - start))
    positions = kept.key_positions[:, start:].clone()
    return replace(newest, key_positions=positions).planned_as(plan.drop(start))
