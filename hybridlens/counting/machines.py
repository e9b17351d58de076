"""What machines can do at most, and what share of it was reached: from operations and bytes to seconds, roughly.

Peaks are the vendors' own, dense (without structured sparsity): NVIDIA A100 and H100/H200 Tensor Core GPU datasheets,
SXM modules. Shares and overheads are those that `docs/gpu.md` gives for one H100 in bfloat16, 2026-11-27, and
`docs/speed.md` for a core of a CPU; they are what an estimate stands on, and other machines, dtypes and versions of
libraries will have others.

How it fails: an unknown machine raises `UnknownNameError`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from hybridlens.errors import UnknownNameError, closest

READING_SHARE = 0.15
"""Of the peak, that reading 4,096 tokens reached: 20 % and 31 % of a measured 767 and 751 Tflop/s, which are 15 % and
24 % of the vendor's 989; the lower of the two."""

BANDWIDTH_SHARE = 0.5
"""Of the peak, that is taken for what moving weights and states reaches; not measured, since launches hid it."""

LAYER_SECONDS = 0.0022
"""That a pass takes for each layer at least, to launch its kernels: 53 ms for the 26 layers of RecurrentGemma-2B, 19 ms
for eight of a Jamba."""

CAPTURED_SECONDS = 0.00022
"""The same of a captured decode step: 5.8 ms for the 26; the eight took 4.1, which is what moving their weights takes.
The first step of a batch is run as it is, and the second takes as long to be recorded: 32 steps of 9.3 and 5.0 ms."""

CORE_LAYER_SECONDS = 0.0005
"""`LAYER_SECONDS` on a CPU, where it is Python's time."""

SHAPE_SECONDS = 0.05
"""That a pass takes besides where none before had as many rows, tokens and keys: cuDNN's attention plans anew."""

TREATED_READING, TREATED_STEP = 1.24, 1.08
"""How many times as long top-k takes while reading and while decoding, on an H100: the larger of docs/gpu.md's two."""

SPARE = 2 * 2**30
"""Bytes of a device that its runtime and the allocator's rounding are taken to need."""


class Machine(NamedTuple):
    """A device."""

    name: str
    memory: int | None
    """Bytes; None where it is not known."""
    narrow: float
    """Operations a second in bfloat16 and float16, at most."""
    wide: float
    """The same in float32."""
    bandwidth: float
    """Bytes a second between memory and processor, at most."""
    layer_seconds: float = LAYER_SECONDS
    captured_seconds: float | None = CAPTURED_SECONDS
    """None where decode steps are run as they are."""
    shape_seconds: float = SHAPE_SECONDS
    mixture_seconds: float = 0.0
    share: float = READING_SHARE

    def peak(self, dtype: torch.dtype) -> float:
        """Operations a second, at most."""
        return self.wide if dtype.itemsize >= 4 else self.narrow

    def seconds(self, operations: float | int, moved: float | int, dtype: torch.dtype) -> float:
        """How long so many operations, and bytes moved, take: the longer of the two, at the shares reached.

        Args:
            operations: floating-point operations.
            moved: bytes.
            dtype: of the weights.
        """
        return max(operations / (self.peak(dtype) * self.share), moved / (self.bandwidth * BANDWIDTH_SHARE))


MACHINES = {
    machine.name: machine
    for machine in (
        Machine("a100-80gb", 80 * 10**9, 312e12, 19.5e12, 2.039e12),
        Machine("h100", 80 * 10**9, 989e12, 67e12, 3.35e12),
        Machine("h200", 141 * 10**9, 989e12, 67e12, 4.8e12),
        # One core with 256-bit vectors: 32 operations a cycle at 2.5 GHz; bfloat16 is no faster there.
        Machine("cpu", None, 80e9, 80e9, 20e9, CORE_LAYER_SECONDS, None, 0.0, 2 * CORE_LAYER_SECONDS, 0.5),
    )
}
"""By name. "cpu" is one core of a common server, with half of its peak taken to be reached."""

ALIASES = {"80gb": "a100-80gb"}
"""Other words for them; of machines with 80 GB the slower one is taken."""


def machine_of(name: str) -> Machine:
    """The machine of a name.

    Raises:
        UnknownNameError: there is none.
    """
    word = name.strip().lower()
    found = MACHINES.get(ALIASES.get(word, word))
    if found is None:
        known = (*ALIASES, *MACHINES)
        raise UnknownNameError(
            f"machine {name!r} does not exist{closest(word, known)}; expected one of {', '.join(known)}"
        )
    return found
