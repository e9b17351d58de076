"""Linear maps of a model, found anew at each use, so that a module exchanged later is followed.

A `Projection` is a place in the model (a module and the name of its child) and the numbers that the family multiplies
its input and output by. Adapters (LoRA) put another module into that place; quantised and offloaded weights answer to
a call. So nothing here reads a weight where calling the module would not; a PEFT adapter that is merged, or switched
off, calls the module that it stands around, whose weights are then the map (`mapping`).

How it fails: a child that is not there, or whose numbers are asked for and are not one matrix, raises
`CheckpointError`; one that is taken apart by head and rounds its input (8-bit layers do), `InputError`.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridlens.devices import execution_device, first_weight, resident
from hybridlens.errors import CheckpointError, InputError

Read: TypeAlias = Callable[[nn.Module, str], Tensor]
"""Gives a weight by the module that holds it and its name there, dotted: in the shape it is stored in, as float32."""

_ADDING: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Modules that are no plain map, seen to be linear all the same."""


@dataclass(frozen=True, eq=False)
class Projection:
    """x ↦ scale · module(scale_in · x), or one of several equal parts of that, where a module packs several maps."""

    owner: nn.Module
    name: str
    scale_in: float = 1.0
    scale: float = 1.0
    part: tuple[int, int] | None = None
    """(which, of how many) of the module's output; None for all of it."""

    @property
    def module(self) -> nn.Module:
        """The module that is there now."""
        found = self.owner.__dict__["_modules"].get(self.name)
        if found is None:
            kind = type(self.owner).__name__
            raise CheckpointError(f"a {kind} has no {self.name} any more; open the model anew with HybridLens")
        return found

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The map of `x`, bias included."""
        module = self.owner.__dict__["_modules"].get(self.name) or self.module  # which says what is missing
        x = x if self.scale_in == 1.0 else x * self.scale_in
        if self.part is None:
            out = module(x)
        elif _plain(module):
            with resident(module):
                weight, bias = cast(Tensor, module.weight), cast(Tensor | None, module.bias)
                out = F.linear(x, self._own(weight, 0), None if bias is None else self._own(bias, 0))
        else:
            out = self._own(module(x), -1)
        return out if self.scale == 1.0 else out * self.scale

    def linear(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The map of `x`, the bias left out."""
        bias = self.bias()
        return self(x) if bias is None else self(x) - bias

    def bias(self) -> Float[Tensor, "d_out"] | None:
        """What it adds whatever its input; None for nothing."""
        module = self.module
        with resident(module):
            bias = cast(Tensor | None, getattr(module, "bias", None))  # an adapter shows its base's
            if bias is None:
                return None
            bias = self._own(bias, 0)
            return bias if self.scale == 1.0 else bias * self.scale

    def stored(self, read: Read) -> tuple[Float[Tensor, "d_out d_in"], Float[Tensor, "d_out"] | None]:
        """Its matrix and its bias, multipliers included, from wherever weights are read.

        Raises:
            CheckpointError: another module than a plain linear map stands in its place.
        """
        module = self.module
        if type(mapping(module)) is not nn.Linear:
            raise CheckpointError(
                f"{self.name} is a {type(module).__name__}, whose weights are not one matrix; merge the adapter "
                "(model.merge_adapter(), or model.merge_and_unload()), or load the model unquantised"
            )
        bias = None if self.bias() is None else _times(self._own(read(module, "bias"), 0), self.scale)
        return _times(self._own(read(module, "weight"), 0), self.scale * self.scale_in), bias

    def heads(
        self, read: Read, n: int, width: int
    ) -> tuple[Float[Tensor, "head d_in {width}"], Float[Tensor, "head {width}"] | None]:
        """The map and its bias by head of what it gives, for row vectors: ``x @ W[h] + b[h]``.

        Args:
            read: where weights are read from.
            n: heads.
            width: of what a head is given.

        Raises:
            CheckpointError: as `stored`, or it gives anything but that.
        """
        stored, bias = self.stored(read)
        if stored.shape[0] != n * width:
            asked = [n * width, stored.shape[1]]
            raise CheckpointError(
                f"{self.name}.weight has shape {list(stored.shape)}, but the configuration asks for {asked}"
            )
        return stored.unflatten(0, (n, width)).mT, None if bias is None else bias.unflatten(0, (n, width))

    def from_heads(self, read: Read, n: int) -> tuple[Float[Tensor, "head width d_out"], Float[Tensor, "d_out"] | None]:
        """Each head's part of the map, for row vectors, and the bias, which is no head's.

        Args:
            read: where weights are read from.
            n: heads, whose values stand one behind the other in what it reads.

        Raises:
            CheckpointError: as `stored`.
        """
        stored, bias = self.stored(read)
        return stored.T.unflatten(0, (n, -1)), bias

    def by_head(self, x: Float[Tensor, "batch pos head width"]) -> Float[Tensor, "batch pos head d_out"]:
        """What each head's part of the input adds, the bias left out; they add up to the map less its bias."""
        module = self.module
        if _plain(module):
            with resident(module):
                weight = rearrange(self._own(cast(Tensor, module.weight), 0), "d (h e) -> h e d", e=x.shape[-1])
                out = einsum(x if self.scale_in == 1.0 else x * self.scale_in, weight, "b p h e, h e d -> b p h d")
            return out if self.scale == 1.0 else out * self.scale
        bias = self(torch.zeros_like(x[:1, :1].flatten(-2)))  # an adapter, or weights that only the module can read
        alone = torch.stack([self(_only(x, head).flatten(-2)) - bias for head in range(x.shape[2])], dim=2)
        if module not in _ADDING:
            self._check_adds_up(x, alone, bias)
            _ADDING.add(module)
        return alone

    def _check_adds_up(self, x: Tensor, alone: Tensor, bias: Tensor) -> None:
        """Whether parts of the input add up, looked at once a module: what rounds its input is no linear map.

        Raises:
            InputError: they do not, by more than rounding explains.
        """
        with torch.no_grad():
            off = (self(x.flatten(-2)) - bias - alone.sum(2)).abs().max()
            scale = alone.abs().sum(2).max() + bias.abs().max()
            allowed = 16 * (x.shape[2] * x.shape[3]) ** 0.5 * torch.finfo(alone.dtype).eps * scale
        if not bool(off <= allowed):
            raise InputError(
                f"{self.name} is a {type(self.module).__name__}, which rounds what it reads, so that what heads add "
                "does not add up to what it gives; edit hook_z or hook_attn_out, or load the model unquantised or with "
                "weights alone quantised"
            )

    def rows(self, inputs: Int[Tensor, "chosen"], d_in: int) -> Float[Tensor, "chosen d_out"]:
        """What a 1 at each of some inputs adds.

        Args:
            inputs: which.
            d_in: how many there are.
        """
        module = self.module
        if _plain(module):
            with resident(module):
                weight = self._own(cast(Tensor, module.weight), 0)
                return weight[:, inputs.to(weight.device)].T * (self.scale * self.scale_in)
        weight = first_weight(module)
        dtype = torch.float32 if weight is None else weight.dtype
        if not dtype.is_floating_point or dtype.itemsize == 1:  # packed numbers, which say nothing of what it takes
            dtype = torch.float32
        return self.linear(F.one_hot(inputs.to(execution_device(module, inputs.device)), d_in).to(dtype))

    def _own(self, packed: Tensor, dim: int) -> Tensor:
        return packed if self.part is None else packed.chunk(self.part[1], dim)[self.part[0]]


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor that a module holds under a name; unlike a function that does the same, it is copied with the module."""

    owner: nn.Module
    name: str

    def __call__(self) -> Tensor:
        """The tensor that is there now."""
        with resident(self.owner):
            return cast(Tensor, getattr(self.owner, self.name))


@dataclass(frozen=True, eq=False)
class Adapted(Projection):
    """A projection and what is added to it: x ↦ projection(x) + widen(narrow(x)), both without a bias.

    So one layer of several that share a projection makes it its own; the adapter is a part of the model.
    """

    narrow: Projection = field(kw_only=True)
    widen: Projection = field(kw_only=True)
    """To the same part of the output, where the projection is a part."""

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The map of `x`, bias included."""
        return super().__call__(x) + self.widen(self.narrow(x))

    def stored(self, read: Read) -> tuple[Float[Tensor, "d_out d_in"], Float[Tensor, "d_out"] | None]:
        """See `Projection.stored`."""
        weight, bias = super().stored(read)
        return weight + self.widen.stored(read)[0] @ self.narrow.stored(read)[0], bias

    def by_head(self, x: Float[Tensor, "batch pos head width"]) -> Float[Tensor, "batch pos head d_out"]:
        """See `Projection.by_head`."""
        narrow = self.narrow.by_head(x)
        return super().by_head(x) + self.widen(narrow)


