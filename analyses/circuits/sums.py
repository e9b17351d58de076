"""Sums over the real tokens of some text, layer by layer: what is measured of circuits is made of these.

Prompts are run a few at a time, and a layer's activations are let go as it is left behind.

How it fails: `InputError` for prompts that cannot be run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from hybridlens.hooks import Edit, HookPoint, reads_only
from hybridlens.model import HybridLens
from hybridlens.padding import TokenBatch
from hybridlens.shapes import Lengths, Valid

ROWS = 8
"""Prompts run at a time."""

Terms: TypeAlias = Callable[[int, Mapping[str, Tensor], Valid], dict[str, Tensor]]
"""Given a layer, its activations by the last part of their points' names, float32, and which tokens are real: sums."""


def real_lengths(batch: TokenBatch) -> Lengths:
    """Real tokens of each row."""
    rows = batch.tokens
    return torch.full(rows.shape[:1], rows.shape[1], device=rows.device) if batch.lengths is None else batch.lengths


def sums(
    lens: HybridLens, batch: TokenBatch, device: torch.device, points: Mapping[int, Sequence[str]], terms: Terms
) -> dict[int, dict[str, Tensor]]:
    """The sums of `terms` over all prompts, by layer; under "tokens" the number of real ones.

    Args:
        batch: prompts; padding never counts.
        device: where the sums are made.
        points: names of hook points by layer, that which a run passes last at the end.
    """
    names = {name for of_layer in points.values() for name in of_layer}
    last = {of_layer[-1]: layer for layer, of_layer in points.items()}
    found: dict[int, dict[str, Tensor]] = {layer: {} for layer in points}
    for rows, real in zip(batch.tokens.split(ROWS), real_lengths(batch).split(ROWS), strict=True):
        width = int(real.max())
        mask = (torch.arange(width, device=real.device) < real[:, None]).to(device)
        held: dict[str, Tensor] = {}

        @reads_only
        def keep(x: Tensor, hook: HookPoint, mask: Tensor = mask, held: dict[str, Tensor] = held) -> None:
            name = str(hook.name)
            held[name.rsplit(".", 1)[-1]] = x.to(device, torch.float32)
            if name in last:
                total = found[last[name]]
                for key, value in {"tokens": mask.sum(), **terms(last[name], held, mask)}.items():
                    total[key] = total[key] + value if key in total else value
                held.clear()

        with torch.no_grad():
            lens.prefill(rows[:, :width], [Edit(lambda name: name in names, keep)], lengths=real, last_only=True)
    return found


def relative(missed: Tensor, written: Tensor) -> Tensor:
    """√(missed ÷ written); 0 where nothing is missed, infinite where only what is missed is above 0."""
    return torch.where(missed > 0, (missed / written).sqrt(), 0.0).float()
