"""Results as files: tensors as safetensors, with the rest as JSON in its header, and plain values as JSON.

How it fails: a file that cannot be read, holds something else, or lacks a part, raises `InputError` with one line that
names it; one that cannot be written `ResultsError`.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hybridlens.errors import HybridLensError, InputError
from hybridlens.results import write_atomic, write_json


class TensorFile(NamedTuple):
    """What a file holds."""

    header: dict[str, Any]
    tensors: dict[str, Tensor]


def write(path: Path, form: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a file, atomically; returns `path`.

    Args:
        path: where to.
        form: the format, checked by `reading`.
        header: what JSON can hold.
        tensors: by name.

    Raises:
        ResultsError: the file cannot be written.
    """
    text = json.dumps({"format": form, **header}, allow_nan=False)
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={"result": text})
    return write_atomic(path, data)


@contextmanager
def reading(path: Path, form: str, what: str) -> Generator[TensorFile]:
    """What a file holds, for a result to be made of it inside the block.

    Args:
        path: what `write` wrote.
        form: the format expected.
        what: the result's class, for errors.

    Raises:
        InputError: the file cannot be read or is of another format, or the block finds that something is missing.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}); give a saved {what}") from error
    try:
        size = int.from_bytes(data[:8], "little")
        header: Any = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["result"])
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"'{path}' is not a saved {what} ({type(error).__name__}: {error})") from error
    if not isinstance(header, dict) or header.get("format") != form:
        raise InputError(f"'{path}' is not a saved {what}; give a file that {what}.save wrote")
    try:
        yield TensorFile(header, tensors)
    except (KeyError, TypeError, ValueError, HybridLensError) as error:
        raise InputError(f"'{path}' is a damaged {what} ({error}); make it again") from error


class Values(NamedTuple):
    """Plain values, as JSON has them, as a result of their own."""

    value: Any

    def save(self, path: Path) -> Path:
        """Write them, atomically; returns `path`."""
        return write_json(path, self.value)

    @classmethod
    def load(cls, path: Path) -> Values:
        """Read them.

        Raises:
            InputError: the file cannot be read.
        """
        try:
            return cls(json.loads(path.read_bytes()))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"'{path}' cannot be read ({type(error).__name__}: {error}); make it again") from error


class Tensors(NamedTuple):
    """Tensors by name, as a result of their own."""

    named: dict[str, Tensor]

    def save(self, path: Path) -> Path:
        """Write them, atomically; returns `path`."""
        return write(path, "tensors", {}, self.named)

    @classmethod
    def load(cls, path: Path) -> Tensors:
        """Read them.

        Raises:
            InputError: the file cannot be read.
        """
        with reading(path, "tensors", "Tensors") as held:
            return cls(held.tensors)