def _plain(module: nn.Module) -> bool:
    """Whether the module is its weight and bias, and nothing else; what a trace puts there aside."""
    held = module.__dict__
    hooks = (*held["_forward_hooks"].values(), *held["_forward_pre_hooks"].values())
    if type(module) is not nn.Linear or not all(getattr(hook, "of_trace", False) for hook in hooks):
        return False
    weight = held["_parameters"].get("weight")  # of a type of its own (torchao) it answers to a call; None: it is away
    return type(weight) in (nn.Parameter, Tensor) and (weight.is_floating_point() and weight.element_size() > 1)


def mapping(module: nn.Module) -> nn.Module:
    """The module whose weights are what a module computes: itself, or what a PEFT adapter of no effect stands around.

    An adapter has none of its own while it is merged, and none while it is switched off; one that is both takes itself
    out of the weights at its next call, so that they are not what it computes. Of a module that was saved whole
    (`modules_to_save`) it is the one that runs.
    """
    tuners: Any = sys.modules.get("peft.tuners.tuners_utils")
    while tuners is not None:
        layer: Any = module
        if isinstance(module, tuners.BaseTunerLayer) and bool(layer.merged) is not bool(layer.disable_adapters):
            module = cast(nn.Module, layer.base_layer)
        elif isinstance(module, sys.modules["peft.utils.other"].ModulesToSaveWrapper):
            idle = layer.disable_adapters or not layer.active_adapters
            module = layer.original_module if idle else layer.modules_to_save[layer.active_adapters[0]]
        else:
            break
    return module


