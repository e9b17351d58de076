"""What is chosen from what the machine has free; GPUs are stood for by what they would say of themselves."""

import pytest
import torch

from analyses.heads.answering import Treated
from hybridlens import load, machine
from hybridlens.devices import sent
from hybridlens.engine import Sweep

GB = 2**30


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, with 10 and 60 GB free beside what PyTorch holds, of which it does not use 2."""
    unused = {0: 10 * GB, 1: 60 * GB}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (unused[device.index], 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 * GB)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")


def test_a_model_goes_where_it_fits(gpus) -> None:
    """To the GPU with most room; spread where none has enough."""
    assert machine.choose(20 * GB) == ("cuda:1", None)
    assert machine.choose(int(62 * GB / machine.BESIDE) + GB) == (None, "auto")


def test_a_budget_is_a_share_of_what_is_free_where_least_is(gpus) -> None:
    card, other = torch.device("cuda", 0), torch.device("cuda", 1)
    assert machine.budget([other]) == 32 * GB  # of 0.7 x 62
    assert machine.budget([card, other]) == 8 * GB  # of 0.7 x 12
    assert machine.words([other]) == "cuda:1 (A card, 66.6 GB free)"


def test_free_memory_of_an_apple_gpu_is_what_the_system_leaves_it(monkeypatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 9 * GB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2 * GB)
    assert machine.free(torch.device("mps")) == 7 * GB
    assert machine.free(torch.device("meta")) is None


def test_what_is_sent_to_an_apple_gpu_is_waited_for(monkeypatch) -> None:
    """An Apple GPU would read memory of the host that is gone by then, without a word."""
    asked: list[tuple[str, bool]] = []

    def to(value, device, non_blocking=False):
        asked.append((device.type, non_blocking))
        return value

    monkeypatch.setattr(torch.Tensor, "to", to)
    for kind in ("cuda", "mps", "cpu"):
        sent(torch.zeros(1), torch.device(kind))
    assert asked == [("cuda", True), ("mps", False), ("cpu", True)]


def test_without_a_gpu_models_go_to_the_cpu_and_budgets_are_modest(monkeypatch) -> None:
    """At most 2 GB, and half of what is free where that is less."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.choose(10**15) == ("cpu", None)
    for held, expected in ((64 * GB, 2 * GB), (GB, GB // 2), (None, 2 * GB)):
        monkeypatch.setattr(machine, "_available", lambda held=held: held)
        assert machine.budget([torch.device("cpu")]) == expected


def test_a_checkpoint_opened_as_the_machine_has_it_is_the_same_model(monkeypatch) -> None:
    """On a CPU, in the dtype of its files: the embedded models' is float32. A sweep asks what is free."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plain, chosen = load("tiny-jamba"), load("tiny-jamba", device="auto", dtype="auto")
    assert chosen.dtype == plain.dtype == torch.float32
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        assert torch.equal(plain(ids), chosen(ids))
    monkeypatch.setattr(machine, "_available", lambda: GB)
    assert Sweep(chosen, Treated(chosen)).budget.memory == GB // 2
