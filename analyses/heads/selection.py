"""Which heads are kept, from what they are sorted by: the k lowest, inside a layer or across all.

Scores arrive in blocks of queries where a prompt is long; `QueryBlocks` puts together what was made of them.

How it fails: the ranks of keys that are NaN are without meaning; entropies are NaN only where a hook function
masked every key of a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from analyses.heads.entropy import Entropies
from hybridlens.devices import sent
from hybridlens.errors import HookFunctionError
from hybridlens.hooks import HookPoint

Kept: TypeAlias = Bool[Tensor, "batch head query"]

COUNTED = 16
"""Up to so many heads, a CPU finds ranks at many queries faster by comparing every two heads than by sorting."""


def check_rows(what: str, given: int, batch: int, hook: HookPoint) -> None:
    """Refuse a batch of other rows than `what` was given for; what was given for one is for all.

    Raises:
        HookFunctionError: naming both numbers.
    """
    if given not in (1, batch):
        raise HookFunctionError(
            f"edit of '{hook.name}': {what} were given for {given} rows, but the batch has {batch}; give one, or one "
            "for each row"
        )


def lowest(keys: Entropies, k: Int[Tensor, "rows"]) -> Kept:
    """True for the k heads of lowest key at each row and query; ties by head index.

    Args:
        keys: what to sort by.
        k: heads kept, one for all rows or one for each.
    """
    heads, places = keys.shape[1], k.to(keys.device)
    if keys.device.type != "cpu":
        return ranks(keys) < places.view(-1, 1, 1)
    if heads > COUNTED or keys.shape[2] == 1:
        order = keys.argsort(dim=1, stable=True)
        first = torch.arange(heads)[None, :, None] < places[:, None, None]
        return torch.empty_like(order, dtype=torch.bool).scatter_(1, order, first.expand_as(order))
    by_head = keys.transpose(0, 1).contiguous()
    before = torch.zeros(by_head.shape, dtype=torch.uint8)  # how many heads come before
    for head, key in enumerate(by_head):
        before[:head] += key < by_head[:head]
        before[head + 1 :] += key <= by_head[head + 1 :]
    return (before < places[None, :, None]).transpose(0, 1)


def ranks(keys: Entropies) -> Int[Tensor, "batch head query"]:
    """How many heads come before each one, ties by head index; two launches, where a CPU has quicker ways."""
    return keys.argsort(dim=1, stable=True).argsort(dim=1)


def across_layers(keys: Sequence[Entropies], k: Int[Tensor, "rows"]) -> list[Kept]:
    """For each layer, True where a head is among the k × layers lowest of all; ties by layer, then head.

    Args:
        keys: of each layer, what to sort by.
        k: heads kept of all layers together, one for all rows or one for each.
    """
    if len(keys) == 1:
        return [lowest(keys[0], k)]
    home = keys[0].device
    together = torch.cat([layer.to(home) for layer in keys], dim=1)
    return list(lowest(together, k).chunk(len(keys), dim=1))


class AtHand:
    """A tensor on whatever device asks for it, copied there once: a copy at every step would have it wait each time."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._copies: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """The tensor, or its copy on `device`."""
        if device == self.value.device:
            return self.value
        if device not in self._copies:
            self._copies[device] = sent(self.value, device)
        return self._copies[device]


class QueryBlocks:
    """What the blocks of queries of one forward pass gave, put together when it is asked for."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def add(self, part: Tensor, hook: HookPoint) -> None:
        """Take the part of the queries that `hook` stands at; the first of a pass ends the one before."""
        if hook.slots is None or hook.slots.first == 0:
            self.parts = []
        self.parts.append(part)

    def whole(self) -> Tensor:
        """All queries of the pass, [batch head query]."""
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts, dim=2)]
        return self.parts[0]
