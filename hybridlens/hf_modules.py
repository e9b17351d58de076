"""The modules of the Hugging Face model in a trace, under their own names: ``lens.model.layers[2].mamba.in_proj``.

The lens runs the model's modules one by one, so those that it calls as a whole have an input and an output there:
projections, experts, activations, the embedding and the unembedding. They are read and written by hooks of torch's,
which stand on them for the length of one trace, act in its thread alone, and are gone afterwards. Outside a trace an
`HFModule` is its module, to look at and to call.

How it fails: `HookFunctionError` for a value outside a trace, for a module that does not run as a whole (a layer, a
mixer, a norm, a router), with what runs in it and what to use, and for a value of another shape, dtype or device.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hybridlens.elsewhere import missing
from hybridlens.errors import HookFunctionError
from hybridlens.following import Following
from hybridlens.habits import POINT
from hybridlens.hook_functions import mismatch, of_trace
from hybridlens.interleaving import Live, ThreadInterleaver

ROOT = "hf_model"
"""What their paths begin with."""

LISTED = 6
"""Modules that a message names, at the most."""


class HFModule(Live):
    """A module of the Hugging Face model: live inside ``with lens.trace(...)``, the module itself elsewhere.

    Args:
        module: it.
        following: the model it is of.
        interleaver: of the lens.
    """

    def __init__(self, module: nn.Module, following: Following, interleaver: ThreadInterleaver) -> None:
        self.__dict__.update(_module=module, _following=following, _interleaver=interleaver)

    @property
    def path(self) -> str:
        """Its name in the model, with ``hf_model`` before it."""
        mine = self._module
        return next(
            (f"{ROOT}.{name}" if name else ROOT for name, m in self._following.model.named_modules() if m is mine), ROOT
        )

    def _at(self, side: str) -> str:
        path = self.path
        if not self._interleaver.in_block():
            raise HookFunctionError(
                f"'{path}.{side}' has a value only inside `with lens.trace(tokens):`; the module itself is lens.{path}"
            )
        if path not in self._interleaver.modules:
            raise HookFunctionError(self._why_not(path, side))
        return super()._at(side)

    def _why_not(self, path: str, side: str) -> str:
        modules = self._interleaver.modules
        inside = [name.removeprefix(f"{path}.") for name in modules if name.startswith(f"{path}.")]
        inside = [name for name in inside if "layers." not in name] or inside
        runs = f"; in it {', '.join(inside[:LISTED])} run as a whole" if inside else ""
        layer = re.search(r"\.layers\.(\d+)(\.|$)", path)
        points = f"of lens.blocks[{layer.group(1)}]" if layer else "of lens.hook_points"
        return (
            f"'{path}.{side}' has no value: the lens does not run {type(self._module).__name__} as a whole{runs}; use "
            f"a hook point {points}"
        )

    def __getattr__(self, name: str) -> Any:
        if name in POINT and not hasattr(self._module, name):
            raise missing(self, "a module in a trace", name, POINT)
        value = getattr(self._module, name)
        return self._wrapped(value) if isinstance(value, nn.Module) else value

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("output", "input", "inputs"):
            raise HookFunctionError(f"{name} cannot be set on lens.{self.path} here; set it on lens.hf_model's module")
        object.__setattr__(self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module makes of these; no part of a trace that is under way."""
        return self._module(*args, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        """A module of a list of modules, or a list of several."""
        found: Any = self._module[key]
        return [self._wrapped(one) for one in found] if isinstance(key, slice) else self._wrapped(found)

    def __iter__(self) -> Iterator[Any]:
        """The modules of a list of modules."""
        return (self._wrapped(one) for one in self._module)

    def __len__(self) -> int:
        """Of a list of modules."""
        return len(self._module)

    def __bool__(self) -> bool:
        """Always."""
        return True

    def __dir__(self) -> list[str]:
        """Those of the module, and what a trace adds."""
        return sorted({*dir(self._module), "input", "inputs", "output", "path"})

    def __repr__(self) -> str:
        """The module's own."""
        return repr(self._module)

    def _wrapped(self, module: nn.Module) -> HFModule:
        return HFModule(module, self._following, self._interleaver)


@contextmanager
def handing_out(model: nn.Module, following: Following, interleaver: ThreadInterleaver) -> Generator[None]:
    """The length of a run whose trace may ask for values of the model's modules.

    Args:
        model: the one that runs.
        following: which of its modules run as a whole.
        interleaver: of the trace.
    """
    bypassed = set(following.bypassed)
    modules = {f"{ROOT}.{name}": module for name, module in model.named_modules() if module not in bypassed}
    outer, interleaver.modules = interleaver.modules, modules
    handles = [handle for path, module in modules.items() for handle in _hooked(path, module, interleaver)]
    try:
        yield
    finally:
        interleaver.modules = outer
        for handle in handles:
            handle.remove()


def _hooked(path: str, module: nn.Module, interleaver: ThreadInterleaver) -> Iterator[Any]:
    before_at, after_at = f"{path}.input", f"{path}.output"

    @of_trace
    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not interleaver.busy:
            return None
        given = args, kwargs
        value = interleaver.handle(before_at, given)
        return None if value is given else _like(args, kwargs, value, before_at)

    @of_trace
    def after(module: nn.Module, args: Any, output: Any) -> Any:
        if not interleaver.busy:
            return None
        value = interleaver.handle(after_at, output)
        problem = mismatch(output, value, "the trace's block") if isinstance(output, Tensor) else None
        if problem is not None:
            raise HookFunctionError(f"'{after_at}': {problem}")
        return value

    yield module.register_forward_pre_hook(before, with_kwargs=True)
    yield module.register_forward_hook(after)


def _like(args: Any, kwargs: Any, value: Any, location: str) -> Any:
    """What a module is to be called with, if it can stand in for what it was called with."""
    new_args, new_kwargs = value
    pairs = [*zip(args, new_args, strict=True), *((old, new_kwargs[key]) for key, old in kwargs.items())]
    for old, new in pairs:
        problem = mismatch(old, new, "the trace's block") if isinstance(old, Tensor) else None
        if problem is not None:
            raise HookFunctionError(f"'{location}': {problem}")
    return value
