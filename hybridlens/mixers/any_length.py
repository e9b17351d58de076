"""PyTorch's fused attention where every step has a number of keys that none had before.

For each shape that it meets anew cuDNN's attention makes a plan, some 50 ms of work on an H100's host, and PyTorch
prefers it there: a decode step, which reads one key more than the last, then takes two to three times as long. The
other kernels take any shape; at lengths that are known they were up to a third slower (docs/gpu.md).

How it fails: the choice of kernels is the process's, so that other threads go without cuDNN's attention meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


class _Steps:
    """The steps of all threads that are inside."""

    lock = threading.Lock()
    inside = 0
    chosen = True
    """Whether cuDNN's attention was among the kernels before the first of them."""


def any_length(device: torch.device) -> AbstractContextManager[None]:
    """Go without cuDNN's attention for the length of a ``with`` block, where `device` has it."""
    return _without_cudnn() if device.type == "cuda" else NOTHING


NOTHING = nullcontext()


@contextmanager
def _without_cudnn() -> Generator[None]:
    with _Steps.lock:
        if _Steps.inside == 0:
            _Steps.chosen = torch.backends.cuda.cudnn_sdp_enabled()
            torch.backends.cuda.enable_cudnn_sdp(False)
        _Steps.inside += 1
    try:
        yield
    finally:
        with _Steps.lock:
            _Steps.inside -= 1
            if _Steps.inside == 0:
                torch.backends.cuda.enable_cudnn_sdp(_Steps.chosen)
