"""Which weights a model has now, short enough to be kept with what was computed from them.

`fingerprint` reads a sample of every tensor. `Fingerprint` keeps the answer as long as nothing says that the
weights changed: no module or tensor was put in another's place, none was moved, cast or resized, and none was written
to in a way that torch counts (every in-place operation, optimizers, `load_state_dict`). Asking it costs some tens of
microseconds.

How it fails: torch does not count what is written through ``parameter.data`` in place
(``weight.data.mul_(2)``, ``weight.data += delta``); after such an edit `Fingerprint.now` answers as before until
``now(fresh=True)``. Of a large tensor 4,096 values are looked at, so a change of a few entries may be missed where
`Fingerprint` did not see it either. Weights that accelerate keeps elsewhere (offloaded) are read there once, and again
when the model was offloaded anew; weights that are nowhere (on the meta device) count with name, shape and dtype alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import is_
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from hybridlens.adapters import switches
from hybridlens.devices import away, weights_once

SAMPLE = 4096
"""Values of a tensor that are read."""

DIGITS = 16
"""Hexadecimal digits of a fingerprint: 64 bits."""

_PLAIN = (nn.Parameter, Tensor)
_addresses: Any = Tensor.data_ptr  # calls from C: these are asked of every tensor at every step
_lengths: Any = Tensor.numel


class _Away(NamedTuple):
    """What was seen of a weight that accelerate keeps elsewhere."""

    keeper: object
    """accelerate's hook, which knows where it is."""
    sample: bytes


def fingerprint(model: nn.Module, seen: dict[str, _Away] | None = None) -> str:
    """A digest of every parameter and buffer: name, shape, dtype, and evenly spread values, 16 hexadecimal digits.

    The device does not count: the same weights have the same fingerprint wherever they are, unless on meta.

    Args:
        model: whose weights they are.
        seen: what was seen of weights that are away, by name, which is taken as it was and added to; None to read all.
    """
    digest, named = hashlib.sha256(), list(_tensors(model))
    seen = {} if seen is None else seen
    for (name, tensor), sample in zip(named, _samples([tensor for _, tensor in named]), strict=True):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(_sample_away(model, name, tensor, seen) if sample is None else sample)
    return digest.hexdigest()[:DIGITS]


def _sample_away(model: nn.Module, name: str, tensor: Tensor, seen: dict[str, _Away]) -> bytes:
    """`_sample` of a weight that is on the meta device."""
    place, _, own = name.rpartition(".")
    module = dict(model.named_modules()).get(place)
    if module is None:  # a part of a weight that is made of others
        return b"meta"
    keeper = module.__dict__.get("_hf_hook")
    known = seen.get(name)
    if known is None or known.keeper is not keeper:
        kept = away(module, own)
        if kept is None:
            return b"meta"
        known = seen[name] = _Away(keeper, bytes(_bytes(_sample(kept, tensor.dtype))))
    return known.sample


class Fingerprint:
    """A model's `fingerprint`, read again only when its weights may have changed.

    Whether they have is asked of the modules themselves, so adapters, resized embeddings and replaced layers are seen
    like any edit. Parameters that were replaced stay in memory until the next `now`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._seen: _Snapshot | None = None
        self._away: dict[str, _Away] = {}
        self._text = ""

    def __getstate__(self) -> dict[str, Any]:
        """What a copy keeps: not what was seen, which is another model's memory."""
        return {"model": self.model, "_seen": None, "_away": {}, "_text": ""}

    def now(self, *, fresh: bool = False) -> str:
        """The fingerprint of the weights as they are.

        Args:
            fresh: read the weights whether or not anything says that they changed.
        """
        if fresh or self._seen is None or self._seen.stale():
            self._text = fingerprint(self.model, self._away)
            self._seen = _snapshot(self.model)
        on = switches(self.model)  # adapters switched on or off, which no weight shows
        return self._text if not on else hashlib.sha256(f"{self._text}\0{on}".encode()).hexdigest()[:DIGITS]


