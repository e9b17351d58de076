"""Where tensors are read from: a model in memory, or safetensors files, one tensor at a time.

Files are mapped into memory and a tensor is read when it is asked for, so a checkpoint of any size takes the memory
of what is used of it. A sharded checkpoint is opened a shard at a time, and shards that hold nothing of interest are
never touched, nor, of a hub id, downloaded.

How it fails: `CheckpointError` names the missing tensor or shard, a file that cannot be read, and a tensor whose
numbers are not its weights (quantised, not finite, or away on another device).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from safetensors import safe_open
from torch import Tensor, nn

from hybridlens.checkpoint_files import INDEX, SINGLE, CheckpointFiles, opening
from hybridlens.devices import away
from hybridlens.errors import CheckpointError
from hybridlens.projections import floating, mapping, no_weights
from hybridlens.weights.finite import is_finite
from hybridlens.weights.naming import Naming


@runtime_checkable
class Tensors(Protocol):
    """Tensors by the names of the Hugging Face model."""

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, without reading it."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The tensor, or its rows from `start` to before `stop`, as stored."""
        ...


class ModelTensors:
    """The weights of a model in memory, or of where accelerate keeps those that it moved out.

    Raises:
        CheckpointError: the model is quantised.
    """

    def __init__(self, model: Any) -> None:
        if getattr(model, "is_quantized", False) or getattr(model, "quantization_method", None) is not None:
            raise CheckpointError(
                "the model is quantised, so its stored numbers are not its weights; load it in float32, bfloat16 or "
                "float16"
            )
        self.model: nn.Module = model
        self.tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        for name, module in model.named_modules(remove_duplicate=False):
            if (inner := mapping(module)) is not module:
                self.tensors |= {f"{name}.{own}": tensor for own, tensor in inner.named_parameters(recurse=False)}

    def has(self, name: str) -> bool:
        """See `Tensors`."""
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Tensors`."""
        return tuple(self._found(name).shape)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """See `Tensors`."""
        tensor = self._found(name)
        if tensor.device.type == "meta":
            module, _, own = name.rpartition(".")
            kept = away(mapping(self.model.get_submodule(module)), own)
            if kept is None:
                raise CheckpointError(
                    f"the weight {name} is not in memory; give a folder, whose files are read directly"
                )
            return floating(name, kept[start:stop].to(tensor.dtype))
        return floating(name, tensor.detach()[start:stop])

    def _found(self, name: str) -> Tensor:
        if name not in self.tensors:
            module, _, last = name.rpartition(".")
            if any(f"{module}.{inside}.{last}" in self.tensors for inside in ("base_layer", "original_module")):
                raise CheckpointError(
                    f"the weight {name} has an adapter around it; merge it (model.merge_adapter(), or "
                    "model.merge_and_unload())"
                )
            raise CheckpointError(f"the model has no weight {name}, which its configuration asks for")
        return self.tensors[name]


class Stored(NamedTuple):
    """What a file's header says of a tensor."""

    shape: tuple[int, ...]
    kind: str
    """Of its numbers, as safetensors names it: "F32", "I8"."""

    def check_kind(self, name: str) -> None:
        """Refuse what are no weights.

        Raises:
            CheckpointError: they are whole numbers, or an eighth of a float: what quantised checkpoints hold.
        """
        if self.kind not in _WEIGHTS:
            raise CheckpointError(no_weights(name, _KINDS.get(self.kind, self.kind)))


class FileTensors:
    """The weights of a checkpoint's safetensors files.

    Args:
        source: a folder, or a hub id whose files are fetched, or taken from the cache, as they are needed; or either
            as it was opened.
        model: whose tensors they are, its weights away or not: names are then the model's, whatever they are in the
            files, and what is read has to have the model's shape. None for names as they are in the files.

    Raises:
        CheckpointError: there are no safetensors files, or their index cannot be read, or names anything else.
    """

    def __init__(self, source: str | Path | CheckpointFiles, model: Any = None) -> None:
        self._on_disk = CheckpointFiles.of(source)
        self.source = self._on_disk.source
        self._open: tuple[str, Any] | None = None
        shards = self._on_disk.shards()
        self._files = dict.fromkeys(self._names(SINGLE), SINGLE) if shards is None else shards
        self._naming = None if model is None else Naming(model, self._files)
        self._shapes: dict[str, tuple[int, ...]] = {}
        if model is not None:
            self._shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors in the files, as they have them."""
        return tuple(self._files)

    def has(self, name: str) -> bool:
        """See `Tensors`."""
        stored = self._stored(name)
        return stored is None or stored in self._files

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Tensors`."""
        stored = self._stored(name)
        if stored is not None:
            return self._shape(stored)
        return tuple(self._joined(name, lambda part: torch.empty(self._shape(part), device="meta")).shape)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """See `Tensors`."""
        has, asked = self.shape(name), self._shapes.get(name)
        if asked is not None and has != asked:
            raise CheckpointError(
                f"'{self.source}': {name} has shape {list(has)}, but the configuration asks for {list(asked)}"
            )
        stored = self._stored(name)
        return self._joined(name, self._read)[start:stop] if stored is None else self._read(stored, start, stop)

    def _stored(self, name: str) -> str | None:
        """The tensor of the files that is one of the model's; None for one that is made of several."""
        return name if self._naming is None else self._naming.stored(name)

    def _joined(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        assert self._naming is not None
        with opening(f"'{self.source}': {name} cannot be put together from what the files hold"):
            return self._naming.joined(name, read)

    def _shape(self, name: str) -> tuple[int, ...]:
        handle = self._handle(name)
        with opening(self._where(name)):
            return tuple(handle.get_slice(name).get_shape())

    def _read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        handle = self._handle(name)
        with opening(self._where(name)):
            if start == 0 and stop is None:
                tensor = floating(name, cast(Tensor, handle.get_tensor(name)))
            else:
                tensor = floating(name, cast(Tensor, handle.get_slice(name)[start:stop]))
        if not is_finite(tensor):
            raise CheckpointError(
                f"'{self.source}': {name} holds weights that are infinite or not a number; fetch or convert it again"
            )
        return tensor

    def complete(self) -> bool:
        """Whether every file is at hand, so that all of them can be looked at without fetching any."""
        return self._on_disk.at_hand(set(self._files.values()))

    def stored(self) -> dict[str, Stored]:
        """What the files hold, by their headers.

        Raises:
            CheckpointError: a file is missing or cannot be read, or holds other tensors than the index says.
        """
        found: dict[str, Stored] = {}
        for file in sorted(set(self._files.values())):
            names = self._names(file)
            for name in names:
                if self._files.get(name) != file:
                    where = f"maps it to {self._files[name]}" if name in self._files else "does not list it"
                    raise CheckpointError(f"'{self.source}': {file} holds {name}, but {INDEX} {where}; fetch it again")
                with opening(self._where(name)):
                    header = self._handle(name).get_slice(name)
                    found[name] = Stored(tuple(header.get_shape()), str(header.get_dtype()))
        for name, file in self._files.items():
            if name not in found:
                raise CheckpointError(f"'{self.source}': {INDEX} maps {name} to {file}, which holds no such tensor")
        return found

    def _names(self, file: str) -> tuple[str, ...]:
        """The tensors of a file."""
        return tuple(self._opened(file).keys())

    def _where(self, name: str) -> str:
        return f"'{self.source}': {name} cannot be read from {self._files.get(name, SINGLE)}"

    def _handle(self, name: str) -> Any:
        if name not in self._files:
            raise CheckpointError(f"'{self.source}' holds no tensor {name}, which its configuration asks for")
        return self._opened(self._files[name])

    def _opened(self, file: str) -> Any:
        if self._open is None or self._open[0] != file:
            self._open = None  # one shard is mapped at a time: pages that were read count as memory while it is
            path = self._on_disk.path(file)
            if path is None:
                raise CheckpointError(f"'{self.source}' lacks its shard {file}; fetch it, then run this again")
            with opening(f"'{self.source}': {file} cannot be read"):
                self._open = (file, safe_open(str(path), framework="pt"))
        return self._open[1]


_WEIGHTS = frozenset({"F64", "F32", "F16", "BF16"})
_KINDS = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
