"""A lens where a torch module is expected: device and dtype, parameters, modes, saving and loading.

A lens has no weights of its own: all of this is of the Hugging Face model that it runs, so an optimizer over
``lens.parameters()`` trains that model, and ``lens.to("cuda")`` moves it.

How it fails: a model that cannot be moved or cast (quantised, or spread over devices) raises `InputError`, and so does
training one that has dropout, which a lens never applies: the loss would be another than the library's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from hybridlens.boundary import public
from hybridlens.boundary_words import shown
from hybridlens.devices import usable
from hybridlens.errors import InputError
from hybridlens.mlps import ONE_BY_ONE, grouped

MOST_DEVICES = 128
"""Numbers of GPUs are below it, as torch has them."""

Lens = TypeVar("Lens", bound="ModuleFront")


class ModuleFront:
    """What is asked of a torch module; `HybridLens` builds on it."""

    hf_model: Any
    _experts_before: dict[str, str | None] | None = None
    """How transformers ran the model's experts before a cast to float64; None unless it was cast."""

    # Where the weights are, and how wide.

    def to(self: Lens, *where: Any, device: Any = None, dtype: Any = None) -> Lens:
        """Move the weights to a device, cast them, or both; returns the lens.

        States that were read before belong to the device and dtype that they were read on. In float64, of which torch
        has no grouped product, transformers runs experts one by one until the next cast.

        Args:
            where: a device, a dtype, both in either order, or a tensor that has them.
            device: the same by name.
            dtype: likewise; of real numbers with a fraction.

        Raises:
            InputError: a device that is not there, a dtype that weights cannot have, or a model that cannot be moved.
        """
        for given in where:
            if isinstance(given, Tensor):
                device, dtype = given.device, given.dtype
            elif isinstance(given, torch.dtype):
                dtype = given
            else:
                device = given
        number = isinstance(device, int) and not isinstance(device, bool) and 0 <= device < MOST_DEVICES
        if not number and not isinstance(device, (str, torch.device, type(None))):
            raise InputError(f"to({shown(device)}) given, expected a device, a dtype, or both")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise InputError(f"to({shown(dtype)}) given, but weights have a dtype such as torch.float32 or bfloat16")
        place = None if device is None else usable(f"cuda:{device}" if isinstance(device, int) else device)
        try:
            self.hf_model.to(device=place, dtype=dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())[:200]
            raise InputError(
                f"the model cannot be moved to {place or 'its device'} in {dtype or 'its dtype'}: {said}"
            ) from error
        if dtype is not None:
            self._suit_experts(dtype)
        return self

    def _suit_experts(self, dtype: torch.dtype) -> None:
        """Have transformers run experts as this dtype allows."""
        model = self.hf_model
        if dtype != torch.float64 and self._experts_before is not None:
            model.set_experts_implementation(self._experts_before)
            self._experts_before = None
        elif dtype == torch.float64 and any(grouped(module) for module in model.modules()):
            self._experts_before = model.get_experts_implementation()
            model.set_experts_implementation(ONE_BY_ONE)

    def cpu(self: Lens) -> Lens:
        """Move the weights to the CPU."""
        return self.to("cpu")

    def cuda(self: Lens, device: int | str | torch.device | None = None) -> Lens:
        """Move the weights to a GPU: the current one, or one by number."""
        return self.to("cuda" if device is None else device)

    def half(self: Lens) -> Lens:
        """Cast the weights to float16."""
        return self.to(torch.float16)

    def bfloat16(self: Lens) -> Lens:
        """Cast the weights to bfloat16."""
        return self.to(torch.bfloat16)

    def float(self: Lens) -> Lens:
        """Cast the weights to float32."""
        return self.to(torch.float32)

    def double(self: Lens) -> Lens:
        """Cast the weights to float64."""
        return self.to(torch.float64)

    # Modes.

    @property
    def training(self) -> bool:
        """Whether the model is in training mode; a lens computes the same in both."""
        return cast(bool, self.hf_model.training)

    @public
    def train(self: Lens, mode: bool = True) -> Lens:
        """Put the model into training mode, or out of it; returns the lens.

        Raises:
            InputError: the model has dropout, which a lens does not apply.
        """
        found = _dropout(self.hf_model) if mode else None
        if found is not None:
            raise InputError(
                f"train() was called on a model with dropout ({found}), which a lens never applies; set it to 0, or "
                "train lens.hf_model itself"
            )
        self.hf_model.train(mode)
        return self

    def eval(self: Lens) -> Lens:
        """Put the model into evaluation mode; returns the lens."""
        return self.train(False)

    # Weights.

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The model's weights."""
        return self.hf_model.parameters(recurse)

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's weights, under Hugging Face's names."""
        return self.hf_model.named_parameters(prefix, recurse)

    def modules(self) -> Iterator[nn.Module]:
        """The model's modules."""
        return self.hf_model.modules()

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The model's modules, under Hugging Face's names."""
        return self.hf_model.named_modules()

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """What the model holds beside its weights."""
        return self.hf_model.buffers(recurse)

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
        """The same, under Hugging Face's names."""
        return self.hf_model.named_buffers(prefix, recurse)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The model's weights and buffers, under Hugging Face's names."""
        return self.hf_model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True) -> Any:
        """Take over weights that `state_dict` gave, of this model or one like it.

        Raises:
            InputError: names or shapes of another model.
        """
        try:
            return self.hf_model.load_state_dict(state_dict, strict=strict)
        except RuntimeError as error:
            said = " ".join(str(error).split())
            raise InputError(f"weights of another model given: {said[:300]}") from error

    @public
    def requires_grad_(self: Lens, requires_grad: bool = True) -> Lens:
        """Whether weights take gradients; returns the lens."""
        self.hf_model.requires_grad_(requires_grad)
        return self

    @public
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the weights' gradients."""
        self.hf_model.zero_grad(set_to_none)


def _dropout(model: nn.Module) -> str | None:
    """The dropout that a model applies in training, in words; None for none."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:  # pyright: ignore[reportPrivateUsage]
            return f"{name}: {module.p}"
    config: dict[str, Any] = cast(Any, model).config.to_dict()
    for name, value in config.items():
        if "dropout" in name and isinstance(value, (int, float)) and value > 0:
            return f"{name} = {value}"
    return None
