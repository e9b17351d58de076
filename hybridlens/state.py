"""Everything a hybrid remembers of the tokens it has read, as one value.

`HybridState` holds what every mixer of every layer remembers (`hybridlens.memory`), with the absolute position of
each key slot. The model never keeps any of it: a forward pass takes one state and returns another, so runs may come
in any order, interleaved, and leave nothing behind. Tensors of a state are never written to; `clone` makes a copy
that may be.

Rows may hold different numbers of tokens. Keys sit in slots shared by the batch; a slot that a row does not use has
position -1 and is masked. Layers share the slots too: one with a smaller window than others holds the newest of them.
Keys lost in some layers or heads only are masked there (`KeyValues.kept`).

How it fails: a state of another model or of other weights, or a file that is not a saved state, raises `InputError`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from annotated_types import MinLen
from jaxtyping import Bool
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hybridlens.boundary import Positive, public
from hybridlens.boundary_words import shown
from hybridlens.devices import sent, usable
from hybridlens.display.memories import StateShown
from hybridlens.errors import InputError
from hybridlens.indices import Rows, numbers_of
from hybridlens.memory import KINDS, KeyValues, Memory, taken
from hybridlens.shapes import KeyPositions, Lengths
from hybridlens.slot_plan import Planned, SlotPlan

Memories: TypeAlias = Mapping[str, Memory]
"""What a layer remembers, by the name of its mixer: ``attn``, ``ssm``."""

FORMAT = 2
"""Of saved states; 1 is that of hybridlens 0.1.0, with one mixer a layer."""


@runtime_checkable
class Lens(Protocol):
    """What knows where a model computes: a lens."""

    @property
    def device(self) -> torch.device:
        """Where tokens go."""
        ...

    @property
    def layer_devices(self) -> tuple[torch.device, ...]:
        """Where each layer computes."""
        ...


@dataclass(frozen=True)
class HybridState(StateShown):
    """The memory of a batch of token sequences.

    Attributes:
        model: signature of the architecture that made it.
        lengths: tokens read by each row [batch]; the position of its next token.
        key_positions: absolute position of each key slot [batch, key], -1 where a row does not use it.
        layers: for each layer what its mixers remember, by name: ``state.layers[2]["attn"].k``, ``.v`` (`KeyValues`),
            ``state.layers[0]["ssm"].conv``, ``.recurrent`` (`Recurrent`); all have the batch first.
        window: keys that a query of the model sees at most, itself included; None: all.
        weights: fingerprint of the weights that made it; empty where it is not known.
        windows: `window` by layer, where layers differ; empty where they are alike.
        planned: what is known of lengths and positions on the host; see `plan`.
    """

    model: str
    lengths: Lengths
    key_positions: KeyPositions
    layers: tuple[Memories, ...]
    window: int | None = None
    weights: str = ""
    windows: tuple[int | None, ...] = ()
    planned: Planned | None = field(default=None, repr=False, compare=False)

    @property
    def plan(self) -> SlotPlan | None:
        """Lengths and positions as numbers; None on the meta device.

        Known of what a pass gave, and of rows taken out of that or put together; else the tensors are read.
        """
        known = self.known
        if known is not None or self.lengths.is_meta:
            return known
        return SlotPlan.of(self.key_positions, self.lengths)

    @property
    def known(self) -> SlotPlan | None:
        """`plan`, if no tensor has to be read for it."""
        known = self.planned
        return known.plan if known is not None and known.holds(self.lengths, self.key_positions) else None

    def planned_as(self, plan: SlotPlan | None) -> HybridState:
        """The same, with a plan that is known to be its tensors'."""
        made = None if plan is None else Planned.now(plan, self.lengths, self.key_positions)
        return replace(self, planned=made)

    @property
    def visible(self) -> Bool[Tensor, "batch key"]:
        """Which key slots hold a key that each row's next token can see, in the layers that see most."""
        return _seen(self.key_positions, self.lengths, self.window)

    def window_of(self, layer: int) -> int | None:
        """Keys that a query of one layer sees, itself included; None: all."""
        return self.windows[layer] if self.windows else self.window

    def visible_in(self, layer: int) -> Bool[Tensor, "batch key"]:
        """The same as `visible` in one attention layer, of the slots that this layer holds."""
        return _seen(self.positions_in(layer), self.lengths, self.window_of(layer))

    def positions_in(self, layer: int) -> KeyPositions:
        """`key_positions` of the slots that one attention layer holds."""
        slots = self.key_positions.shape[1]
        return self.key_positions[:, slots - self.layers[layer]["attn"].slots :]

    @property
    def batch(self) -> int:
        """Rows held."""
        return self.lengths.shape[0]

    @property
    def devices(self) -> set[torch.device]:
        """Where its tensors are."""
        return {t.device for t in self.tensors().values()}

    @property
    def nbytes(self) -> int:
        """Memory of all tensors, in bytes."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, by name: ``lengths``, ``key_positions``, ``layers.2.attn.k``, …."""
        out = {"lengths": self.lengths, "key_positions": self.key_positions}
        for layer, memories in enumerate(self.layers):
            for mixer, memory in memories.items():
                out |= {f"layers.{layer}.{mixer}.{name}": value for name, value in memory.tensors().items()}
        return out

    def each(self, fn: Callable[[Memory], Memory]) -> HybridState:
        """The state with every mixer's memory made anew by `fn`."""
        layers = tuple({mixer: fn(memory) for mixer, memory in memories.items()} for memories in self.layers)
        return replace(self, layers=layers)

    def put(self, layer: int, mixer: str, memory: Memory) -> HybridState:
        """The state with one mixer's memory exchanged; all else is shared with this one."""
        layers = list(self.layers)
        layers[layer] = {**layers[layer], mixer: memory}
        return replace(self, layers=tuple(layers))

    def map(self, fn: Callable[[Tensor], Tensor]) -> HybridState:
        """The state with `fn` applied to every tensor; each has the batch first."""
        whole = replace(self, lengths=fn(self.lengths), key_positions=fn(self.key_positions))
        return whole.each(lambda memory: memory.map(fn))

    def clone(self) -> HybridState:
        """A copy that shares no memory."""
        return self.map(Tensor.clone)

    def detach(self) -> HybridState:
        """The state cut from the graph that made it."""
        return self.map(Tensor.detach)

    @public
    def to(self, device: torch.device | str | Lens) -> HybridState:
        """The state on another device, or, given a lens, where its model goes on from it, layer by layer.

        Args:
            device: where to; or a lens, whose layers may be on several.

        Raises:
            InputError: it cannot be used, or is a dtype: positions are whole numbers, and recurrent states float32; or
                a lens with other layers.
        """
        if isinstance(device, Lens):
            home, places = device.device, device.layer_devices
            if len(places) != len(self.layers):
                raise InputError(f"to: the state is of {len(self.layers)} layers, but the lens has {len(places)}")
            layers = tuple(_moved(memories, place) for memories, place in zip(self.layers, places, strict=True))
            lengths, positions = self.lengths.to(home), self.key_positions.to(home)
            return replace(self, lengths=lengths, key_positions=positions, layers=layers).planned_as(self.known)
        place = usable(device)
        return self.map(lambda t: t.to(place)).planned_as(None if place.type == "meta" else self.known)

    @contextmanager
    def lent(self) -> Generator[None]:
        """Have free key slots that are taken inside a ``with`` block given back after it.

        For a pass from this state whose outcome is dropped: the next one need not copy the keys then.
        """
        held = [memory for memories in self.layers for memory in memories.values() if isinstance(memory, KeyValues)]
        rooms = [memory.room for memory in held if memory.room is not None]
        used = [room.buffer.used for room in rooms]
        try:
            yield
        finally:
            for room, before in zip(rooms, used, strict=True):
                room.buffer.give_back(before)

    @public
    def repeat(self, n: Positive) -> HybridState:
        """Each row `n` times in a row: rows a, b become a, a, b, b."""
        known, rows = self.known, [row for row in range(self.batch) for _ in range(n)]
        repeated = self.map(lambda t: t.repeat_interleave(n, dim=0))
        return repeated.planned_as(None if known is None else known.select(rows))

    @public
    def select(self, rows: Rows) -> HybridState:
        """The given rows, in that order; a row may be given more than once.

        Raises:
            InputError: for a row that the state lacks.
        """
        numbers = numbers_of(rows, "select")
        wrong = [row for row in numbers if not -self.batch <= row < self.batch]
        if wrong:
            raise InputError(f"select: row {shown(wrong[0])} does not exist, the state holds rows 0..{self.batch - 1}")
        index = torch.as_tensor(numbers, dtype=torch.long)
        known, at = self.known, {device: sent(index, device) for device in self.devices}
        selected = self.map(lambda t: t[at[t.device]])
        return selected.planned_as(None if known is None else known.select(numbers))

    def keep_slots(self, slots: slice | Tensor) -> HybridState:
        """With these key slots alone, in every layer that holds them.

        Args:
            slots: a slice, or numbers that rise.
        """
        n = self.key_positions.shape[1]
        chosen = torch.arange(n, device=self.key_positions.device)[slots]
        return replace(self.each(lambda memory: memory.keep(chosen, n)), key_positions=self.key_positions[:, chosen])

    @public
    def split(self, window: Positive | None = None) -> list[HybridState]:
        """Each row as a state of its own, without the key slots that it does not use.

        Args:
            window: leave out keys, too, that a sliding window of this size has passed.
        """
        plan = self.plan
        if plan is None:
            raise InputError("split: the state is on the meta device, which holds no numbers, expected one that does")

        def row(i: int) -> HybridState:
            own, held = plan.alone(i, 0 if window is None else max(0, plan.lengths[i] - window + 1))
            here = None if len(held) == plan.slots else torch.tensor(held, dtype=torch.long)
            layers = tuple(
                {mixer: memory.row(i, here, plan.slots) for mixer, memory in layer.items()} for layer in self.layers
            )
            positions = self.key_positions[i : i + 1]
            positions = positions.clone() if here is None else taken(positions, here, axis=1)
            alone = replace(self, lengths=self.lengths[i : i + 1].clone(), key_positions=positions, layers=layers)
            return alone.planned_as(own)

        return [row(i) for i in range(self.batch)]

    @staticmethod
    @public
    def cat(states: Annotated[Sequence[HybridState], MinLen(1)]) -> HybridState:
        """The rows of several states in one; rows with fewer key slots than others get unused ones.

        Raises:
            InputError: there are none, or they are of different models or weights, or on other devices than others.
        """
        if any(state.model != states[0].model for state in states):
            models = ", ".join(sorted({state.model for state in states}))
            raise InputError(f"cat: states of {models} were given, expected all of one model")
        if any(state.weights != states[0].weights for state in states):
            raise InputError("cat: states made by different weights of one architecture were given; expected one model")
        places = list(dict.fromkeys(" and ".join(sorted(map(str, state.devices))) for state in states))
        if len(places) > 1:
            raise InputError(f"cat: states on {', others on '.join(places)} were given; move them by state.to(lens)")
        slots = max(state.key_positions.shape[1] for state in states)
        each = [state.key_positions.shape[1] for state in states]
        layers = tuple(
            {mixer: type(first).cat([held[mixer] for held in layer], each) for mixer, first in layer[0].items()}
            for layer in zip(*(state.layers for state in states), strict=True)
        )
        positions = [
            F.pad(state.key_positions, (0, slots - state.key_positions.shape[1]), value=-1) for state in states
        ]
        lengths = torch.cat([state.lengths for state in states])
        whole = replace(states[0], lengths=lengths, key_positions=torch.cat(positions), layers=layers)
        known = [state.known for state in states]
        plans = [plan for plan in known if plan is not None]
        return whole.planned_as(SlotPlan.cat(plans) if len(plans) == len(known) else None)

    @public
    def save(self, path: str | Path) -> None:
        """Write the state to a safetensors file.

        Raises:
            InputError: when it cannot be written there.
        """
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors().items()}
        kinds = [{mixer: memory.kind for mixer, memory in memories.items()} for memories in self.layers]
        about = {"model": self.model, "weights": self.weights, "window": json.dumps(self.window)}
        about |= {"windows": json.dumps(self.windows)} if self.windows else {}
        metadata = {"format": str(FORMAT), "kinds": json.dumps(kinds), "digest": _digest(tensors), **about}
        try:
            save_file(tensors, str(Path(path)), metadata=metadata)
        except (OSError, SafetensorError, TypeError, ValueError) as error:
            raise InputError(f"the state cannot be written to {shown(str(path))} ({_line(error)})") from error

    @classmethod
    @public
    def load(cls, path: str | Path) -> HybridState:
        """Read a state that `save` wrote, of this version or 0.1.0.

        Raises:
            InputError: for a file that is not one, or was changed after it was written.
        """
        try:
            with safe_open(str(Path(path)), "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            kinds = _kinds(metadata, tensors)
            if "digest" in metadata and metadata["digest"] != _digest(tensors):
                raise InputError(
                    f"{shown(str(path))} was damaged after it was written: its tensors are not those it names"
                )
            layers = tuple(
                {mixer: KINDS[kind].of(_under(f"layers.{layer}.{mixer}.", tensors)) for mixer, kind in mixers.items()}
                for layer, mixers in enumerate(kinds)
            )
            window, windows = (
                json.loads(metadata.get(name, null)) for name, null in (("window", "null"), ("windows", "[]"))
            )
            return cls(
                metadata["model"], tensors["lengths"], tensors["key_positions"], layers, window,
                metadata.get("weights", ""), tuple(windows),
            )  # fmt: skip
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{shown(str(path))} is not a saved HybridState ({_line(error)})") from error


def _moved(memories: Memories, place: torch.device) -> Memories:
    return {mixer: memory.map(lambda t: t.to(place)) for mixer, memory in memories.items()}


def _seen(positions: KeyPositions, lengths: Lengths, window: int | None) -> Bool[Tensor, "batch key"]:
    """Which of some key slots each row's next token can see."""
    oldest = 0 if window is None else (lengths[:, None] - window + 1).clamp(min=0)
    return positions >= oldest


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _kinds(metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> list[dict[str, str]]:
    """The kind of memory of each mixer of each layer; tensors of an older file are renamed to today's names."""
    kinds = json.loads(metadata["kinds"])
    written = metadata.get("format", "1")
    if written not in ("1", str(FORMAT)):
        raise InputError(f"the state was saved in format {written}, and this version reads 1 and {FORMAT}; update it")
    if written != "1":
        return kinds
    mixers = ["attn" if kind == "attention" else "ssm" for kind in kinds]
    for layer, mixer in enumerate(mixers):
        for name, tensor in _under(f"layers.{layer}.", tensors).items():
            tensors[f"layers.{layer}.{mixer}.{name}"] = tensor
    return [{mixer: kind} for mixer, kind in zip(mixers, kinds, strict=True)]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of every tensor's name, dtype, shape and bytes."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        whole.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        held: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        whole.update(memoryview(held))
    return whole.hexdigest()
