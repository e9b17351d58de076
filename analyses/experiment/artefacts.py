"""Results as files: a dataclass whose fields are tensors and plain values, saved whole and read back checked.

What a class declares is what its file must hold: every field is checked on reading, tensors for dtype and axes as
jaxtyping says, axes of one name being equally long, and then whatever its `__post_init__` refuses. A
class is written as one safetensors file, tensors under the names of their fields ("copying", "composition.heads") and
plain values as JSON in the header; or, where people may want to read it, as JSON with the tensors in it. A digest over
both stands beside them.

How it fails: a file that cannot be read, holds something else, or lacks a part, raises `InputError` with one line that
names it; one that cannot be written `ResultsError`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import torch
from jaxtyping import jaxtyped
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hybridlens.boundary import public
from hybridlens.errors import HybridLensError, InputError
from hybridlens.results import hash_json, hash_weights, write_atomic, write_json

Kind = TypeVar("Kind", bound="Stored")

VERSION = 1
"""Of the way in which fields are written; what another one wrote is refused."""

_INFINITE = (float("inf"), float("-inf"))


class Stored:
    """A dataclass that can be saved; with ``text=True`` as JSON throughout."""

    _text: ClassVar[bool] = False

    def __init_subclass__(cls, text: bool = False) -> None:
        """Choose the kind of file."""
        cls._text = text

    @public
    def save(self, path: str | Path) -> Path:
        """Write it, atomically; returns `path`.

        Raises:
            ResultsError: the file cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        held = cast(dict[str, Any], _plain(self, None if self._text else tensors))
        whole = {"format": _form(type(self)), "digest": _digest(held, tensors), **held}
        if self._text:
            return write_json(Path(path), whole)
        return write_atomic(Path(path), save(tensors, metadata={"result": json.dumps(whole, allow_nan=False)}))

    @classmethod
    @public
    def load(cls: type[Kind], path: str | Path) -> Kind:
        """Read what `save` wrote.

        Raises:
            InputError: the file cannot be read, is none of this class, or is damaged.
        """
        from pydantic import ValidationError

        what = cls.__name__
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"'{path}' cannot be read ({error.strerror}); give a saved {what}") from error
        tensors: dict[str, Tensor] = {}
        try:
            if not cls._text:
                size = int.from_bytes(data[:8], "little")
                tensors = load(data)
                data = json.loads(data[8 : 8 + size])["__metadata__"]["result"]
            held: Any = json.loads(data)
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"'{path}' is not a saved {what} ({type(error).__name__}: {error})") from error
        if not isinstance(held, dict) or held.pop("format", None) != _form(cls):
            raise InputError(f"'{path}' is not a saved {what}; give a file that {what}.save wrote")
        try:
            if held.pop("digest", None) != _digest(held, tensors):
                raise ValueError("its values do not match their digest")
            with jaxtyped("context"):
                return _reader(cls).validate_python(_whole(held, tensors))
        except ValidationError as error:
            fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
            reason = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            raise InputError(f"'{path}' is a damaged {what} ({reason}); make it again") from error
        except (KeyError, TypeError, ValueError, RuntimeError, HybridLensError) as error:
            raise InputError(f"'{path}' is a damaged {what} ({error}); make it again") from error


class Values(NamedTuple):
    """Plain values, as JSON has them and with nothing around them, as a result of their own."""

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


@dataclass(frozen=True)
class Tensors(Stored):
    """Tensors by name, as a result of their own."""

    named: dict[str, Tensor]


def _form(cls: type) -> str:
    return f"hybridlens {cls.__name__} {VERSION}"


def _digest(held: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    return hash_json([held, hash_weights(tensors)] if tensors else held)


@cache
def _reader(cls: type) -> Any:
    """What makes a class of its plain values."""
    from pydantic import ConfigDict, TypeAdapter, with_config

    return TypeAdapter(with_config(ConfigDict(arbitrary_types_allowed=True, extra="forbid"))(cls))


def _plain(value: Any, tensors: dict[str, Tensor] | None, name: str = "") -> Any:
    """A value as JSON has it; its tensors go into `tensors`, or stand as numbers where that is None.

    Args:
        value: a part of a result.
        tensors: filled.
        name: of the part: the fields, keys and places that lead to it.
    """

    def inside(part: Any, step: object) -> Any:
        return _plain(part, tensors, f"{name}.{step}" if name else str(step))

    if isinstance(value, Tensor):
        if tensors is not None:
            if name in tensors:
                raise ValueError(f"two tensors of a result are named {name!r}")
            tensors[name] = _apart((torch.view_as_real(value) if value.is_complex() else value).contiguous(), tensors)
            return {"complex" if value.is_complex() else "tensor": name}
        numbers = [None if x != x else str(x) if x in _INFINITE else x for x in value.flatten().tolist()]
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "numbers": numbers}
    if is_dataclass(value):
        return {field.name: inside(getattr(value, field.name), field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): inside(part, key) for key, part in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, tuple) and hasattr(cast(Any, value), "_fields"):  # a NamedTuple
        return {step: inside(getattr(cast(Any, value), step), step) for step in cast(Any, value)._fields}
    if isinstance(value, (list, tuple, frozenset)):
        parts = [inside(part, i) for i, part in enumerate(cast(list[Any], value))]
        return sorted(parts) if isinstance(value, frozenset) else parts
    if isinstance(value, float) and not math.isfinite(value):  # which JSON has no word for
        return str(value)
    return value


def _apart(tensor: Tensor, others: Mapping[str, Tensor]) -> Tensor:
    """A tensor that shares no memory with others, as a file has it."""
    here = tensor.untyped_storage().data_ptr()
    return tensor.clone() if any(other.untyped_storage().data_ptr() == here for other in others.values()) else tensor


def _whole(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """`_plain` the other way."""
    if isinstance(value, list):
        return [_whole(part, tensors) for part in cast(list[Any], value)]
    if not isinstance(value, dict):
        return value
    match value:
        case {"tensor": str(name), **rest} if not rest:
            return tensors[name]
        case {"complex": str(name), **rest} if not rest:
            return torch.view_as_complex(tensors[name])
        case {"dtype": str(dtype), "shape": list(shape), "numbers": list(numbers), **rest} if not rest:
            known = [float(x or "nan") if x is None or isinstance(x, str) else x for x in cast(list[Any], numbers)]
            return torch.tensor(known, dtype=getattr(torch, dtype)).reshape(shape)
        case _:
            return {key: _whole(part, tensors) for key, part in cast(dict[str, Any], value).items()}
