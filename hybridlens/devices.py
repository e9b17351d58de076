"""Where modules compute, and how weights that are away are brought in.

accelerate's hooks bring the weights of an offloaded module in when the module is called. Where a weight is used
without calling its module, `resident` does the same; without offloading it does nothing.

How it fails: a device that this machine lacks raises `InputError`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from hybridlens.boundary_words import shown
from hybridlens.errors import InputError

DEVICES = "cpu, cuda, cuda:N or mps"


def usable(device: torch.device | str, named: str = "device") -> torch.device:
    """A device, if tensors can be made there.

    Args:
        device: as torch has it.
        named: what its user calls it.

    Raises:
        InputError: it does not exist, or not on this machine.
    """
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        given = shown(str(device) if isinstance(device, torch.device) else device)
        problem = f"{named} {given} cannot be used here ({said[:300]}); expected {DEVICES}"
        raise InputError(problem) from error
    return place


def sent(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; one of the host is on its way, and nobody waits for that.

    Pinned memory would be read later, when its owner may have written to it; that alone is waited for.
    """
    return value.to(device, non_blocking=value.device.type == "cpu" and not value.is_pinned())


class Coming:
    """A tensor on its way to the host; whoever wants it waits for its own work alone, not for what came after.

    Args:
        value: where it is computed.
    """

    def __init__(self, value: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if value.device.type != "cuda":
            self._value = value.cpu()
            return
        self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        with torch.cuda.device(value.device):
            self._value.copy_(value, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def here(self) -> Tensor:
        """The tensor, on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._value


def resident(*modules: nn.Module) -> AbstractContextManager[None]:
    """Have the weights of offloaded modules at hand while they are used directly."""
    for module in modules:
        if "_hf_hook" in module.__dict__:
            return _fetched([module for module in modules if "_hf_hook" in module.__dict__])
    return NOTHING


NOTHING = nullcontext()


@contextmanager
def _fetched(hooked: list[nn.Module]) -> Generator[None]:
    for module in hooked:
        module.__dict__["_hf_hook"].pre_forward(module)
    try:
        yield
    finally:
        for module in hooked:
            module.__dict__["_hf_hook"].post_forward(module, torch.empty(0))


def execution_device(module: nn.Module, default: torch.device) -> torch.device:
    """Where a module computes: where its weights are, or where accelerate brings them when they are away."""
    weight = first_weight(module)
    if weight is None:
        return default
    if weight.device.type != "meta":
        return weight.device
    hooks = (part.__dict__.get("_hf_hook") for part in module.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return next((torch.device(device) for device in devices if device is not None), weight.device)


def first_weight(module: nn.Module) -> nn.Parameter | None:
    """What ``next(module.parameters(), None)`` gives, in a fraction of its time."""
    for weight in module.__dict__["_parameters"].values():
        if weight is not None:
            return weight
    for part in module.__dict__["_modules"].values():
        weight = None if part is None else first_weight(part)
        if weight is not None:
            return weight
    return None
