"""Where modules compute, and how weights that are away are brought in.

accelerate's hooks bring the weights of an offloaded module in when the module is called. Where a weight is used
without calling its module, `resident` does the same; without offloading it does nothing. `away` reads a weight from
where accelerate keeps it, without bringing it in.

How it fails: a device that this machine lacks raises `InputError`; a model that is spread so that it cannot run
(`check_places`) `CheckpointError`. What one thread has done with, accelerate takes from all: passes over weights that
are away go one after the other (`alone`), so that a hook which waits for another thread's pass waits for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hybridlens.boundary_words import shown
from hybridlens.errors import CheckpointError, InputError

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

    Pinned memory would be read later, when its owner may have written to it, and is waited for. So would all of
    the host's memory on its way to an Apple GPU (pytorch/pytorch#189690), when it may have been freed.
    """
    waits = value.device.type != "cpu" or device.type == "mps" or value.is_pinned()
    return value.to(device, non_blocking=not waits)


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


_AWAY = threading.RLock()
"""Held by the thread that runs a model whose weights are away."""


def alone(model: nn.Module) -> AbstractContextManager[object]:
    """Have other threads' passes wait for the length of a ``with`` block, if a model has weights away."""
    if "_hf_hook" not in model.__dict__:
        return NOTHING
    hooks = (part.__dict__.get("_hf_hook") for part in model.modules())
    each = (one for hook in hooks for one in getattr(hook, "hooks", (hook,)))
    return _AWAY if any(getattr(one, "offload", False) for one in each) else NOTHING


@contextmanager
def _fetched(hooked: list[nn.Module]) -> Generator[None]:
    with ExitStack() as fetched:
        for module in hooked:
            hook = module.__dict__["_hf_hook"]
            hook.pre_forward(module)
            fetched.callback(hook.post_forward, module, torch.empty(0))
        yield


def away(module: nn.Module, name: str) -> Tensor | None:
    """A weight of a module whose weights accelerate keeps elsewhere, from there; None where it does not.

    Of a file it is mapped: what is not looked at is not read.

    Args:
        module: that holds it, on the meta device.
        name: its name there.
    """
    hook = module.__dict__.get("_hf_hook")
    for part in getattr(hook, "hooks", (hook,)):
        kept: Any = getattr(part, "weights_map", None)
        if kept is not None:
            return kept[name]
    return None


def weights_once(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """``model.named_parameters()``; of weights that are tied and away, which then are two, the one that is tied to."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for name, weight in model.named_parameters():
        if not (weight.device.type == "meta" and name in tied):
            yield name, weight


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


def check_places(model: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Refuse a model that accelerate spread over devices so that tensors of two would meet.

    Raises:
        CheckpointError: a layer is on several devices, or a module's weights on another than it computes on, as
            happens to tied weights that a map puts on two devices.
    """
    names = {id(module): name for name, module in model.named_modules()}
    for module in model.modules():
        if "_hf_hook" in module.__dict__:
            weight = next((w for w in module.__dict__["_parameters"].values() if w is not None), None)
            brought = _brought_to(module)
            if weight is None or brought is None or "meta" in (weight.device.type, brought.type):
                continue
            if not _same(weight.device, brought):
                raise CheckpointError(
                    f"the weights of {names[id(module)]} are on {weight.device}, but it computes on {brought}: they "
                    "are tied to weights that device_map has elsewhere; put both on one device"
                )
    for layer in layers:
        parts = (part for part in layer.modules() if part.__dict__["_parameters"])
        places = dict.fromkeys(str(execution_device(part, torch.device("meta"))) for part in parts)
        places.pop("meta", None)
        if len(places) > 1:
            raise CheckpointError(
                f"{names.get(id(layer), type(layer).__name__)} is spread over {' and '.join(places)}, but a layer "
                "computes on one device; give device_map whole layers"
            )


def _brought_to(module: nn.Module) -> torch.device | None:
    """Where accelerate brings what a module reads; None where it leaves it."""
    device = getattr(module.__dict__["_hf_hook"], "execution_device", None)
    return None if device is None else torch.device(device)


def _same(one: torch.device, other: torch.device) -> bool:
    """Whether two names are of one device: "cuda" is "cuda:0" unless another was chosen."""
    return one.type == other.type and (str(one) == str(other) or not (":" in str(one) and ":" in str(other)))


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
