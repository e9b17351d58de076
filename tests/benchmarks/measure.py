"""How the benchmarks measure: both sides in one process, in turn, and ratios of neighbouring runs.

Other work on the machine slows both sides, and seldom for just one of two neighbouring runs. So each of our runs
is set against the run of the other side right after it, and what is reported is the median of these ratios, with
the least and the largest.

Memory is what PyTorch's CPU allocator holds, read from the profiler's record of every allocation. Both sides
allocate all of their tensors there, and neither the system's own caching nor an earlier peak shows in it, as they
would in the size of the process. It does not see Python objects, nor the scratch space inside a matrix product.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], object]

TOLERANCE = 1e-4
"""How far the two sides may differ, relative to the largest value of a tensor."""


class Paired(NamedTuple):
    """Seconds of both sides, and what one is worth in terms of the other."""

    ours: float
    """Median."""
    theirs: float
    faster: float
    """Median over neighbouring runs of theirs ÷ ours."""
    least: float
    most: float


def paired(ours: Run, theirs: Run, runs: int) -> Paired:
    """Both sides in turn, `runs` times after a first one each that does not count."""
    ours(), theirs()
    times: list[tuple[float, float]] = []
    for _ in range(runs):
        began = time.perf_counter()
        ours()
        between = time.perf_counter()
        theirs()
        times.append((between - began, time.perf_counter() - between))
    ratios = [b / a for a, b in times]
    mine, other = (statistics.median(side) for side in zip(*times, strict=True))
    return Paired(mine, other, statistics.median(ratios), min(ratios), max(ratios))


def paired_seconds(ours: Run, theirs: Run, runs: int) -> tuple[float, float]:
    """Median seconds of each side."""
    return paired(ours, theirs, runs)[:2]


def peak_bytes(run: Run) -> int:
    """The most memory that PyTorch's CPU allocator held at once during `run`, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def operations(run: Run) -> set[str]:
    """The names of PyTorch's operations in `run`."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        run()
    return {event.key for event in profiler.key_averages()}


def difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest difference of tensors of the same name, relative to the largest value of each.

    Raises:
        AssertionError: it is above `TOLERANCE`, or names or shapes differ; nothing should be timed then.
    """
    assert set(ours) == set(theirs), f"tensors differ: {sorted(set(ours) ^ set(theirs))}"
    worst = 0.0
    for name, value in ours.items():
        assert value.shape == theirs[name].shape, f"{name}: {list(value.shape)} and {list(theirs[name].shape)}"
        apart = float((value - theirs[name]).abs().max() / theirs[name].abs().max())
        assert apart <= TOLERANCE, f"{name}: the sides differ by {apart:.1e} of the largest value"
        worst = max(worst, apart)
    return worst


def machine() -> str:
    """One line about where the figures come from."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{os.cpu_count()} cores of {processor}, torch {torch.__version__}, threads used: {threads}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as a markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