class _Marks(NamedTuple):
    """What changes when a tensor's values, place or size do."""

    addresses: list[int]
    versions: list[int]
    lengths: list[int]


class _Snapshot(NamedTuple):
    """A model's modules and tensors at one time.

    What stood in the modules' tables is kept, so that nothing new can be taken for what was there.
    """

    module_tables: list[dict[str, Any]]
    modules: list[Any]
    tensor_tables: list[dict[str, Any]]
    entries: list[Any]
    """Parameters and buffers of the tables; some are None."""
    tensors: list[Tensor]
    """Those in memory, each once."""
    marks: _Marks
    storages: list[StorageWeakRef]
    """They keep no memory, but tell whether an address still belongs to the memory that it did."""
    cells: list[int]

    def stale(self) -> bool:
        """Whether any weight may have changed since."""
        marks = self.marks
        return (
            list(chain.from_iterable(map(_values, self.module_tables))) != self.modules
            or sum(map(len, self.tensor_tables)) != len(self.entries)
            or not all(map(is_, chain.from_iterable(map(_values, self.tensor_tables)), self.entries))
            or [tensor._version for tensor in self.tensors] != marks.versions
            or list(map(_addresses, self.tensors)) != marks.addresses
            or list(map(_lengths, self.tensors)) != marks.lengths
            or any(map(_expired, self.cells))
        )


_values: Any = dict.values
_expired: Any = torch.UntypedStorage._expired  # pyright: ignore[reportPrivateUsage]


def _snapshot(model: nn.Module) -> _Snapshot:
    """A model as it is; tables that hold nothing are left out."""
    tables = [vars(module) for module in model.modules()]
    module_tables = [held["_modules"] for held in tables if held["_modules"]]
    tensor_tables = [held[kind] for held in tables for kind in ("_parameters", "_buffers") if held[kind]]
    tensors = [tensor for _, tensor in _tensors(model) if tensor.device.type != "meta"]
    storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
    return _Snapshot(
        module_tables=module_tables,
        modules=[module for table in module_tables for module in table.values()],
        tensor_tables=tensor_tables,
        entries=[tensor for table in tensor_tables for tensor in table.values()],
        tensors=tensors,
        marks=_Marks(
            [tensor.data_ptr() for tensor in tensors],
            [tensor._version for tensor in tensors],
            [tensor.numel() for tensor in tensors],
        ),
        storages=storages,
        cells=[storage.cdata for storage in storages],
    )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, each once; of one that is made of others (a torchao weight) those."""
    for name, tensor in chain(weights_once(model), model.named_buffers()):
        yield from _parts(name, tensor)


def _parts(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    if type(tensor) in _PLAIN or not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield from _parts(f"{name}.{part}", getattr(tensor, part))


def _samples(tensors: Sequence[Tensor]) -> list[bytes | None]:
    """Up to `SAMPLE` values of each as bytes, None where there are none; those of one device come in one copy."""
    found, devices = list[bytes | None]([None] * len(tensors)), dict[torch.device, list[int]]()
    for place, tensor in enumerate(tensors):
        if tensor.device.type != "meta":
            devices.setdefault(tensor.device, []).append(place)
    for places in devices.values():
        parts = [_sample(tensors[place]) for place in places]
        held = _bytes(torch.cat(parts))
        end = 0
        for place, part in zip(places, parts, strict=True):
            end += part.numel()
            found[place] = bytes(held[end - part.numel() : end])
    return found


def _sample(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Values as bytes, where they are; an odd step, so that not one column of a matrix is all that is seen."""
    flat = tensor.detach().reshape(-1)
    step = -(-flat.numel() // SAMPLE) | 1
    return flat[::step].to(dtype or flat.dtype).contiguous().view(torch.uint8)


def _bytes(values: Tensor) -> memoryview:
    return memoryview(cast(Any, values.cpu().numpy()))
