"""Single queries on a GPU go without cuDNN's attention, everything else with whatever was chosen."""

import threading
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from hybridlens.mixers import attention
from hybridlens.mixers.any_length import any_length
from hybridlens.slots import KeySlots

GPU = torch.device("cuda")
enabled = torch.backends.cuda.cudnn_sdp_enabled


@pytest.mark.parametrize("before", [True, False])
def test_the_choice_comes_back(before: bool) -> None:
    """After blocks inside each other that an error ends, and after two threads that leave in the order they came in."""

    def fail() -> None:
        with any_length(GPU), any_length(GPU):
            assert not enabled()
            raise KeyError

    was = enabled()
    torch.backends.cuda.enable_cudnn_sdp(before)
    try:
        with pytest.raises(KeyError):
            fail()
        assert enabled() == before
        with any_length(torch.device("cpu")):
            assert enabled() == before
        inside, left, last = threading.Event(), threading.Event(), list[bool]()

        def other() -> None:
            with any_length(GPU):
                inside.set()
                left.wait()
                last.append(enabled())

        thread = threading.Thread(target=other)
        with any_length(GPU):
            thread.start()
            inside.wait()
        last.append(enabled())
        left.set()
        thread.join()
        assert last == [False, False]
        assert enabled() == before
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was)


@pytest.mark.parametrize("queries", [1, 3])
def test_single_queries_go_without(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken for a GPU's: what is chosen while the kernel is asked, by the number of queries."""
    seen: list[bool] = []
    whole = torch.nn.functional.scaled_dot_product_attention

    def asked(q: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        seen.append(enabled())
        return whole(q, *rest, **named)

    def on_gpu(device: torch.device) -> AbstractContextManager[None]:
        return any_length(GPU)

    monkeypatch.setattr(attention, "any_length", on_gpu)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", asked)
    q, keys = torch.randn(2, queries, 4, 8), torch.randn(2, 2, 5, 8)
    positions = torch.arange(5).expand(2, -1)
    slots = KeySlots(positions[:, -queries:], positions, causal=False)
    was = enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        attention.fused_attention(q, keys, keys, slots, 1.0)
        assert seen == [queries > 1]
        assert enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was)
