"""Where tensors are read from: a model in memory, or safetensors files, one tensor at a time.

Files are mapped into memory and a tensor is read when it is asked for, so a checkpoint of any size takes the memory
of what is used of it. A sharded checkpoint is opened a shard at a time, and shards that hold nothing of interest are
never touched, nor, of a hub id, downloaded.

How it fails: `CheckpointError` names the missing tensor or shard, a file that cannot be read, and a tensor whose
numbers are not its weights (quantised, or away on another device).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hybridlens.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


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


class FileTensors:
    """The weights of a checkpoint's safetensors files.

    Args:
        source: a folder, or a hub id whose files are fetched, or taken from the cache, as they are needed.

    Raises:
        CheckpointError: there are no safetensors files, or their index cannot be read.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        self._open: tuple[str, Any] | None = None
        self._files = dict(self._listed())

    def has(self, name: str) -> bool:
        """See `Tensors`."""
        return name in self._files

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Tensors`."""
        return tuple(self._handle(name).get_slice(name).get_shape())

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """See `Tensors`."""
        handle = self._handle(name)
        try:
            if start == 0 and stop is None:
                return _floating(name, cast(Tensor, handle.get_tensor(name)))
            return _floating(name, cast(Tensor, handle.get_slice(name)[start:stop]))
        except SafetensorError as error:
            where = f"'{self.source}': {name} cannot be read from {self._files[name]}"
            raise CheckpointError(f"{where}: {error}") from error

    def _listed(self) -> Iterator[tuple[str, str]]:
        """(tensor, file) for all of the checkpoint."""
        index = self._fetched(INDEX)
        if index is not None:
            try:
                yield from json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
            except (OSError, ValueError, KeyError, AttributeError) as error:
                raise CheckpointError(f"'{self.source}': {INDEX} is damaged ({error}); fetch it again") from error
            return
        if self._fetched(SINGLE) is None:
            raise CheckpointError(f"'{self.source}' holds no {SINGLE} and no {INDEX}; convert it to safetensors first")
        yield from ((name, SINGLE) for name in self._opened(SINGLE).keys())  # noqa: SIM118 - not a mapping

    def _handle(self, name: str) -> Any:
        if name not in self._files:
            raise CheckpointError(f"'{self.source}' holds no tensor {name}, which its configuration asks for")
        return self._opened(self._files[name])

    def _opened(self, file: str) -> Any:
        if self._open is None or self._open[0] != file:
            self._open = None  # one shard is mapped at a time: pages that were read count as memory while it is
            path = self._fetched(file)
            if path is None:
                raise CheckpointError(f"'{self.source}' lacks its shard {file}; fetch it, then run this again")
            try:
                self._open = (file, safe_open(str(path), framework="pt"))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"'{self.source}': {file} cannot be read: {error}") from error
        return self._open[1]

    def _fetched(self, file: str) -> Path | None:
        """Where a file is; None where the checkpoint has no such file."""
        if Path(self.source).is_dir():
            path = Path(self.source) / file
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.source, file))
        except LocalEntryNotFoundError as error:
            if file in (INDEX, SINGLE):  # which of the two a checkpoint has is found by asking
                return None
            raise CheckpointError(f"'{self.source}': the shard {file} cannot be fetched: {error}") from error
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, OSError) as error:
            reason = str(error).strip().split("\n")[0]
            raise CheckpointError(f"'{self.source}': {file} cannot be fetched: {reason}") from error


def _floating(name: str, tensor: Tensor) -> Tensor:
    """`tensor`, if its numbers are weights.

    Raises:
        CheckpointError: they are whole numbers, or an eighth of a float: what quantised checkpoints hold.
    """
    if not tensor.is_floating_point() or tensor.element_size() < torch.float16.itemsize:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"the weight {name} is stored as {kind}: the checkpoint is quantised, which cannot be read as weights; "
            "give one in float32, bfloat16 or float16"
        )
    return tensor
