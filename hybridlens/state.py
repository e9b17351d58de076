"""Everything a hybrid remembers of the tokens it has read, as one value.

`HybridState` holds keys and values, convolution inputs and recurrent states of every layer, with
the absolute position of each key slot. The model never keeps any of it: a forward pass takes one
state and returns another, so runs may come in any order, interleaved, and leave nothing behind.
Tensors of a state are never written to; `clone` makes a copy that may be.

Rows may hold different numbers of tokens. Keys sit in slots shared by the batch; a slot that a row
does not use has position -1 and is masked. Keys lost in some layers or heads only are masked there
(`AttentionState.kept`).

How it fails: a state of another model, or a file that is not a saved state, raises `InputError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hybridlens.errors import InputError
from hybridlens.layer_state import AttentionState, LayerState, RecurrentState, parts, widened
from hybridlens.shapes import KeyPositions, Lengths


@dataclass(frozen=True)
class HybridState:
    """The memory of a batch of token sequences."""

    model: str
    """Signature of the architecture that made it."""
    lengths: Lengths
    """Tokens read by each row; the position of its next token."""
    key_positions: KeyPositions
    """Absolute position of each key slot, -1 where a row does not use it."""
    layers: tuple[LayerState, ...]
    window: int | None = None
    """Keys that a query of the model sees, itself included; None: all."""

    @property
    def visible(self) -> Bool[Tensor, "batch key"]:
        """Which key slots hold a key that each row's next token can see."""
        oldest = 0 if self.window is None else (self.lengths[:, None] - self.window + 1).clamp(min=0)
        return self.key_positions >= oldest

    @property
    def batch(self) -> int:
        """Rows held."""
        return self.lengths.shape[0]

    @property
    def nbytes(self) -> int:
        """Memory of all tensors, in bytes."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, by name."""
        out = {"lengths": self.lengths, "key_positions": self.key_positions}
        for layer, held in enumerate(self.layers):
            out |= {f"layers.{layer}.{name}": value for name, value in parts(held).items()}
        return out

    def map(self, fn: Callable[[Tensor], Tensor]) -> HybridState:
        """The state with `fn` applied to every tensor; each has the batch first."""
        layers = tuple(
            AttentionState(fn(held.k), fn(held.v), kept=None if held.kept is None else fn(held.kept))
            if isinstance(held, AttentionState)
            else RecurrentState(fn(held.conv), fn(held.recurrent))
            for held in self.layers
        )
        return replace(self, lengths=fn(self.lengths), key_positions=fn(self.key_positions), layers=layers)

    def clone(self) -> HybridState:
        """A copy that shares no memory."""
        return self.map(Tensor.clone)

    def detach(self) -> HybridState:
        """The state cut from the graph that made it."""
        return self.map(Tensor.detach)

    def to(self, device: torch.device | str) -> HybridState:
        """The state on another device."""
        return self.map(lambda t: t.to(device))

    @contextmanager
    def lent(self) -> Generator[None]:
        """Have free key slots that are taken inside a ``with`` block given back after it.

        For a pass from this state whose outcome is dropped: the next one need not copy the keys then.
        """
        rooms = [held.room for held in self.layers if isinstance(held, AttentionState) and held.room is not None]
        used = [room.buffer.used for room in rooms]
        try:
            yield
        finally:
            for room, before in zip(rooms, used, strict=True):
                room.buffer.used = before

    def repeat(self, n: int) -> HybridState:
        """Each row `n` times in a row: rows a, b become a, a, b, b."""
        if n < 1:
            raise InputError(f"repeat: {n} copies given, expected at least 1")
        return self.map(lambda t: t.repeat_interleave(n, dim=0))

    def select(self, rows: Sequence[int]) -> HybridState:
        """The given rows, in that order; a row may be given more than once.

        Raises:
            InputError: for a row that the state lacks.
        """
        if not all(type(row) is int for row in rows):
            raise InputError(f"select: rows {rows!r} given, expected a list of row numbers")
        wrong = [row for row in rows if not -self.batch <= row < self.batch]
        if wrong:
            raise InputError(f"select: row {wrong[0]} does not exist, the state holds rows 0..{self.batch - 1}")
        index = torch.as_tensor(list(rows), dtype=torch.long)
        return self.map(lambda t: t[index.to(t.device)])

    def split(self, window: int | None = None) -> list[HybridState]:
        """Each row as a state of its own, without the key slots that it does not use.

        Args:
            window: leave out keys, too, that a sliding window of this size has passed.
        """
        oldest = 0 if window is None else (self.lengths[:, None] - window + 1).clamp(min=0)
        used = self.key_positions >= oldest
        whole = bool(used.all())

        def row(i: int, held: LayerState) -> LayerState:
            if isinstance(held, RecurrentState):
                return RecurrentState(held.conv[i : i + 1].clone(), held.recurrent[i : i + 1].clone())
            kept = None if held.kept is None else held.kept[i : i + 1]
            if whole:
                kept = None if kept is None else kept.clone()
                return AttentionState(held.k[i : i + 1].clone(), held.v[i : i + 1].clone(), kept=kept)
            slots = used[i].nonzero()[:, 0].to(held.k.device)
            kept = None if kept is None else kept[:, :, slots]
            return AttentionState(held.k[i : i + 1, :, slots], held.v[i : i + 1, :, slots], kept=kept)

        return [
            HybridState(
                self.model,
                self.lengths[i : i + 1].clone(),
                self.key_positions[i : i + 1, used[i]],
                tuple(row(i, held) for held in self.layers),
                self.window,
            )
            for i in range(self.batch)
        ]

    @staticmethod
    def cat(states: Sequence[HybridState]) -> HybridState:
        """The rows of several states in one; rows with fewer key slots than others get unused ones.

        Raises:
            InputError: there are none, or they are of different models.
        """
        if not states or any(state.model != states[0].model for state in states):
            models = ", ".join(sorted({state.model for state in states})) or "none"
            raise InputError(f"cat: states of {models} were given, expected at least one, all of one model")
        slots = max(state.key_positions.shape[1] for state in states)
        layers: list[LayerState] = []
        for parts_ in zip(*(state.layers for state in states), strict=True):
            if isinstance(parts_[0], RecurrentState):
                held = cast(tuple[RecurrentState, ...], parts_)
                layers.append(
                    RecurrentState(torch.cat([h.conv for h in held]), torch.cat([h.recurrent for h in held]))
                )
            else:
                kept = cast(tuple[AttentionState, ...], parts_)
                masks = None
                if any(h.kept is not None for h in kept):
                    whole = [torch.ones_like(h.k[..., 0], dtype=torch.bool) if h.kept is None else h.kept for h in kept]
                    masks = torch.cat([F.pad(mask, (0, slots - mask.shape[2])) for mask in whole])
                k, v = widened([h.k for h in kept], slots), widened([h.v for h in kept], slots)
                layers.append(AttentionState(k, v, kept=masks))
        positions = [
            F.pad(state.key_positions, (0, slots - state.key_positions.shape[1]), value=-1) for state in states
        ]
        lengths = torch.cat([state.lengths for state in states])
        return HybridState(states[0].model, lengths, torch.cat(positions), tuple(layers), states[0].window)

    def save(self, path: str | Path) -> None:
        """Write the state to a safetensors file.

        Raises:
            InputError: when it cannot be written there.
        """
        kinds = ["attention" if isinstance(held, AttentionState) else "ssm" for held in self.layers]
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors().items()}
        metadata = {"model": self.model, "kinds": json.dumps(kinds), "window": json.dumps(self.window)}
        try:
            save_file(tensors, str(path), metadata=metadata)
        except (OSError, SafetensorError) as error:
            raise InputError(f"the state cannot be written to '{path}' ({error})") from error

    @classmethod
    def load(cls, path: str | Path) -> HybridState:
        """Read a state that `save` wrote.

        Raises:
            InputError: for a file that is not one.
        """
        try:
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            kinds = json.loads(metadata["kinds"])
            layers = tuple(
                AttentionState(tensors[f"layers.{i}.k"], tensors[f"layers.{i}.v"], kept=tensors.get(f"layers.{i}.kept"))
                if kind == "attention"
                else RecurrentState(tensors[f"layers.{i}.conv"], tensors[f"layers.{i}.recurrent"])
                for i, kind in enumerate(kinds)
            )
            window = json.loads(metadata.get("window", "null"))
            return cls(metadata["model"], tensors["lengths"], tensors["key_positions"], layers, window)
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise InputError(f"'{path}' is not a saved HybridState ({error})") from error
