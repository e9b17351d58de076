"""Where tensors are read from: a model in memory, or safetensors files, one tensor at a time.

Files are mapped into memory and a tensor is read when it is asked for, so a checkpoint of any size takes the memory
of what is used of it. A sharded checkpoint is opened a shard at a time, and shards that hold nothing of interest are
never touched, nor, of a hub id, downloaded.

How it fails: `CheckpointError` names the missing tensor or shard, a file that cannot be read, and a tensor whose
numbers are not its weights (quantised, not finite, or away on another device).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from safetensors import safe_open
from torch import Tensor

from hybridlens.checkpoint_files import INDEX, SINGLE, CheckpointFiles, opening
from hybridlens.errors import CheckpointError
from hybridlens.weights.finite import is_finite


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
    """The weights of a model in memory.

    Raises:
        CheckpointError: the model is quantised.
    """

    def __init__(self, model: Any) -> None:
        if getattr(model, "is_quantized", False) or getattr(model, "quantization_method", None) is not None:
            raise CheckpointError(
                "the model is quantised, so its stored numbers are not its weights; load it in float32, bfloat16 or "
                "float16"
            )
        self.tensors: Mapping[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))

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
            raise CheckpointError(f"the weight {name} is not in memory; give a folder, whose files are read directly")
        return _floating(name, tensor.detach()[start:stop])

    def _found(self, name: str) -> Tensor:
        if name not in self.tensors:
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
            raise CheckpointError(_no_weights(name, _KINDS.get(self.kind, self.kind)))


class FileTensors:
    """The weights of a checkpoint's safetensors files.

    Args:
        source: a folder, or a hub id whose files are fetched, or taken from the cache, as they are needed.
        shapes: of the model's tensors, where they are known: what is read has to have them.
        names: gives the names under which files hold a tensor of the model, the parts of a joined one in order.

    Raises:
        CheckpointError: there are no safetensors files, or their index cannot be read, or names anything else.
    """

    def __init__(
        self,
        source: str | Path,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        names: Callable[[str], tuple[str, ...]] = lambda name: (name,),
    ) -> None:
        self.source = str(source)
        self.shapes = shapes or {}
        self.names = names
        self._on_disk = CheckpointFiles(source)
        self._open: tuple[str, Any] | None = None
        shards = self._on_disk.shards()
        self._files = dict.fromkeys(self._names(SINGLE), SINGLE) if shards is None else shards

    def has(self, name: str) -> bool:
        """See `Tensors`."""
        return all(part in self._files for part in self._parts(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Tensors`."""
        shapes = [self._shape(part) for part in self._parts(name)]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """See `Tensors`."""
        has, asked = self.shape(name), self.shapes.get(name)
        if asked is not None and has != asked:
            raise CheckpointError(
                f"'{self.source}': {name} has shape {list(has)}, but the configuration asks for {list(asked)}"
            )
        first, *others = self._parts(name)
        if not others:
            return self._read(first, start, stop)
        return torch.cat([self._read(part) for part in (first, *others)])[start:stop]

    def _parts(self, name: str) -> tuple[str, ...]:
        """The tensors of the files that hold one of the model."""
        found = (name,) if name in self._files else self.names(name)
        return found if all(part in self._files for part in found) else (name,)

    def _shape(self, name: str) -> tuple[int, ...]:
        with opening(self._where(name)):
            return tuple(self._handle(name).get_slice(name).get_shape())

    def _read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        handle = self._handle(name)
        with opening(self._where(name)):
            if start == 0 and stop is None:
                tensor = _floating(name, cast(Tensor, handle.get_tensor(name)))
            else:
                tensor = _floating(name, cast(Tensor, handle.get_slice(name)[start:stop]))
        if not is_finite(tensor):
            raise CheckpointError(
                f"'{self.source}': {name} holds weights that are infinite or not a number; fetch or convert it again"
            )
        return tensor

    def complete(self) -> bool:
        """Whether every file is at hand, so that all of them can be looked at without fetching any."""
        return self._on_disk.local and all(self._on_disk.path(file) is not None for file in set(self._files.values()))

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


def _no_weights(name: str, kind: str) -> str:
    return (
        f"the weight {name} is stored as {kind}: the checkpoint is quantised, which cannot be read as weights; "
        "give one in float32, bfloat16 or float16"
    )


def _floating(name: str, tensor: Tensor) -> Tensor:
    """`tensor`, if its numbers are weights.

    Raises:
        CheckpointError: they are whole numbers, or an eighth of a float: what quantised checkpoints hold.
    """
    if not tensor.is_floating_point() or tensor.element_size() < torch.float16.itemsize:
        raise CheckpointError(_no_weights(name, str(tensor.dtype).removeprefix("torch.")))
    return tensor
