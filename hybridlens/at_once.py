"""How much of a large computation is done at once: a question of the device that it runs on.

On a CPU it is what a core's cache holds, a number that each place has measured for itself. Elsewhere each operation is
a launch of some microseconds however small it is, so that few large ones are wanted: as large as pays, and no larger
than a share of the memory that is free.

How it fails: what is free is asked of PyTorch's allocator and the driver, which know nothing of pieces too small to
use; hence a share and not all of it. A device that cannot say what is free counts as having enough.
"""

from __future__ import annotations

import torch

from hybridlens import machine
from hybridlens.hook_functions import in_captured_step

PAYS = 1 << 27
"""Numbers at once off the CPU: one pass over them takes an H100 some 0.2 ms, twenty times as long as its launch."""

SHARE = 4
"""What is done at once takes at most one part in so many of the memory that is free."""

UNASKED = 1 << 24
"""So few numbers, a decode step's, are done at once without asking what is free; in a captured step, which cannot ask,
they are as many at the most."""

LEAST = 1 << 20
"""Of more than these, so many are done at once however little is free."""


def rows_at_once(rows: int, width: int, device: torch.device, *, on_cpu: int, each: int) -> int:
    """How many of `rows` rows are worked on at once, at least one.

    Off the CPU a short memory makes the pieces smaller by halves, so that small differences in what is free change
    nothing, and pieces are as equal as they can be.

    Args:
        rows: that there are, at least one.
        width: numbers in a row.
        device: where they are.
        on_cpu: numbers at once on a CPU.
        each: bytes that a number takes at the peak, copies and intermediate results included.
    """
    if device.type == "cpu":
        return max(1, on_cpu // width)
    if rows == 1 or rows * width <= UNASKED:
        return rows
    most, free = (UNASKED, None) if in_captured_step() else (PAYS, machine.free(device))
    while free is not None and most > LEAST and most * each * SHARE > free:
        most //= 2
    pieces = -(-rows // max(1, most // width))
    return -(-rows // pieces)