def same_weight(one: nn.Module, other: nn.Module) -> bool | None:
    """Whether two modules compute with the same weight, which an adapter on either ends; None where they are away."""
    tuners: Any = sys.modules.get("peft.tuners.tuners_utils")
    kinds = () if tuners is None else (tuners.BaseTunerLayer, sys.modules["peft.utils.other"].AuxiliaryTrainingWrapper)
    both = mapping(one), mapping(other)
    if any(isinstance(module, kinds) for module in both):
        return False
    weights = [first_weight(module) for module in both]
    return None if any(weight is None or weight.is_meta for weight in weights) else weights[0] is weights[1]


def _times(tensor: Tensor, factor: float) -> Tensor:
    """A multiple; of 1 the tensor itself, so that a view stays one."""
    return tensor if factor == 1.0 else tensor * factor


def in_memory(module: nn.Module, name: str) -> Tensor:
    """A `Read` of what a model in memory has now: views of its weights, in its dtype, without their gradients.

    Raises:
        CheckpointError: the name is no parameter there (an adapter stands in its place), or holds packed numbers.
    """
    *path, last = name.split(".")
    for part in path:
        module = cast(nn.Module, getattr(mapping(module), part))
    module = mapping(module)
    with resident(module):
        held = cast(nn.Parameter | None, module.__dict__["_parameters"].get(last))
        if held is None:
            raise CheckpointError(
                f"{name} is not one matrix of its {type(module).__name__}; merge the adapter (model.merge_adapter(), "
                "or model.merge_and_unload()), or load the model unquantised"
            )
        tensor = held.detach()
    if tensor.device.type == "meta":
        raise CheckpointError(f"the weight {name} is not in memory; give a folder, whose files are read directly")
    if type(tensor) is not Tensor:
        raise CheckpointError(no_weights(name, type(tensor).__name__))
    return floating(name, tensor)


def floating(name: str, tensor: Tensor) -> Tensor:
    """`tensor`, if its numbers are weights.

    Raises:
        CheckpointError: they are whole numbers, or an eighth of a float: what quantised checkpoints hold.
    """
    if not tensor.is_floating_point() or tensor.element_size() < torch.float16.itemsize:
        raise CheckpointError(no_weights(name, str(tensor.dtype).removeprefix("torch.")))
    return tensor


def no_weights(name: str, kind: str) -> str:
    """What is said of a tensor that holds no weights, but numbers that stand for them."""
    return (
        f"the weight {name} is stored as {kind}: the checkpoint is quantised, which cannot be read as weights; "
        "give one in float32, bfloat16 or float16"
    )


def _only(x: Tensor, head: int) -> Tensor:
    alone = torch.zeros_like(x)
    alone[:, :, head] = x[:, :, head]
    return alone
