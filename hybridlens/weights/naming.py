"""A checkpoint's tensors by the names of the model, where its files have other names, or hold a tensor in parts.

Published files put another prefix before their names, hold experts one by one, or three convolutions where the model
has one. Which of them make up a tensor of the model, and how, transformers' own rules for loading say; nothing here is
about one family.

How it fails: `CheckpointError` names the model's tensor when the files hold nothing for it, or parts of another shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple, cast

from torch import Tensor
from transformers import conversion_mapping, core_model_loading

from hybridlens.checkpoint_files import opening
from hybridlens.errors import CheckpointError
from hybridlens.weights.sources import FileTensors


class _Part(NamedTuple):
    """A tensor of the files."""

    name: str
    pattern: str | None
    """Of the rule that joins it with others, or changes it; None where it is the model's tensor as it is."""


class NamedTensors:
    """What `files` hold, by the names of `model`; see `Tensors`.

    Args:
        files: the checkpoint's.
        model: whose names are meant; its weights may be away (on the meta device).
    """

    def __init__(self, files: FileTensors, model: Any) -> None:
        self.files = files
        self.model = model
        held: Mapping[str, Tensor] = model.state_dict()
        self.shapes = {name: tuple(weight.shape) for name, weight in held.items()}
        rules: list[Any] = conversion_mapping.get_model_conversion_mapping(model)
        renaming = [rule for rule in rules if isinstance(rule, core_model_loading.WeightRenaming)]
        joining = [rule for rule in rules if isinstance(rule, core_model_loading.WeightConverter)]
        self._rules: dict[str, Any] = {pattern: rule for rule in joining for pattern in rule.source_patterns}
        self._parts: dict[str, list[_Part]] = {}
        for name in sorted(files.names, key=core_model_loading.dot_natural_key):  # experts in the order of numbers
            prefix: str = model.base_model_prefix
            target, pattern = core_model_loading.rename_source_key(
                name, renaming, joining, prefix, cast(dict[str, Any], held)
            )
            if target not in held and name in held:  # as transformers does: a name that is right already
                target, pattern = name, None
            self._parts.setdefault(target, []).append(_Part(name, pattern))
        plain = {name: parts[0] for name, parts in self._parts.items() if parts[0].pattern is None}
        files.shapes = {part.name: self.shapes[name] for name, part in plain.items() if name in self.shapes}

    def has(self, name: str) -> bool:
        """See `Tensors`."""
        return name in self._parts

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Tensors`."""
        (first, *_) = self._found(name)
        return self.files.shape(first.name) if first.pattern is None else tuple(self._joined(name).shape)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """See `Tensors`."""
        (first, *_) = self._found(name)
        return self.files.read(first.name, start, stop) if first.pattern is None else self._joined(name)[start:stop]

    def _found(self, name: str) -> list[_Part]:
        if name not in self._parts:
            raise CheckpointError(f"'{self.files.source}' holds no tensor {name}, which its configuration asks for")
        return self._parts[name]

    def _joined(self, name: str) -> Tensor:
        """A tensor that the files hold in parts, or otherwise than the model, as transformers puts it together."""
        parts = self._parts[name]
        rule = deepcopy(self._rules[cast(str, parts[0].pattern)])
        for part in parts:
            rule.add_tensor(name, part.name, part.pattern, partial(self.files.read, part.name))
        with opening(f"'{self.files.source}': {name} cannot be made from {parts[0].name} and its like"):
            made: Any = rule.convert(name, model=self.model, config=self.model.config)[name]
        tensor: Tensor = made[0] if isinstance(made, list) else made
        asked = self.shapes.get(name, tuple(tensor.shape))
        if tuple(tensor.shape) != asked:
            raise CheckpointError(
                f"'{self.files.source}': the parts of {name} make up shape {list(tensor.shape)}, but the configuration "
                f"asks for {list(asked)}"
            )
        return tensor
