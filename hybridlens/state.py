"""Everything a hybrid remembers of the tokens it has read, as one value.

`HybridState` holds keys and values, convolution inputs and recurrent states of every layer, with
the absolute position of each key slot. The model never keeps any of it: a forward pass takes one
state and returns another, so runs may come in any order, interleaved, and leave nothing behind.
Tensors of a state are never written to; `clone` makes a copy that may be.

Rows may hold different numbers of tokens. Keys sit in slots shared by the batch; a slot that a row
does not use has position -1 and is masked.

How it fails: a state of another model, or a file that is not a saved state, raises `InputError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hybridlens.errors import InputError
from hybridlens.shapes import ConvState, HeldKeys, KeyPositions, Lengths, State


@dataclass(frozen=True)
class AttentionState:
    """Keys (after rotary) and values held by an attention layer."""

    k: HeldKeys
    v: HeldKeys


@dataclass(frozen=True)
class RecurrentState:
    """What a recurrent layer holds: its convolution's last inputs and its state."""

    conv: ConvState
    """The inputs of the last (width - 1) tokens, oldest first."""
    recurrent: State
    """float32."""


LayerState: TypeAlias = AttentionState | RecurrentState


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
            out |= {f"layers.{layer}.{name}": value for name, value in vars(held).items()}
        return out

    def map(self, fn: Callable[[Tensor], Tensor]) -> HybridState:
        """The state with `fn` applied to every tensor; each has the batch first."""
        layers = tuple(type(held)(**{name: fn(t) for name, t in vars(held).items()}) for held in self.layers)
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

    def save(self, path: str | Path) -> None:
        """Write the state to a safetensors file.

        Raises:
            InputError: when it cannot be written there.
        """
        kinds = ["attention" if isinstance(held, AttentionState) else "ssm" for held in self.layers]
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors().items()}
        try:
            save_file(tensors, str(path), metadata={"model": self.model, "kinds": json.dumps(kinds)})
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
                AttentionState(tensors[f"layers.{i}.k"], tensors[f"layers.{i}.v"])
                if kind == "attention"
                else RecurrentState(tensors[f"layers.{i}.conv"], tensors[f"layers.{i}.recurrent"])
                for i, kind in enumerate(kinds)
            )
            return cls(metadata["model"], tensors["lengths"], tensors["key_positions"], layers)
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise InputError(f"'{path}' is not a saved HybridState ({error})") from error
