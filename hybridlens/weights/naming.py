"""How a checkpoint's files hold what a model holds, by the rules of transformers' own loader.

Published files name tensors after an older or a larger model, and cut some: experts one by one, a convolution in
three. `Naming` says which of a file's tensors make up one of the model's, joins them, and says what is left over.

How it fails: it says nothing of shapes; tensors that do not fit each other make `joined` raise what torch raises.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor
from transformers import conversion_mapping, core_model_loading

_loading: Any = core_model_loading
_rules: Any = conversion_mapping


@dataclass(eq=False)
class _Group:
    """Tensors of the files that become one or several of the model's together."""

    first: str
    """Of the model's, the one by which the rule calls them."""
    rule: Any
    """transformers' converter; None for another name alone."""
    sources: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Which of the rule's patterns each meets, and its name in the files."""


class Naming:
    """Which of a checkpoint's tensors make up each of a model's.

    Args:
        model: the model, its weights away or not.
        stored: names in the files.

    Attributes:
        unused: names in the files that the model has no place for.
    """

    def __init__(self, model: Any, stored: Iterable[str]) -> None:
        self.model = model
        self.unused: list[str] = []
        self._groups: dict[str, _Group] = {}
        rules = _rules.get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, _loading.WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, _loading.WeightConverter)]
        by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        has, base = model.state_dict(), model.base_model_prefix
        for name in sorted(stored, key=_loading.dot_natural_key):  # as the loader goes through them: experts in order
            target, pattern = _loading.rename_source_key(name, renamings, converters, base, has)
            if target not in has and name in has:
                target, pattern = _loading.rename_source_key(name, [], [], base, has)
            if target not in has:
                self.unused.append(name)
                continue
            rule = None if pattern is None else by_pattern[pattern]
            group = self._groups.get(target) or _Group(target, rule)
            group.sources.append((pattern or name, name))
            for made in (target,) if rule is None else _targets(target, rule):
                self._groups[made] = group

    def stored(self, name: str) -> str | None:
        """What the files call a tensor of the model; None where it is made of several, or of a part of one.

        A name that the files have nothing for stays as it is.
        """
        group = self._groups.get(name)
        if group is None:
            return name
        return group.sources[0][1] if group.rule is None else None

    def joined(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """A tensor of the model that the files do not hold as it is.

        Args:
            name: in the model.
            read: gives a tensor of the files by its name there.
        """
        group = self._groups[name]
        rule = copy.deepcopy(group.rule)
        for pattern, source in group.sources:
            rule.add_tensor(group.first, source, pattern, read(source))
        made: dict[str, Tensor | list[Tensor]] = rule.convert(group.first, model=self.model, config=self.model.config)
        found = made[name]
        return found[0] if isinstance(found, list) else found


def written(model: Any) -> dict[str, Tensor]:
    """A model's tensors as files hold them, under every name that they may have there: with a prefix or without."""
    model._weight_conversions = None
    found = dict(_loading.revert_weight_conversion(model, model.state_dict()))
    model._weight_conversions = _rules.get_model_conversion_mapping(model, add_legacy=False)
    return found | _loading.revert_weight_conversion(model, model.state_dict())


def in_files(model: Any, name: str) -> list[str]:
    """What files that the model itself would write call one of its tensors, or the parts of it."""
    held = model.state_dict()
    return list(_loading.revert_weight_conversion(model, {name: held[name]})) if name in held else []


def _targets(first: str, rule: Any) -> list[str]:
    """The model's tensors that a converter makes together with `first`."""
    patterns = cast(list[str], rule.target_patterns)
    return [first.replace(patterns[0], pattern) for pattern in patterns]
