"""How the benchmarks measure: both sides in one process, in turn, and ratios of medians."""

import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def paired_seconds(ours: Callable[[], object], theirs: Callable[[], object], runs: int) -> tuple[float, float]:
    """Median seconds of each side; the sides alternate, so that a slow spell of the machine meets both."""
    ours(), theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for side, kept in zip((ours, theirs), times, strict=True):
            began = time.perf_counter()
            side()
            kept.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def peak_bytes(run: Callable[[], object]) -> int:
    """The most memory that PyTorch's CPU allocator held at once during `run`, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def machine() -> str:
    """One line about where the figures come from."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"
