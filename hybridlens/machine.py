"""What the machine has: where a model fits, how much memory is free there, and how much of that may be used.

A number is asked of the device when it is needed, and nothing is kept: what other processes hold counts as it is then.

A run settles its budget once and keeps it (`hybridlens.results.Folder.settle`); so budgets are round numbers, which
two machines alike come to however much their other processes hold, within reason.

How it fails: memory that another process takes afterwards is not known of; a budget leaves a share of what is free.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hybridlens.display.markup import size

MODEST = 2 * 2**30
"""Bytes that are used on a CPU at the most, unless more is said: more makes nothing faster there."""

SHARE = 0.7
"""Of what is free on a GPU; the rest is for what the estimate of a pass leaves out, and for pieces too small to use."""

BESIDE = 1.15
"""A model is put on a device that has so many times the size of its weights free."""

SPREAD = "auto"
"""accelerate's name for a map over all devices."""


class Chosen(NamedTuple):
    """Where a model is to be put: one device, or a map over several."""

    device: str | None
    device_map: str | None


def free(device: torch.device) -> int | None:
    """Bytes free on a device for this process: what PyTorch holds of it and does not use counts; None if unknown."""
    if device.type == "cuda":
        unused, _ = torch.cuda.mem_get_info(device)
        return unused + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return _available() if device.type == "cpu" else None


def budget(devices: Iterable[torch.device]) -> int:
    """Bytes that may be held beside the weights, where nobody says: by the device that has the least free.

    Rounded down to two binary digits: 1, 1.5, 2, 3, 4, 6, 8, 12, … GB.

    Args:
        devices: that the model is on.
    """
    each = [found for found in map(_allowed, set(devices)) if found is not None]
    return rounded(max(1, min(each, default=MODEST)))


def rounded(size: int) -> int:
    """A size cut to its two highest binary digits."""
    below = max(0, size.bit_length() - 2)
    return size >> below << below


def within(devices: Iterable[torch.device], settled: int) -> int:
    """Of a budget that was settled before, maybe elsewhere, what may be held here: all of it where so much is free.

    Args:
        devices: that the model is on.
        settled: bytes.
    """
    here = set(devices)
    each = [found for found in map(free, here) if found is not None]
    return settled if min(each, default=settled) >= settled else min(settled, budget(here))


def choose(weights: int) -> Chosen:
    """Where a model of so many bytes goes: to the GPU with most memory free if it fits, else over all; or to the CPU.

    Apple's GPUs lack float64, which some analyses need, and are taken only when asked for.
    """
    gpus = [torch.device("cuda", n) for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    if not gpus:
        return Chosen("cpu", None)
    most, best = max((free(gpu) or 0, -place) for place, gpu in enumerate(gpus))
    return Chosen(f"cuda:{-best}", None) if most >= BESIDE * weights else Chosen(None, SPREAD)


def words(devices: Iterable[torch.device]) -> str:
    """What the devices are and have free, in a line: "cuda:0 (NVIDIA H100 80GB HBM3, 72.1 GB free)"."""
    return ", ".join(map(_words, sorted(set(devices), key=str)))


def devices_of(model: Any) -> set[torch.device]:
    """Where a model's weights are; those that are away do not count."""
    return {weight.device for weight in model.parameters() if weight.device.type != "meta"}


def _words(device: torch.device) -> str:
    found = free(device)
    about = [torch.cuda.get_device_name(device)] if device.type == "cuda" else list[str]()
    about += [] if found is None else [f"{size(found)} free"]
    return f"{device} ({', '.join(about)})" if about else str(device)


def _allowed(device: torch.device) -> int | None:
    found = free(device)
    if device.type == "cuda" and found is not None:
        return int(SHARE * found)
    return MODEST if found is None else min(MODEST, found // 2)


def _available() -> int | None:
    """Main memory that can be had without swapping; Linux says."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    said = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if said is None else int(said) * 1024
